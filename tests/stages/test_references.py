"""Kept reference log-probs: of this reference, this tokenizer and these pairs, or computed anew."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nplus.config import DPOConfig
from nplus.data.collate import PairRow, pair_batch
from nplus.data.tokens import train_bpe
from nplus.runs import StageDir
from nplus.stages import dpo
from nplus.stages.forwards import pair_logprobs
from nplus.stages.references import model_hash, pair_hash, text_hash

ROWS = [
    PairRow([5, 9, 33], [7, 8, 0], [9, 0]),
    PairRow([4, 6], [11, 0], [12, 13, 14, 0]),
    PairRow([4, 6], [12, 13, 14, 0], [11, 0]),
    PairRow([20, 21, 22, 23], [30, 31, 32, 0], [33, 0]),
]


RAGGED = [
    PairRow([2 + i] * (1 + 5 * i % 7), [20 + i] * (1 + 3 * i % 5), [40 + i] * (1 + 2 * i % 9))
    for i in range(15)
]
"""Rows whose order by query, by one side or by the longer one are all different."""


@pytest.fixture(scope="module")
def codec():
    return train_bpe(["the dog and the rent and the early train"] * 3, 300)


@pytest.fixture
def where(tmp_path):
    return StageDir(tmp_path)


class Counting:
    """Rows that went through the reference's forward."""

    def __init__(self, monkeypatch):
        self.rows = 0
        monkeypatch.setattr(dpo, "pair_logprobs", self.forward)

    def forward(self, model, pairs, *, shared):
        self.rows += len(pairs)
        return pair_logprobs(model, pairs, shared=shared)


@pytest.fixture
def kept(stage_context, codec, where, tiny_causal, monkeypatch):
    """`kept(rows=ROWS, seed=1, codec=codec)`: the rows with log-probs, and how many were new."""

    def run(rows=ROWS, seed=1, codec=codec, topology=None, place=where, earlier=()):
        cfg = DPOConfig(ref_logprobs="cached", batch={"batch_size": 2, "micro_batch_size": 2})
        ctx = stage_context(codec=codec, topology=topology, dpo=cfg)
        counting = Counting(monkeypatch)
        reference = tiny_causal(seed).double()
        found = dpo.with_reference(reference, rows, place, ctx, cfg, earlier)
        return [row.ref_logprobs for row in found], counting.rows

    return run


def expected(model, rows):
    found = []
    for row in rows:
        chosen, rejected = pair_logprobs(model.double(), pair_batch([row], pad_id=1)).tolist()
        found.append((chosen, rejected))
    return found


def near(found, rows, model):
    for ours, theirs in zip(found, expected(model, rows), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)


def test_computed_once_and_then_kept(kept, tiny_causal):
    first, new = kept()
    assert new == len(ROWS)
    near(first, ROWS, tiny_causal(1))
    again, new = kept()
    assert new == 0
    assert again == first
    # Another order, with a margin: the same pairs, each at its row.
    turned, new = kept([row._replace(margin=2.0) for row in reversed(ROWS)])
    assert (turned, new) == (first[::-1], 0)


def test_every_number_stands_at_its_pair(kept, tiny_causal):
    found, new = kept(RAGGED)
    assert new == len(RAGGED)
    near(found, RAGGED, tiny_causal(1))
    near(kept(RAGGED[::-1])[0], RAGGED[::-1], tiny_causal(1))


def test_another_references_are_never_used(kept, where, tiny_causal):
    kept(seed=1)
    found, new = kept(seed=2)
    assert new == len(ROWS)
    near(found, ROWS, tiny_causal(2))
    assert "damaged" not in where.journal_path.read_text()


def test_other_pairs_are_computed_and_the_rest_is_kept(kept, tiny_causal):
    kept(ROWS[:2])
    changed = [ROWS[0], ROWS[1]._replace(query=[4, 7]), ROWS[2]]
    found, new = kept(changed)
    assert new == 2
    near(found, changed, tiny_causal(1))


def test_a_later_stage_finds_what_an_earlier_one_kept(kept, where, tiny_causal, tmp_path):
    kept(ROWS[:2])
    before = {path: path.read_bytes() for path in where.path.rglob("*") if path.is_file()}
    later = StageDir(tmp_path / "later")
    later.path.mkdir()
    rows, new = kept(ROWS, place=later, earlier=[where])
    assert new == 2
    assert rows == kept(ROWS, place=later)[0]
    assert kept(ROWS, seed=2, place=later, earlier=[where])[1] == 4  # another reference
    damaged = bytearray(before[where.ref_logprobs])
    damaged[-1] ^= 1
    where.ref_logprobs.write_bytes(damaged)
    last = StageDir(tmp_path / "last")
    last.path.mkdir()
    assert kept(ROWS, place=last, earlier=[where])[1] == 4
    assert "damaged" in last.journal_path.read_text()  # a finished stage's journal stays as it is
    assert where.journal_path.read_bytes() == before[where.journal_path]


def test_the_sides_of_a_pair_are_not_mixed_up():
    turned = [row._replace(chosen=row.rejected, rejected=row.chosen) for row in ROWS]
    split = PairRow([4], [6, 11, 0], [12, 13, 14, 0])
    other = ROWS[0]._replace(rejected=[10, 0])
    # Two rows are each other turned.
    assert len({pair_hash(row) for row in [*ROWS, *turned, split, other]}) == 8


def test_another_tokenizer_or_rule_is_another_text(codec, kept):
    kept()
    ruled = codec.with_rules(codec.rules.__class__(leading_space=False))
    other = train_bpe(["another text makes another tokenizer of as many tokens"] * 3, 300)
    assert len({text_hash(each) for each in (codec, ruled, other)}) == 3
    assert kept(codec=ruled)[1] == len(ROWS)


def torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def turned_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def moved_number(path):
    """Valid by itself, and with the metadata of the right file, but not what was written."""
    tensors = load_file(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    told = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    tensors["logprobs_N2"][0, 0] += 1.0
    save_file(tensors, path, metadata=told)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, turned_bit, moved_number, emptied])
def test_a_damaged_file_is_never_used(damage, kept, where, tiny_causal):
    first, _ = kept()
    damage(where.ref_logprobs)
    found, new = kept()
    assert new == len(ROWS)
    assert found == first
    assert kept()[1] == 0  # and it is mended
    assert '"event": "damaged"' in where.journal_path.read_text()


def test_a_weight_or_a_setting_makes_another_reference(tiny_causal):
    plain, moved, set_otherwise = (tiny_causal(1) for _ in range(3))
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1e-3
    set_otherwise.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    hashes = [model_hash(model) for model in (plain, tiny_causal(1), moved, set_otherwise)]
    assert hashes[0] == hashes[1]
    assert len({*hashes}) == 3
    assert model_hash(plain.double()) != hashes[0]


def test_two_processes_share_the_work(kept, in_ranks):
    alone, _ = kept()
    for found, new in in_ranks(2, lambda topology: kept(ROWS, 2, topology=topology)):
        assert found != alone
        assert new == 2


# --- in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rpo_alpha": 1.0},  # published code used precomputed numbers only with this
        {"loss_type": "aot_pair"},
        {"loss_type": "bco_pair"},
        {"loss_type": "kto"},
        {"loss_type": "ipo", "ipo_length": "mean"},
    ],
)
def test_cached_and_online_come_to_the_same(settings, stage_context, codec, tiny_causal, tmp_path):
    found = []
    for how in ("online", "cached"):
        cfg = DPOConfig(
            ref_logprobs=how,
            batch={"batch_size": 4, "micro_batch_size": 2},
            optim={"learning_rate": 1e-3},
            epochs=3,
            **settings,
        )
        ctx = stage_context(codec=codec, dpo=cfg)
        policy, reference = tiny_causal(0).double(), tiny_causal(1).double()
        fixed = model_hash(reference)
        where = StageDir(tmp_path / how)
        where.path.mkdir()
        dpo.train(policy, reference.requires_grad_(False), ROWS, where, ctx, cfg, name="dpo")
        assert model_hash(reference) == fixed  # the reference stays what it was
        assert where.ref_logprobs.is_file() == (how == "cached")
        losses = [row["metrics"]["loss/train"] for row in where.journal_rows()]
        found.append((losses, torch.cat([p.detach().flatten() for p in policy.parameters()])))
    assert len(found[0][0]) == 3
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-10)


def test_a_resumed_run_reads_them(stage_context, codec, tiny_causal, where, monkeypatch):
    cfg = DPOConfig(ref_logprobs="cached", batch={"batch_size": 2, "micro_batch_size": 2})
    ctx = stage_context(codec=codec, dpo=cfg)
    counting = Counting(monkeypatch)
    rows = []
    for _ in range(2):
        policy, reference = tiny_causal(0), tiny_causal(1).requires_grad_(False)
        counting.rows = 0
        dpo.train(policy, reference, ROWS, where, ctx, cfg, name="dpo")
        rows.append(counting.rows)
    # Two steps of the policy over four pairs; four pairs of the reference, the first time alone.
    assert rows == [8, 4]


def test_no_reference_is_run_where_the_loss_has_none(stage_context, codec, tiny_causal, where):
    cfg = DPOConfig(loss_type="simpo", batch={"batch_size": 2, "micro_batch_size": 2})
    ctx = stage_context(codec=codec, dpo=cfg)
    dpo.train(tiny_causal(0), None, ROWS, where, ctx, cfg, name="dpo")
    assert len(list(where.journal_rows())) == 2
