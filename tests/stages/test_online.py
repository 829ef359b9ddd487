"""The online loop: what each round reads and leaves, what a changed setting does anew, and resume.

One run of two rounds serves most tests; those that go on with it work on copies.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from nplus.config import OnlineConfig
from nplus.config.online import Source, Step, source_of, step_of
from nplus.data.collate import prompt_batch
from nplus.records import Comparison, InputError, Sample, read_records
from nplus.runs.ledger import query, read_ledger
from nplus.runs.pieces import read_pieces
from nplus.seeding import uniforms
from nplus.stages import dpo
from nplus.stages.context import Context
from nplus.stages.online import common, pair, steps, train
from nplus.stages.scorers import RewardScorer


def ledgers(root):
    return [row for path in root.ledgers() for row in read_ledger(path)]


def files(root, name):
    where = root.stages()[name].path
    return {
        path.relative_to(where): path.read_bytes()
        for path in sorted(where.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".jsonl", ".parquet")
        if path.name not in ("journal.jsonl",)
    }


# --- names ---------------------------------------------------------------------------------------


def test_steps_have_names():
    assert step_of("round12_pair") == Step(12, "pair")
    assert Step(3, "train").name == "round3_train"
    assert [step_of(name) for name in ("round_pair", "round1_", "pair", "round1_pairs")] == [
        None
    ] * 4


@pytest.mark.parametrize("text", ["current", "current@0", "current@-1", "other@1", "sft@x", "@1"])
def test_a_source_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="POLICY@TEMPERATURE"):
        source_of(text)


@pytest.mark.parametrize(
    ("policy", "round", "after"),
    [("current", 1, 0), ("current", 3, 2), ("previous", 1, 0), ("previous", 3, 1), ("sft", 3, 0)],
)
def test_who_writes(policy, round, after):
    assert Source(policy, 1.0).after(round) == after


# --- what a step reads --------------------------------------------------------------------------


def test_the_reference_is_sft_in_every_round(loop_config):
    """The published scripts passed the last round's policy instead (spec trap)."""
    for number in (1, 2):
        assert "sft" in steps.inputs_of(Step(number, "train"), loop_config())
    moving = steps.inputs_of(Step(2, "train"), loop_config(reference="previous"))
    assert "sft" not in moving
    assert "round1_train" in moving


def test_the_reference_s_weights_are_those_of_sft(looped, loop_config, monkeypatch, tmp_path):
    """And of the policy's precision: the published scripts trained in float16 against a bfloat16
    reference (spec trap)."""
    from nplus.stages.online import train

    given = []
    monkeypatch.setattr(train.dpo, "train", lambda *args, **_: given.append(args) or {})
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    monkeypatch.setattr(ctx, "keep", lambda *_: None)
    train.run(looped.stages()["round2_train"], ctx, 2)
    (policy, reference, *_), *_ = given
    for model, stage in ((policy, "round1_train"), (reference, "sft")):
        for name, weight in ctx.policy(stage).state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)
    dtypes = {weight.dtype for model in (policy, reference) for weight in model.parameters()}
    assert dtypes == {torch.float32}


def test_the_defaults_are_the_papers():
    """Section 4 and table 7 of arXiv 2405.07863; the published scripts have one temperature, no
    warm-up, a moving reference, no earlier pairs and no choice by validation (spec traps)."""
    cfg = OnlineConfig()
    assert (cfg.rounds, cfg.prompts, cfg.samples, cfg.response_length) == (3, 20_000, 8, 2048)
    assert [(source.policy, source.temperature) for source in cfg.sources] == [
        ("current", 1.0),
        ("current", 0.7),
    ]
    assert (cfg.reference, cfg.init, cfg.history) == ("sft", "previous", "accumulate")
    assert (cfg.pairing, cfg.choose, cfg.length_penalty) == ("best_worst", "best", 0.0)
    train = cfg.train
    assert (train.loss_type, train.beta, train.epochs) == ("sigmoid", 0.1, 2)
    assert (train.optim.learning_rate, train.optim.warmup_ratio) == (5e-7, 0.03)
    assert (train.optim.lr_scheduler_type, train.batch.batch_size) == ("cosine", 128)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ("accumulate", {"round1_pair", "round2_pair"}),
        ("fresh", {"round2_pair"}),
        ("offline-mix", {"label", "round1_pair", "round2_pair"}),
    ],
)
def test_history(loop_config, history, expected):
    found = set(steps.inputs_of(Step(2, "train"), loop_config(history=history)))
    assert found - {"data", "sft", "round1_train"} == expected


def test_training_begins_at_the_round_before_or_at_sft(loop_config):
    assert "round1_train" in steps.inputs_of(Step(2, "train"), loop_config())
    assert "round1_train" not in steps.inputs_of(Step(2, "train"), loop_config(init="sft"))


def test_a_mix_of_checkpoints_reads_them(loop_config):
    config = loop_config(draw=("current@1.0", "previous@1.0"), rounds=3)
    assert {"round2_train", "round1_train"} <= set(steps.inputs_of(Step(3, "sample"), config))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 5}, "multiple of 2"),
        ({"pairing": "across", "draw": ("current@1.0",)}, "two against each other"),
        ({"pairing": "thompson"}, "scorer=ensemble"),
        ({"scorer": "ensemble"}, "reward.members"),
        ({"aggregate": "min"}, "aggregate=min with scorer=reward: nothing reads it"),
        ({"length_unit": "tokens"}, "length_unit=tokens with length_penalty=0: nothing reads it"),
        ({"offline_pairs": 3}, "offline-mix"),
        ({"pairing": "knockout", "length_penalty": 0.1}, "whatever their scores"),
        ({"pairing": "knockout", "missing_eos_penalty": 1.0}, "set missing_eos_penalty=0"),
        (
            {"pairing": "knockout", "mask_truncated_completions": True},
            "set mask_truncated_completions=False",
        ),
        ({"pairing": "knockout", "train": {"loss_type": "soft_kl"}}, "a match knows a probab"),
        ({"train": {"max_rows": 4}}, "trains on all its pairs"),
        ({"draw": ("current@1.0", "current@1.0")}, "given twice"),
        ({"response_length": 20}, "online.response_length"),
    ],
)
def test_contradictions_are_refused(loop_config, changed, message):
    with pytest.raises(ValueError, match=message):
        loop_config(**changed)


# --- rounds ---------------------------------------------------------------------------------------


def test_prompts_are_fresh_while_there_are_any(loop_config, looped):
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    ids = [[post.id for post in common.prompts_of(ctx, number)] for number in (1, 2, 3, 4, 5)]
    assert len({*ids[0], *ids[1], *ids[2], *ids[3]}) == 32  # all training posts, each once
    assert len(set(ids[4])) == 8


def test_more_prompts_than_posts(loop_config, looped):
    ctx = Context(loop_config(prompts=33), torch.device("cpu"), None, looped.stages())
    with pytest.raises(InputError, match=r"online\.prompts=33: there are 32"):
        common.prompts_of(ctx, 1)


def test_every_response_is_in_the_ledger(looped):
    rows = ledgers(looped)
    assert [row.round for row in rows] == [1] * 8 + [2] * 8
    assert {len(row.responses) for row in rows} == {4}
    assert {row.policies for row in rows} == {("sft",) * 4, ("round1",) * 4}
    assert {row.temperatures for row in rows} == {(1.0, 1.0, 0.7, 0.7)}
    assert len({seed for row in rows for seed in row.seeds}) == 64


def test_a_seed_of_the_ledger_is_that_of_the_noise(looped):
    """The noise of a sample, from the key in the ledger alone, is what `seeding` draws by name."""
    row = ledgers(looped)[0]
    key = np.frombuffer(bytes.fromhex(row.seeds[1]), dtype="<u8")
    raw = np.random.Philox(key=key).random_raw(5)
    expected = uniforms(1, "round 1 current@1.0", row.prompt, 1, n=5)
    np.testing.assert_array_equal(((raw >> np.uint64(12)) + 0.5) / 2.0**52, expected)


def test_one_process_needs_no_process_group(looped):
    """The published scoring gathers over a group and fails without one (spec trap)."""
    assert not torch.distributed.is_initialized()
    assert len(ledgers(looped)) == 16


def test_scores_are_the_reward_models(loop_config, looped):
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    model = ctx.scalar(ctx.dirs["reward"].model).eval()
    row = ledgers(looped)[-1]
    samples = [Sample(row.prompt, row.query, text) for text in row.responses]
    found = RewardScorer(model, ctx.codec, size=1).score(samples)
    assert row.scores == pytest.approx(found, abs=2e-2)  # one row at a time, in bfloat16


def test_pairs_are_best_and_worst_of_the_ledger(looped):
    for number in (1, 2):
        rows = [row for row in ledgers(looped) if row.round == number and not row.reason]
        kept = read_records(looped.stages()[f"round{number}_pair"].comparisons, Comparison)
        assert len(kept) == len(rows) > 0
        for row, found in zip(rows, kept, strict=True):
            assert row.scores[row.chosen] == max(row.scores)
            assert row.scores[row.rejected] == min(row.scores)
            assert (found.chosen, found.rejected) == (
                row.responses[row.chosen],
                row.responses[row.rejected],
            )
            assert found.ended == (row.ended[row.chosen], row.ended[row.rejected])


@pytest.mark.parametrize("field", [(0, 1, 3), (1, 2), (2,), ()])
def test_cut_off_responses_are_left_out_of_pairs(looped, loop_config, field):
    cfg = loop_config(mask_truncated_completions=True).online
    stages = looped.stages()
    drawn = read_pieces(stages["round1_sample"].responses)
    scored = read_pieces(stages["round1_score"].scores)
    ended = [i in field for i in range(4)]
    for found, scores in zip(drawn, scored, strict=True):
        row = pair.ledger_row({**found, **scores, "ended": ended}, cfg, 1, 1, "")
        assert (row.reason == "truncated") == (len(field) < 2)
        if not row.reason:
            assert row.scores[row.chosen] == max(row.scores[i] for i in field)
            assert row.scores[row.rejected] == min(row.scores[i] for i in field)


def test_a_round_without_an_ended_response_is_told(again, loop_config):
    with pytest.raises(InputError, match=r"\(8 truncated\).*online.response_length"):
        again(loop_config(mask_truncated_completions=True))


def test_a_cut_off_response_is_trained_on_without_eos(looped, loop_config):
    """Rejected with an EOS that it never wrote, it would teach not to end."""
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    rows = dpo.rows_of(train.pairs_of(ctx, 1), ctx, loop_config().online.train, "online.train")
    cut = 0
    for given, row in zip(train.pairs_of(ctx, 1), rows, strict=True):
        for ended, ids in zip(given.ended, (row.chosen, row.rejected), strict=True):
            assert (ids[-1] == ctx.codec.eos_id) == ended
            cut += not ended
    assert cut > 0


def test_manifest_and_views_count_the_same(looped):
    columns, rows = query(looped.ledgers(), "SELECT * FROM reward_by_round")
    by_round = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    lengths = {row[0]: row for row in query(looped.ledgers(), "SELECT * FROM length_by_round")[1]}
    for number in (1, 2):
        told = looped.stages()[f"round{number}_pair"].manifest().results
        for key in ("reward", "best", "worst", "margin"):
            assert by_round[number][key] == pytest.approx(told[key], abs=1e-12)
        assert lengths[number][1] == pytest.approx(told["tokens"])
        bias = told["reward_length_correlation"]
        assert lengths[number][5] == (None if bias is None else pytest.approx(bias, abs=1e-9))


def test_the_second_round_trains_on_the_pairs_of_both(looped):
    counts = [
        looped.stages()[f"round{number}_pair"].manifest().results["pairs"] for number in (1, 2)
    ]
    trained = looped.stages()["round2_train"].manifest().results["pairs"]
    assert trained == sum(counts)


def test_a_round_finds_the_reference_s_log_probs_of_the_rounds_before(again, loop_config):
    train = loop_config().online.train.model_dump() | {"ref_logprobs": "cached"}
    stages = again(loop_config(train=train)).stages()
    counted = []
    for number in (1, 2):
        lines = stages[f"round{number}_train"].journal_path.read_text().splitlines()
        events = [row for row in map(json.loads, lines) if row.get("event") == "ref_logprobs"]
        counted += [(row["computed"], row["kept"]) for row in events]
    first, both = (stages[f"round{n}_train"].manifest().results["pairs"] for n in (1, 2))
    assert counted == [(first, 0), (both - first, first)]


def test_the_chosen_round_is_the_policy(looped):
    found = looped.stages()["online"].manifest().results
    rates = {
        row["round"]: row["validation"]["systems"][0]["against_reference"]["rate"]
        for row in found["rounds"][1:]
    }
    assert rates[found["chosen"]] == max(rates.values())
    chosen = looped.stages()[f"round{found['chosen']}_train"].model / "model.safetensors"
    ours = looped.stages()["online"].model / "model.safetensors"
    assert ours.read_bytes() == chosen.read_bytes()


# --- what is done anew ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "kept", "anew"),
    [
        (
            {"pairing": "best_second"},
            ("round1_sample", "round1_score", "round0_validate"),
            ("round1_pair", "round1_train", "round2_sample"),
        ),
        ({"history": "fresh"}, ("round1_pair", "round2_pair"), ("round2_train",)),
        ({"choose": "last"}, ("round2_validate",), ("online",)),
        ({"samples": 2}, ("reward",), ("round1_sample",)),
    ],
)
def test_a_changed_setting_does_anew_what_hangs_on_it(
    looped, again, loop_config, changed, kept, anew
):
    if changed == {"history": "fresh"}:
        kept = ("round1_pair",)  # round 1 trains on the same pairs, under another key
    before = {name: where.path.name for name, where in looped.stages().items()}
    after = {
        name: where.path.name for name, where in again(loop_config(**changed)).stages().items()
    }
    assert [name for name in kept if before[name] != after[name]] == []
    assert [name for name in anew if before[name] == after[name]] == []


def test_fewer_samples_are_the_first_of_more(looped, again, loop_config):
    """What is drawn hangs on prompt, source and number, not on how many there are."""
    few = {row.prompt: row for row in ledgers(again(loop_config(samples=2))) if row.round == 1}
    for row in ledgers(looped):
        if row.round == 1:
            assert few[row.prompt].seeds == (row.seeds[0], row.seeds[2])
            assert few[row.prompt].responses == (row.responses[0], row.responses[2])


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:-1],
        lambda text: b"",
        lambda text: text.replace(b"responses", b"responsez", 1),
        lambda text: text + b'{"id": "torn',
    ],
    ids=["half", "no last newline", "nothing", "a damaged line", "a torn line"],
)
@pytest.mark.parametrize("step", ["round1_sample", "round1_score"])
def test_a_killed_step_goes_on_after_its_last_whole_piece(
    looped, again, loop_config, tmp_path, step, damage
):
    out = tmp_path / "again"
    shutil.copytree(looped.path, out)
    name = looped.stages()[step].path.name
    (out / name / "manifest.json").unlink()
    for path in (out / name).glob("*.jsonl"):
        if path.name in ("responses.jsonl", "scores.jsonl"):
            path.write_bytes(damage(path.read_bytes()))
    root = again(loop_config())
    assert files(root, step) == files(looped, step)


def test_pieces_that_are_done_are_not_done_again(looped, again, loop_config, tmp_path, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(looped.path, out)
    where = out / looped.stages()["round1_sample"].path.name
    (where / "manifest.json").unlink()
    lines = (where / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (where / "responses.jsonl").write_bytes(b"".join(lines[:5]))  # a piece of three, and a torn one
    seen = []
    from nplus.stages.online import sample

    original = sample.draw_several

    def counted(model, prompts, *args, **options):
        seen.extend(post.id for post in prompts)
        return original(model, prompts, *args, **options)

    monkeypatch.setattr(sample, "draw_several", counted)
    again(loop_config())
    redone = [json.loads(line)["id"] for line in lines[3:]]
    assert sorted(seen) == sorted(redone * 2)  # once a source
    assert (where / "responses.jsonl").read_bytes() == b"".join(lines)


def test_a_finished_file_that_was_damaged_is_told(looped, again, loop_config, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(looped.path, out)
    path = out / looped.stages()["round1_sample"].path.name / "responses.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(InputError, match=r"responses\.jsonl"):
        again(loop_config(length_penalty=0.01))


def test_samples_without_scores_are_told(looped, tmp_path, loop_config):
    """Another number of samples or prompts is an error, not an empty round (spec trap)."""
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    stages = looped.stages()
    other = type(stages["round1_sample"])(tmp_path)
    rows = stages["round1_sample"].responses.read_bytes().splitlines(keepends=True)
    other.responses.write_bytes(b"".join(rows[:-1]))
    with pytest.raises(InputError, match="other prompts"):
        pair.run(other, ctx, other, stages["round1_score"], 1)


def test_responses_and_scores_of_another_number_are_told(
    looped, tmp_path, loop_config, monkeypatch
):
    """Three scores of four responses: an error that names the file and the prompt (spec trap)."""

    def one_less(path):
        rows = read_pieces(path)
        for row in rows:
            if "member_scores" in row:
                row["member_scores"] = [scores[:-1] for scores in row["member_scores"]]
        return rows

    monkeypatch.setattr(pair, "read_pieces", one_less)
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    stages = looped.stages()
    with pytest.raises(InputError, match=r"round1_score.*4 responses and 3 scores"):
        pair.run(tmp_path, ctx, stages["round1_sample"], stages["round1_score"], 1)


def test_a_length_penalty_selects_and_orients_in_the_ledger(again, loop_config):
    root = again(loop_config(length_penalty=50.0))
    kept = [row for row in ledgers(root) if not row.reason]
    assert kept
    for row in ledgers(root):
        expected = [s - 50.0 * n for s, n in zip(row.scores, row.characters, strict=True)]
        assert row.penalised == pytest.approx(expected)
    for row in kept:
        assert row.penalised[row.chosen] == max(row.penalised)
        assert row.penalised[row.rejected] == min(row.penalised)
        assert row.margin == pytest.approx(max(row.penalised) - min(row.penalised))
    assert any(row.scores[row.chosen] < row.scores[row.rejected] for row in kept)


# --- strategies -----------------------------------------------------------------------------------


def test_an_ensemble_scores_with_every_member(again, loop_config, road_config):
    reward = {**road_config().reward.model_dump(), "members": 2}
    root = again(loop_config(reward=reward, scorer="ensemble", pairing="bai"))
    rows = ledgers(root)
    assert {len(row.member_scores) for row in rows} == {2}
    assert rows[0].member_scores[0] != rows[0].member_scores[1]
    for row in rows:
        assert row.scores == pytest.approx(np.mean(row.member_scores, axis=0))
    assert len({hash for row in rows for hash in row.scorer_hashes}) == 2


def test_offline_pairs_are_mixed_in(again, loop_config):
    root = again(loop_config(history="offline-mix", offline_pairs=3, init="sft"))
    pairs = [root.stages()[f"round{n}_pair"].manifest().results["pairs"] for n in (1, 2)]
    trained = [root.stages()[f"round{n}_train"].manifest().results["pairs"] for n in (1, 2)]
    assert trained == [3 + pairs[0], 3 + sum(pairs)]


def test_nothing_left_to_train_on_is_told(again, loop_config):
    with pytest.raises(InputError, match=r"no pair is left of 8 prompts \(8 margin\)"):
        again(loop_config(min_margin=1e9))


def test_prompts_and_their_batch_agree(loop_config, looped):
    """The queries of the ledger are those that the policy was given."""
    ctx = Context(loop_config(), torch.device("cpu"), None, looped.stages())
    posts = {post.id: post for post in common.prompts_of(ctx, 1)}
    rows = read_pieces(looped.stages()["round1_sample"].responses)
    assert [posts[row["id"]].query for row in rows] == [row["query"] for row in rows]
    assert len(prompt_batch(ctx.codec, list(posts.values()))) == len(rows)
