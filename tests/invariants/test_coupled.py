"""Losses coupled across a minibatch: any micro-batch size, number of processes, and a resume."""

import math

import numpy as np
import pytest
import torch

from nplus.data.collate import PairRow, pair_batch
from nplus.runs import StageDir
from nplus.seeding import take
from nplus.stages import compute
from nplus.stages.coupling import mismatched
from nplus.stages.forwards import pair_logprobs
from nplus.stages.keeping import Keeper
from nplus.stages.trainer import Trainer

UPDATES, ROWS = 4, 8
COUPLED = ["aot", "aot_pair", "bco_pair", "kto"]
OTHERS = ["sigmoid", "simpo", "orpo", "soft_kl"]
MORE = {"rpo_alpha": 0.5, "rpo_nll": "token", "xpo_alpha": 0.1}


def plain(metrics):
    return {name: value for name, value in metrics.items() if name != "seconds"}


def run(trainer):
    found = []
    for number in range(UPDATES):
        metrics = trainer.step(number)
        found.append(plain(metrics))
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy()
    trainer.close()
    return found, weights


def assert_same(found, expected):
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-11)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", COUPLED + OTHERS)
def test_micro_batches_and_processes(kind, pair_trainer_of, in_ranks):
    expected = run(pair_trainer_of(kind, **MORE))
    for size in (1, 2, 8):
        assert_same(run(pair_trainer_of(kind, micro=size, **MORE)), expected)
    ranks = in_ranks(2, lambda topology: run(pair_trainer_of(kind, topology, micro=2, **MORE)))
    for each in ranks:
        assert_same(each, expected)
    assert (ranks[0][1] == ranks[1][1]).all()


@pytest.mark.parametrize("kind", ["aot_pair", "bco_pair"])
@pytest.mark.usefixtures("two_threads")
def test_two_processes_that_share_one_minibatch(kind, pair_trainer_of, monkeypatch):
    expected = run(pair_trainer_of(kind, compute={"side_by_side": False}))
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)
    shared = pair_trainer_of(kind, micro=2, compute={"side_by_side": True})
    shared.step(0)
    assert shared.beside is not None
    shared.close()
    assert_same(run(pair_trainer_of(kind, micro=2, compute={"side_by_side": True})), expected)


class Apart:
    """A first pass of every micro-batch for itself."""

    def __init__(self, whole):
        self.whole, self.after = whole, whole.after

    def before(self, rows, micros):
        return [one for micro in micros for one in self.whole.before(rows[:2], [micro])]


@pytest.mark.parametrize("kind", COUPLED)
def test_the_coupling_is_of_the_whole_minibatch(kind, pair_trainer_of):
    # Statistics of each micro-batch by itself are another gradient.
    trainer = pair_trainer_of(kind, micro=2)
    expected = run(pair_trainer_of(kind, micro=2))[1]
    trainer.first_pass = Apart(trainer.first_pass)
    assert abs(run(trainer)[1] - expected).max() > 1e-6


def first_rows(trainer):
    return [trainer.rows[i] for i in take(trainer.ctx.seed, "dpo", len(trainer.rows), 0, ROWS)]


def gains(trainer, reference, rows):
    batch = pair_batch(rows, pad_id=1)
    with torch.no_grad():
        return (pair_logprobs(trainer.model, batch) - pair_logprobs(reference, batch)).numpy()


def test_bcos_level_is_the_mean_of_all_rewards(pair_trainer_of):
    trainer = pair_trainer_of("bco_pair")
    reference = trainer.first_pass.reference
    seen = []
    for number in range(3):
        order = take(trainer.ctx.seed, "dpo", len(trainer.rows), number * ROWS, ROWS)
        rows = [trainer.rows[i] for i in order]
        seen.append(0.3 * gains(trainer, reference, rows))
        found = trainer.step(number)["rewards/level"]
        assert found == pytest.approx(np.concatenate(seen).mean(), rel=1e-9)


def test_ktos_level_is_the_kl_of_mismatched_pairs_and_never_negative(pair_trainer_of):
    trainer = pair_trainer_of("kto")
    rows = first_rows(trainer)
    other = [
        PairRow(row.query, after.chosen, after.rejected)
        for row, after in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    expected = 0.3 * max(0.0, gains(trainer, trainer.first_pass.reference, other).mean())
    assert trainer.step(0)["rewards/level"] == pytest.approx(expected, rel=1e-9)
    swapped = pair_trainer_of("kto")
    first_pass = swapped.first_pass
    swapped.model.load_state_dict(pair_trainer_of("kto").first_pass.reference.state_dict())
    first_pass.reference.load_state_dict(pair_trainer_of("kto").model.state_dict())
    opposite = swapped.step(0)["rewards/level"]
    assert min(expected, opposite) == 0.0
    assert max(expected, opposite) > 0.0


def test_a_mismatch_is_of_another_query():
    a, b = PairRow([1], [2], [3]), PairRow([1], [4], [5])
    c = PairRow([9], [6], [7])
    found = mismatched([a, b, c])
    assert [(row.query, row.chosen, row.rejected) for row in found] == [
        ([1], [6], [7]),
        ([1], [6], [7]),
        ([9], [2], [3]),
    ]
    assert mismatched([a, b])[0] == PairRow([1], [4], [5])


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("kind", COUPLED)
def test_a_resumed_run_is_the_same_to_the_bit(kind, pair_trainer_of, tmp_path, monkeypatch):
    shown = {"loss": "loss/train"}
    whole, broken = (StageDir(tmp_path / name) for name in ("whole", "broken"))
    for where in (whole, broken):
        where.path.mkdir()
    expected = pair_trainer_of(kind)
    expected.run(whole, save_steps=0, shown=shown)
    step = Trainer.step

    def failing(self, number, keeper=None):
        if number == 5:
            raise Broken
        return step(self, number, keeper)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", failing)
        with pytest.raises(Broken):
            pair_trainer_of(kind).run(broken, save_steps=3, shown=shown)
    resumed = pair_trainer_of(kind)
    resumed.run(broken, save_steps=3, shown=shown)
    assert resumed.total > 6
    for mine, other in zip(resumed.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    told, wanted = (
        [
            {k: v for k, v in row["metrics"].items() if k != "seconds"}
            for row in where.journal_rows()
        ]
        for where in (broken, whole)
    )
    assert told == wanted


def test_a_step_that_is_left_out_leaves_bcos_level_alone(pair_trainer_of, tmp_path):
    where = StageDir(tmp_path)
    trainer = pair_trainer_of("bco_pair")
    ctx = trainer.ctx
    keeper = Keeper(where, ctx, {}, {}, 0, 3)
    trainer.step(0)
    before = {name: x.clone() for name, x in trainer.first_pass.mean.state_dict().items()}
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    assert trainer.step(1, keeper) is None
    after = trainer.first_pass.mean.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert float(before["count"]) == 2 * ROWS
