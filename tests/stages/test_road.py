"""Every stage of one tiny run: what it leaves on disk, what it skips, and how it resumes."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nplus.data.collate import text_batch
from nplus.data.prepare import DataDir
from nplus.data.sources import load_comparisons
from nplus.models.lm import model_inputs, sequence_logits
from nplus.models.scalar import ScalarModel
from nplus.records import (
    Comparison,
    Completion,
    InputError,
    Judgement,
    Sample,
    StopError,
    read_records,
)
from nplus.runs import RunRoot, alone_in
from nplus.stages import ppo as ppo_stage
from nplus.stages import sft as sft_stage
from nplus.stages import trainer as trainer_module
from nplus.stages.context import Context
from nplus.stages.copying import CopyGateError
from nplus.stages.scorers import Gold, RewardScorer
from nplus.training.update import NonFiniteLossError

STAGES = ("data", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate")
TIMES = ("seconds", "tokens_per_second")


def numbers(tree):
    """Every number in nested results, NaN of an empty group left aside where it is documented."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "length_matched":  # NaN where no lengths overlap
                yield from numbers(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from numbers(value)
    elif isinstance(tree, int | float):
        yield tree


def journal(where):
    """`step, metrics` without what a clock says."""
    return [
        (row["step"], {k: v for k, v in row["metrics"].items() if k not in TIMES})
        for row in where.journal_rows()
    ]


def files(where):
    """Modification times of everything in a stage's folder."""
    return {p: p.stat().st_mtime_ns for p in where.path.rglob("*") if p.is_file()}


def weights(where, name="model"):
    return load_file(where.path / name / "model.safetensors")


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, to be changed."""
    return RunRoot(shutil.copytree(finished.path, tmp_path / "run"))


# --- what a run leaves --------------------------------------------------------------------------


def test_every_stage_is_complete_and_its_figures_finite(finished):
    assert tuple(finished.stages()) == STAGES
    for name, where in finished.stages().items():
        manifest = where.manifest()
        assert manifest.status == "complete", name
        assert not manifest.error
        found = list(numbers(manifest.results))
        assert found, name
        assert all(math.isfinite(x) for x in found), name


@pytest.mark.parametrize(
    ("stage", "steps"), [("pretrain", 2), ("sft", 2), ("reward", 2), ("ppo", 3)]
)
def test_journals_hold_every_step_once_and_finite(finished, stage, steps):
    rows = list(finished.stages()[stage].journal_rows())
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert all(math.isfinite(x) for x in row["metrics"].values())
        assert row["metrics"]["grad_norm"] > 0


@pytest.mark.detail("B3")
def test_the_first_update_of_ppo_is_an_identity(finished):
    # Conformance item 1, at the stage's own micro-batches.
    rows = list(finished.stages()["ppo"].journal_rows())
    first = rows[0]["metrics"]
    assert abs(first["objective/kl"]) < 1e-4
    assert abs(first["first_minibatch/ratio"] - 1) < 1e-5
    assert first["first_minibatch/clipfrac_avg"] == 0.0
    # Detail B3: linear, by hand, once per update.
    peak = 2e-4
    assert [row["metrics"]["lr"] for row in rows] == pytest.approx([peak, peak * 2 / 3, peak / 3])
    assert [row["metrics"]["episode"] for row in rows] == [4, 8, 12]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_policies_load_with_plain_transformers(finished, stage):
    where = finished.stages()[stage].model
    model, info = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    codec = DataDir(finished.stages()["data"].data).codec()
    tokenizer = AutoTokenizer.from_pretrained(where)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (codec.eos_id, codec.pad_id)
    assert model.generation_config.eos_token_id == codec.eos_id
    tokens, mask = text_batch(codec, [("POST: one\n\nTL;DR:", "Two."), ("POST:", "Three four.")])
    with torch.no_grad():
        ours = sequence_logits(model.eval(), tokens, mask)
        plain = model(input_ids=tokens, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours[mask], plain[mask], rtol=0.0, atol=1e-4)


@pytest.mark.detail("D4")
@pytest.mark.parametrize(("stage", "folder"), [("reward", "model"), ("ppo", "critic")])
def test_scalar_models_load_with_plain_transformers_and_score_alike(finished, stage, folder):
    where = finished.stages()[stage].path / folder
    plain = AutoModelForSequenceClassification.from_pretrained(where).eval()
    ours = ScalarModel.load(where).eval()
    codec = DataDir(finished.stages()["data"].data).codec()
    texts = [("POST: one\n\nTL;DR:", "Two."), ("POST:", "Three four five."), ("POST: six", "")]
    tokens, mask = text_batch(codec, texts)
    with torch.no_grad():
        # transformers reads the last token that is not PAD, the EOS (Detail D4).
        expected = plain(**model_inputs(plain, tokens, mask) | {"input_ids": tokens}).logits[:, 0]
        found = ours.scores(tokens, mask)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)
    samples = [Sample(str(i), query, text) for i, (query, text) in enumerate(texts)]
    scored = RewardScorer(ours, codec, size=2).score(samples)
    assert scored == pytest.approx(expected.tolist(), abs=1e-4)


def test_demonstrations_average_zero_under_the_saved_reward_model(finished):
    # Conformance item 9, after save and load.
    stages = finished.stages()
    data = DataDir(stages["data"].data)
    scorer = RewardScorer(ScalarModel.load(stages["reward"].model).eval(), data.codec())
    posts = data.demonstrations("train")[:16]
    scores = scorer.score([Sample(d.id, d.query, d.response) for d in posts])
    assert abs(sum(scores) / len(scores)) < 1e-3
    assert stages["reward"].manifest().results["shift"] != 0


def test_samples_cover_prompts_and_temperatures(finished):
    stages = finished.stages()
    data = DataDir(stages["data"].data)
    rows = read_records(stages["sample"].completions, Completion)
    prompts = data.demonstrations("train")[-8:] + data.demonstrations("valid")[:4]
    expected = {(p.id, t) for p in prompts for t in (0.7, 1.0)}
    assert {(row.id, row.temperature) for row in rows} == expected
    assert len(rows) == len(expected)
    queries = {p.id: p.query for p in prompts}
    assert all(row.query == queries[row.id] for row in rows)
    assert all(0 < row.tokens <= 48 for row in rows)
    assert all(row.policy == f"sft_t{row.temperature:g}" for row in rows)


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.detail("A6")
def test_labels_obey_the_public_schema(finished):
    # Section 7.2 of the details.
    where = finished.stages()["label"]
    lines = (where.path / "comparisons_openai.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16 + 12
    for row in map(json.loads, lines):
        assert set(row) == {"info", "summaries", "choice", "worker", "batch", "split", "extra"}
        assert set(row["info"]) == {"id", "post", "title", "subreddit", "site", "article"}
        assert row["info"]["article"] is None
        assert row["info"]["site"] is None
        assert all(isinstance(row["info"][k], str) for k in ("id", "post", "title", "subreddit"))
        assert not row["info"]["subreddit"].startswith("r/")
        assert len(row["summaries"]) == 2
        for side in row["summaries"]:
            assert set(side) == {"text", "policy", "note"}
            assert side["text"].startswith(" ")  # Detail A6: exactly one space
            assert not side["text"].startswith("  ")
            assert side["note"] is None
        assert row["choice"] in (0, 1)
        assert row["split"] in ("train", "valid1", "valid2")
        assert set(row["extra"]) == {"confidence"}
        assert row["extra"]["confidence"] is None or 1 <= row["extra"]["confidence"] <= 9
        assert row["worker"]
        assert row["batch"]


def test_the_public_loader_reads_the_labels_back(finished):
    where = finished.stages()["label"]
    records = read_records(where.comparisons, Comparison)
    loaded = load_comparisons(where.path / "comparisons_openai.jsonl")
    names = ("id", "policies", "choice", "worker", "batch", "split", "confidence")
    assert [[getattr(row, n) for n in names] for row in loaded] == [
        [getattr(row, n) for n in names] for row in records
    ]
    # A response is its text without the outer spaces, in both.
    assert [tuple(t.strip() for t in row.responses) for row in loaded] == [
        tuple(t.strip() for t in row.responses) for row in records
    ]
    assert all(
        row.template.format(**row.fields) == record.query
        for row, record in zip(loaded, records, strict=True)
    )


def test_training_labels_are_of_training_posts(finished):
    stages = finished.stages()
    data = DataDir(stages["data"].data)
    ids = {s: {d.id for d in data.demonstrations(s)} for s in ("train", "valid", "test")}
    for row in read_records(stages["label"].comparisons, Comparison):
        assert row.id in ids["train" if row.split == "train" else "valid"]
        assert row.id not in ids["test"]
        assert row.responses[0] != row.responses[1] or row.policies[0] != row.policies[1]


def test_a_comparison_knows_which_of_its_samples_were_cut_off(finished):
    stages = finished.stages()
    drawn = {}
    for row in read_records(stages["sample"].completions, Completion):
        drawn.setdefault((row.id, row.policy, row.response), set()).add(row.has_eos)
    cut = 0
    for row in read_records(stages["label"].comparisons, Comparison):
        for policy, text, ended in zip(row.policies, row.responses, row.ended, strict=True):
            assert ended in drawn.get((row.id, policy, text), {True})
            cut += not ended
    assert cut > 0


# --- the verdict --------------------------------------------------------------------------------


def test_the_verdict_counts_its_judgements(finished):
    where = finished.stages()["evaluate"]
    results = where.manifest().results
    rows = read_records(where.judgements, Judgement)
    data = DataDir(finished.stages()["data"].data)
    posts = {s: data.demonstrations(s)[:4] for s in ("test", "test_heldout")}
    assert len(rows) == 3 * sum(map(len, posts.values()))
    facts = Gold(data.facts_path).sheets
    marks = {post.id: facts[post.id].heldout for post in posts["test_heldout"]}
    members = {
        "test": {post.id for post in posts["test"]},
        "unseen wordings": {i for i, m in marks.items() if any("wording" in x for x in m)},
        "unseen values": {i for i, m in marks.items() if any("wording" not in x for x in m)},
    }
    assert set(marks) == members["unseen values"] | members["unseen wordings"]
    assert {table["split"] for table in results["win_rates"]} == {
        k for k, v in members.items() if v
    }
    for table in results["win_rates"]:
        name = f"{table['policy']}@{table['temperature']:g}"
        scores = [
            (row.score > row.opponent_score) + (row.score == row.opponent_score) / 2
            for row in rows
            if (row.policy, row.opponent) == (name, table["opponent"])
            and row.id in members[table["split"]]
        ]
        assert table["n"] == len(scores) == len(members[table["split"]])
        assert table["rate"] == pytest.approx(sum(scores) / len(scores))
    assert results["verdict"].startswith("Against the references SFT wins ")


@pytest.mark.detail("H1")
def test_the_verdict_is_drawn_at_every_temperature_asked_for(
    finished, road_config, drive, tmp_path
):
    # Detail H1: each policy answers each post once at each temperature, near-greedily otherwise.
    root = tmp_path / "run"
    shutil.copytree(finished.path, root)
    stages = drive(road_config(evaluate={"temperatures": (0.01, 0.7)}), root).stages()
    rows = [json.loads(line) for line in (stages["evaluate"].path / "table.jsonl").open()]
    by_heat = {
        heat: {(r["split"], r["id"]): r["ppo"] for r in rows if r["temperature"] == heat}
        for heat in (0.01, 0.7)
    }
    assert by_heat[0.01].keys() == by_heat[0.7].keys()
    assert len(rows) == 2 * len(by_heat[0.7])
    assert by_heat[0.01] != by_heat[0.7]


def test_references_beat_themselves_by_nothing(finished):
    results = finished.stages()["evaluate"].manifest().results
    references = [row for row in results["systems"] if row["policy"] == "reference"]
    assert {row["rougeL"] for row in references} == {1.0}
    assert all(row["eos_rate"] == 1.0 for row in references)


def test_the_reward_model_is_tried_on_comparisons_it_never_saw(finished):
    stages = finished.stages()
    sources = stages["evaluate"].manifest().results["reward_model"]["by_source"]
    assert [row["name"] for row in sources] == ["test", "test_heldout", "news"]
    data = DataDir(stages["data"].data)
    model = ScalarModel.load(stages["reward"].model).eval()
    for row in sources:
        raw = load_comparisons(data.comparison_files()[row["name"]])
        assert row["n"] == len(raw)
        # One text at a time, from the raw row.
        hits = 0
        for pair in raw:
            query = pair.template.format(**pair.fields).lstrip()
            with torch.no_grad():
                scores = [
                    float(model.scores(*text_batch(data.codec(), [(query, text)])))
                    for text in pair.responses
                ]
            hits += scores[pair.choice] > scores[1 - pair.choice]
        assert row["accuracy"] == pytest.approx(hits / len(raw))
        assert row["low"] < row["accuracy"] < row["high"] or row["accuracy"] in (0.0, 1.0)


# --- skipping and changing ----------------------------------------------------------------------


def test_a_second_run_touches_nothing(copied, road_config, drive):
    before = {name: files(where) for name, where in copied.stages().items()}
    again = drive(road_config(), copied.path)
    assert {name: files(where) for name, where in again.stages().items()} == before


def test_another_kl_coefficient_runs_ppo_and_evaluate_again(copied, road_config, drive):
    before = {name: files(where) for name, where in copied.stages().items()}
    changed = drive(road_config(ppo={"kl_coef": 0.2, "total_episodes": 4}), copied.path)
    for name, where in changed.stages().items():
        if name in ("ppo", "evaluate"):
            assert not before[name].keys() & files(where).keys(), name
            assert where.manifest().status == "complete"
        else:
            assert files(where) == before[name], name
    # The former results stay beside the new ones.
    assert all(p.stat().st_mtime_ns == t for p, t in before["ppo"].items())


def test_the_gate_stops_the_road_with_a_message(copied, road_config, drive):
    before = {name: files(where) for name, where in copied.stages().items()}
    with pytest.raises(CopyGateError, match=r"copy test failed: 0\.\d\d .*asks for 0\.90.*longer"):
        drive(road_config(sft={"copy_gate": 0.9}), copied.path)
    # The gate is no part of the stage's result: SFT is not trained again, nor lost.
    assert tuple(copied.stages()) == ("data", "pretrain", "sft")
    assert {name: files(where) for name, where in copied.stages().items()} == {
        name: before[name] for name in copied.stages()
    }
    assert tuple(drive(road_config(), copied.path).stages()) == STAGES


def test_until_stops_after_a_stage(copied, road_config, drive):
    assert tuple(drive(road_config(), copied.path, until="sft").stages()) == STAGES[:3]
    with pytest.raises(InputError, match="unknown stage 'rm'; this recipe has data, pretrain"):
        drive(road_config(), copied.path, until="rm")


# --- sameness -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(finished, road_config, drive, tmp_path_factory):
    """The same run from nothing, in a process that has drawn random numbers in between."""
    torch.rand(7)
    return drive(road_config(), tmp_path_factory.mktemp("again") / "run")


def test_the_same_seed_gives_the_same_run(finished, repeated):
    for name, where in finished.stages().items():
        other = repeated.stages()[name]
        assert other.path.name == where.path.name
        assert journal(other) == journal(where), name
        results = [dict(w.manifest().results) for w in (where, other)]
        for found in results:
            for key in TIMES:
                found.pop(key, None)
        assert json.dumps(results[0]) == json.dumps(results[1]), name
    for name in ("pretrain", "sft", "reward", "ppo"):
        assert_same_weights(weights(finished.stages()[name]), weights(repeated.stages()[name]))


def test_another_seed_gives_another_run(finished, road_config, drive, tmp_path):
    other = drive(road_config(seed=2), tmp_path / "run", until="sft")
    found = [journal(root.stages()["sft"]) for root in (finished, other)]
    assert found[0] != found[1]


class PowerCutError(Exception):
    """Stands for a power cut."""


def break_off_after(monkeypatch, module, calls):
    """The module's next `update` after `calls` of them fails."""
    original, left = module.update, [calls]

    def update(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise PowerCutError("power cut")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "update", update)


def drop(root, *names):
    for name in names:
        shutil.rmtree(root.stages()[name].path)


def test_ppo_resumes_bit_for_bit(copied, finished, road_config, drive, monkeypatch):
    # Two optimiser steps per update: broken off within the second, after the first was saved.
    drop(copied, "ppo")
    with monkeypatch.context() as patch:
        break_off_after(patch, ppo_stage, 3)
        with pytest.raises(PowerCutError):
            drive(road_config(), copied.path)
    where = copied.stages()["ppo"]
    assert where.manifest().status == "failed"
    assert "power cut" in where.manifest().error
    assert [p.name for p in where.checkpoints.iterdir()] == ["step_000001"]
    resumed = drive(road_config(), copied.path).stages()["ppo"]
    whole = finished.stages()["ppo"]
    assert "resumed" in resumed.journal_path.read_text()
    assert_same_weights(weights(resumed), weights(whole))
    assert_same_weights(weights(resumed, "critic"), weights(whole, "critic"))
    assert journal(resumed) == journal(whole)
    assert resumed.manifest().results == whole.manifest().results


def test_without_a_checkpoint_a_stage_starts_again(
    copied, finished, road_config, drive, monkeypatch
):
    drop(copied, "sft")
    with monkeypatch.context() as patch:
        break_off_after(patch, trainer_module, 1)
        with pytest.raises(PowerCutError):
            drive(road_config(), copied.path, until="sft")
    again = drive(road_config(), copied.path, until="sft").stages()["sft"]
    whole = finished.stages()["sft"]
    assert_same_weights(weights(again), weights(whole))
    assert journal(again) == journal(whole)  # no step of the broken attempt is left in the curve


def test_a_stage_broken_off_after_saving_its_model_runs_again(
    copied, finished, road_config, drive, monkeypatch
):
    drop(copied, "sft")

    def power_cut(*args):
        raise PowerCutError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(sft_stage, "copy_test", power_cut)
        with pytest.raises(PowerCutError):
            drive(road_config(), copied.path, until="sft")
    again = drive(road_config(), copied.path, until="sft").stages()["sft"]
    assert_same_weights(weights(again), weights(finished.stages()["sft"]))


def test_ppo_without_a_single_step_leaves_no_policy(copied, road_config, drive, monkeypatch):
    def spoil(*_, **__):
        raise NonFiniteLossError("loss is nan")

    monkeypatch.setattr(ppo_stage, "update", spoil)
    config = road_config(ppo={"total_episodes": 4, "optim": {"max_skips": 99}})
    with pytest.raises(StopError, match=r"every step of the stage.*Lower the learning rate"):
        drive(config, copied.path)
    assert not copied.stages()["ppo"].model.exists()


@pytest.mark.parametrize("point", [(Context, "keep"), (ppo_stage, "verdict")])
def test_ppo_broken_off_after_its_last_checkpoint_runs_to_the_same_end(
    point, copied, finished, road_config, drive, monkeypatch
):
    drop(copied, "ppo")

    def power_cut(*args):
        raise PowerCutError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(*point, power_cut)
        with pytest.raises(PowerCutError):
            drive(road_config(), copied.path)
    resumed, whole = (
        root.stages()["ppo"] for root in (drive(road_config(), copied.path), finished)
    )
    assert_same_weights(weights(resumed), weights(whole))
    assert journal(resumed) == journal(whole)
    assert resumed.manifest().results == whole.manifest().results


def test_scores_do_not_depend_on_sharing_the_query(finished):
    stages = finished.stages()
    codec = DataDir(stages["data"].data).codec()
    model = ScalarModel.load(stages["reward"].model).eval()
    comparisons = read_records(stages["label"].comparisons, Comparison)
    apart = RewardScorer(model, codec, size=5).pairs(comparisons)
    together = RewardScorer(model, codec, size=5, shared=True).pairs(comparisons)
    assert len(apart) == len(comparisons)
    for one, other, row in zip(apart, together, comparisons, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
        alone = model.scores(*text_batch(codec, [(row.query, row.responses[1])]))
        assert one[1] == pytest.approx(float(alone.detach()), abs=1e-4)


def test_two_runs_in_one_directory_are_refused(finished, road_config, drive, monkeypatch):
    monkeypatch.setattr("nplus.runs.lock.PATIENCE", 0.1)
    with alone_in(finished.path), pytest.raises(InputError, match="another nplus process"):
        drive(road_config(), finished.path)
