"""The verdict's analyses on a tiny run: every figure again, from what the run left on disk."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import GPTNeoXForCausalLM

from nplus.config import SamplingConfig
from nplus.evaluation.tokens import kind
from nplus.glossary import METRICS
from nplus.models.scalar import ScalarModel
from nplus.models.toy import toy_config
from nplus.records import (
    Comparison,
    Demonstration,
    InputError,
    Judgement,
    Margin,
    StopError,
    Verdict,
    read_records,
    write_records,
)
from nplus.report import write_report
from nplus.runs import RunRoot
from nplus.stages.against import compare, context
from nplus.stages.drawing import Drawn, draw
from nplus.stages.matches import pairings, play, verdict_line
from nplus.stages.reward_report import reward_model_report, stage_margins
from nplus.stages.scorers import RewardScorer
from nplus.stages.systems import Judges, System, describe, judges_of
from nplus.stages.token_view import compare_tokens, name_of, pieces, token_view


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def with_dpo(finished, road_config, drive, tmp_path_factory):
    """The finished run, gone on with DPO as one more policy."""
    path = tmp_path_factory.mktemp("dpo") / "run"
    root = RunRoot(shutil.copytree(finished.path, path))
    batch = {"batch_size": 8, "micro_batch_size": 4}
    return drive(road_config(dpo={"batch": batch}), root.path)


@pytest.fixture(scope="module")
def results(with_dpo):
    return with_dpo.stages()["evaluate"].manifest().results


@pytest.fixture(scope="module")
def ctx(with_dpo):
    return context(with_dpo, Console(quiet=True))


@pytest.fixture
def copied(finished, tmp_path):
    return RunRoot(shutil.copytree(finished.path, tmp_path / "run"))


# --- the reward model ---------------------------------------------------------------------------


@pytest.mark.detail("D6", "D8")
def test_margins_on_disk_are_the_models_and_make_the_accuracies(finished, results):
    stages = finished.stages()
    kept = read_records(stages["reward"].margins, Margin)
    held = [
        row for row in read_records(stages["label"].comparisons, Comparison) if row.split != "train"
    ]
    assert [(row.id, row.policies, row.batch) for row in kept] == [
        (row.id, row.policies, row.batch) for row in held
    ]
    ctx = context(finished, Console(quiet=True))
    model = ScalarModel.load(stages["reward"].model).eval()
    margins = RewardScorer(model, ctx.codec, size=3).margins(held)
    assert [row.margin for row in kept] == pytest.approx(margins, abs=1e-4)
    report = stages["reward"].manifest().results["validation"]
    assert report["accuracy"]["rate"] == sum(row.margin > 0 for row in kept) / len(kept)
    for name in ("by_split", "by_batch", "by_policies", "by_confidence"):
        assert report[name]
        assert all(0 <= g["low"] <= g["accuracy"] <= g["high"] <= 1 for g in report[name])
    # Detail D8: every comparison is in one bin or outside.
    kinds = results["reward_model"]["calibration"]
    assert [row["name"] for row in kinds] == ["validation", "test", "test_heldout", "news"]
    for row in kinds:
        assert sum(part["n"] for part in row["bins"]) + row["outside"] == row["n"] > 0
    outside = Counter(row.source for row in read_records(stages["evaluate"].margins, Margin))
    assert outside == {row["name"]: row["n"] for row in kinds[1:]}


@pytest.mark.detail("D7")
def test_agreement_again_from_the_table(with_dpo, results):
    table = rows_of(with_dpo.stages()["evaluate"].table)
    checked = 0
    for row in results["agreement"]:
        if row["split"] != "test":
            continue
        ours, theirs = row["policy"], row["opponent"]
        alike = 0
        for post in (r for r in table if (r["split"], r["temperature"]) == ("test", 0.7)):
            prefers_ours = post["scores"][ours] > post["scores"][theirs]
            prefers_theirs = post["scores"][ours] < post["scores"][theirs]
            alike += prefers_ours and post["proxy"][ours] > post["proxy"][theirs]
            alike += prefers_theirs and post["proxy"][ours] < post["proxy"][theirs]
        assert row["rate"] == alike / row["n"]
        assert row["n"] == 4
        checked += 1
    assert checked == 5


@pytest.mark.parametrize("policy", ["ppo", "dpo"])
def test_kl_is_that_of_each_response_read_alone(with_dpo, results, ctx, policy):
    """Against plain transformers: one unpadded sequence at a time, both sides tempered."""
    [row] = [
        r
        for r in results["systems"]
        if (r["policy"], r["split"], r["temperature"]) == (policy, "test", 0.7)
    ]
    posts = ctx.data.demonstrations("test")[: row["n"]]
    stages = with_dpo.stages()
    tuned, base = (GPTNeoXForCausalLM.from_pretrained(stages[x].model) for x in (policy, "sft"))
    length = ctx.config.evaluate.response_length
    sampling = SamplingConfig(temperature=0.7, response_length=length)
    drawn = draw(tuned, posts, sampling, ctx, name="evaluate 0.7", size=2)
    expected = []
    for post, response in zip(posts, drawn, strict=True):
        query, answer = ctx.codec.encode_query(post.query), list(response.tokens)
        ids = torch.tensor([[*query, *answer]])
        with torch.no_grad():
            logprobs = [
                (model(ids).logits[0, len(query) - 1 : -1] / 0.7).log_softmax(-1)
                for model in (tuned, base)
            ]
        at = torch.arange(len(answer))
        expected.append(float((logprobs[0] - logprobs[1])[at, torch.tensor(answer)].sum()))
    assert row["kl"]["value"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert abs(row["kl"]["value"]) > 1e-4
    assert row["kl"]["low"] < row["kl"]["value"] < row["kl"]["high"]


def test_no_kl_where_it_means_nothing(results):
    for row in results["systems"]:
        tuned = row["policy"] in ("ppo", "dpo") and row["temperature"] >= 0.1
        assert (row["kl"] is not None) == tuned


@pytest.mark.detail("A7")
def test_a_response_keeps_its_eos_where_pad_is_eos(with_dpo, ctx):
    """So its length, and KL, are counted as in any other run."""
    posts = ctx.data.demonstrations("test")[:4]
    model = ctx.policy("sft").eval()
    norm, head = model.gpt_neox.final_layer_norm, model.get_output_embeddings()
    with torch.no_grad():  # EOS comes soon: its logit is 4 and the others are what they were
        norm.weight[0], norm.bias[0] = 0.0, 1.0
        head.weight[:, 0] = 0.0
        head.weight[ctx.codec.eos_id, 0] = 4.0
    tokenizer = ctx.config.tokenizer.model_copy(update={"distinct_pad": False})
    alike = replace(ctx, config=ctx.config.model_copy(update={"tokenizer": tokenizer}))
    assert alike.codec.pad_id == alike.codec.eos_id
    length = ctx.config.evaluate.response_length
    sampling = SamplingConfig(temperature=1.0, response_length=length)
    usual, same = (draw(model, posts, sampling, c, name="x", size=4) for c in (ctx, alike))
    ended = [row for row in usual if row.has_eos]
    assert ended
    assert all(row.tokens[-1] == ctx.codec.eos_id for row in ended)
    assert usual == same


@pytest.mark.detail("D9")
def test_dpo_is_one_more_policy_and_its_implicit_reward_stands_beside_the_model(with_dpo, results):
    assert results["policies"] == ["sft", "ppo", "dpo"]
    pairs = [(r["policy"], r["opponent"]) for r in results["win_rates"] if r["split"] == "test"]
    assert pairs == [
        ("sft", "reference"),
        ("ppo", "reference"),
        ("dpo", "reference"),
        ("ppo", "sft"),
        ("dpo", "sft"),
    ]
    assert [row["policy"] for row in results["token_view"]] == ["ppo", "dpo"]
    assert {"dpo", "sft"} <= results["wrong_facts_dpo_minus_sft"][0].keys()
    stages = with_dpo.stages()
    hits = [
        [row.margin > 0 for row in read_records(stages[name].margins, Margin)]
        for name in ("dpo", "reward")
    ]
    implicit = results["implicit_reward"]
    assert implicit["accuracy"]["rate"] == sum(hits[0]) / len(hits[0])
    difference = implicit["minus_reward_model"]
    assert difference["value"] == pytest.approx((sum(hits[0]) - sum(hits[1])) / len(hits[0]))
    assert difference["low"] <= difference["value"] <= difference["high"]
    text = write_report(with_dpo).read_text(encoding="utf-8")
    for part in ("DPO against SFT", "DPO&#39;s implicit reward agrees", "dpo&gt;sft"):
        assert part in text.replace('value="dpo>sft"', 'value="dpo&gt;sft"'), part


def test_the_other_policies_figures_do_not_change_with_dpo(finished, results):
    alone = finished.stages()["evaluate"].manifest().results
    assert alone["policies"] == ["sft", "ppo"]
    assert alone["implicit_reward"] is None
    assert alone["win_rates"] == [r for r in results["win_rates"] if r["policy"] != "dpo"]
    assert alone["systems"] == [r for r in results["systems"] if r["policy"] != "dpo"]
    assert alone["reward_model"] == results["reward_model"]


# --- the token view -----------------------------------------------------------------------------


def network(ctx, seed):
    """A random network whose choices depend on what it reads."""
    config = toy_config("0.3M", vocab_size=ctx.codec.size, eos_id=ctx.codec.eos_id, pad_id=1)
    config.initializer_range = 0.3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).eval()


@pytest.mark.detail("H5")
def test_ranks_again_one_unpadded_prefix_at_a_time(ctx):
    posts = sorted(ctx.data.demonstrations("test"), key=lambda post: len(post.query))[::2][:3]
    responses = [
        ctx.codec.encode_response(post.response)[: 6 + 5 * at] for at, post in enumerate(posts)
    ]
    responses[0][-1] = ctx.codec.eos_id
    drawn = [Drawn("", tuple(ids), ids[-1] == ctx.codec.eos_id) for ids in responses]
    tuned, base = network(ctx, 0), network(ctx, 1)
    found = compare_tokens(tuned, base, posts, drawn, ctx)
    seen = set()
    for post, ids, tokens in zip(posts, responses, found, strict=True):
        assert len(tokens) == len(ids)
        prefix = list(ctx.codec.encode_query(post.query))
        for token, next_id in zip(tokens, ids, strict=True):
            with torch.no_grad():
                choices, ranking = (
                    model(input_ids=torch.tensor([prefix])).logits[0, -1] for model in (tuned, base)
                )
            order = ranking.argsort(descending=True).tolist()
            assert token["rank"] == order.index(int(choices.argmax())) + 1
            assert token["kind"] == kind(token["rank"], 4)
            assert token["base"] == [name_of(ctx.codec, at) for at in order[:4]]
            assert token["eos"] == (next_id == ctx.codec.eos_id)
            seen.add(token["rank"])
            prefix.append(next_id)
    assert len(seen) > 10  # the two have nothing to do with each other


@pytest.mark.detail("H5")
def test_a_policy_beside_itself_is_unchanged_everywhere(ctx):
    model = ctx.policy("sft").eval()
    posts = ctx.data.demonstrations("test")
    rows, [share] = token_view({"sft": model, "ppo": model}, posts, ctx)
    assert share["unchanged"]["rate"] == 1.0
    assert {token["rank"] for row in rows for token in row["tokens"]} == {1}


@pytest.mark.detail("H5")
def test_nothing_after_eos_is_in_the_token_view(with_dpo, results):
    rows = rows_of(with_dpo.stages()["evaluate"].token_view)
    for row in rows:
        assert not any(token["eos"] for token in row["tokens"][:-1])
        assert all(token["rank"] >= 1 for token in row["tokens"])
    for share in results["token_view"]:
        counted = sum(len(row["tokens"]) for row in rows if row["policy"] == share["policy"])
        assert share["tokens"] == counted
        assert sum(share[k]["rate"] for k in ("unchanged", "marginal", "shifted")) == (
            pytest.approx(1.0)
        )


def test_pieces_join_to_the_text_whatever_bytes_they_are_of(ctx):
    for text in ("caf\u00e9 \U0001f600 na\u00efve", "plain words."):
        ids = ctx.codec.encode_response(text)
        found = pieces(ctx.codec, ids)
        assert len(found) == len(ids)
        assert "".join(found) == f" {text}"
        assert found[-1] == ""  # EOS


def test_no_rows_asked_for_is_no_token_view(ctx):
    rows, shares = token_view({"sft": None, "ppo": None}, [], ctx)
    assert (rows, shares) == ([], [])


# --- matches ------------------------------------------------------------------------------------


def system(policy, scores, texts=None):
    n = len(scores)
    posts = [Demonstration(f"p{i}", f"Q{i}", "r", {}, "test") for i in range(n)]
    temperature = None if policy == "reference" else 0.01
    texts = texts or [f"{policy} {i}" for i in range(n)]
    empty = [[()] * n for _ in range(2)]
    return System(
        policy, temperature, "test", posts, texts, [5] * n, [True] * n, scores, scores, *empty
    )


def test_pairings_follow_the_policies_there_are():
    found = {name: system(name, [0.0]) for name in ("reference", "sft", "ppo", "dpo")}

    def names(*chosen):
        kept = {name: found[name] for name in ("reference", *chosen)}
        return [(a.policy, b.policy) for a, b in pairings(kept)]

    assert names("sft", "ppo") == [("sft", "reference"), ("ppo", "reference"), ("ppo", "sft")]
    assert names("sft", "dpo") == [("sft", "reference"), ("dpo", "reference"), ("dpo", "sft")]
    assert names("sft") == [("sft", "reference")]


def test_the_verdict_in_one_sentence_for_any_policies():
    def row(policy, opponent, rate):
        head = {"split": "test", "temperature": 0.01, "policy": policy, "opponent": opponent}
        return {**head, "rate": rate, "low": rate - 0.1, "high": rate + 0.1}

    two = [row("sft", "reference", 0.3), row("ppo", "reference", 0.6), row("ppo", "sft", 0.8)]
    assert verdict_line(two) == (
        "Against the references SFT wins 30% [20%, 40%] and PPO 60% [50%, 70%]; "
        "PPO beats SFT in 80% [70%, 90%]."
    )
    three = [*two[:2], row("dpo", "reference", 0.5), two[2], row("dpo", "sft", 0.7)]
    three.append({**row("ppo", "sft", 0.1), "temperature": 0.7})
    assert verdict_line(three) == (
        "Against the references SFT wins 30% [20%, 40%], PPO 60% [50%, 70%] and "
        "DPO 50% [40%, 60%]; PPO beats SFT in 80% [70%, 90%] and DPO 70% [60%, 80%]."
    )
    assert verdict_line(two[:1]) == "Against the references SFT wins 30% [20%, 40%]."


class Shortest:
    """Prefers the shorter text; has no answer where a text says so."""

    def compare(self, comparisons):
        return [
            Verdict(
                c.id,
                "invalid"
                if "?" in c.responses[0]
                else ("ours", "opponent")[len(c.responses[0]) > len(c.responses[1])],
            )
            for c in comparisons
        ]


def test_a_comparator_decides_in_place_of_scores_and_invalid_answers_are_apart():
    ours = system("ppo", [0.0, 0.0, 9.0, 9.0], ["a", "a", "a?", "aaaa"])
    theirs = system("sft", [5.0, 5.0, 0.0, 0.0], ["bb"] * 4)
    match = play(ours, theirs, Shortest())
    found = match.summary(10)
    assert [found[k] for k in ("wins", "losses", "n", "invalid")] == [2, 1, 3, 1]
    # The reward model (here the scores) agrees on none: it prefers the other each time.
    assert (match.agreement()["rate"], match.agreement()["n"]) == (0.0, 3)
    part = match.part("some", [2, 3]).summary(10)
    assert [part[k] for k in ("split", "losses", "n", "invalid")] == ["some", 1, 1, 1]
    assert match.part("none", [2]).summary(10)["rate"] is None
    assert play(ours, theirs).summary(10)["wins"] == 2  # by score, as without a comparator


def test_length_bins_are_as_many_as_asked(finished):
    row = finished.stages()["evaluate"].manifest().results["win_rates"][0]
    bins = row["length_matched"]["bins"]
    assert 1 <= len(bins) <= 10
    assert sum(part["n"] for part in bins) == row["n"]
    wins = sum(part["rate"] * part["n"] for part in bins)
    assert wins / row["n"] == pytest.approx(row["rate"])


class Told:
    """A reward model whose scores are these."""

    def __init__(self, *scores):
        self.scores = scores

    def score(self, samples):
        return list(self.scores)


@pytest.mark.parametrize(
    ("scores", "kl", "message"),
    [
        ((0.5, math.nan, math.inf), (), r"dpo@0\.7 on test: 2 of 3 scores are not .* reward model"),
        ((0.5, 0.1, 0.2), (1.0, math.nan, 0.0), r"dpo@0\.7 on test: 1 of 3 KLs from SFT are not"),
    ],
)
def test_scores_that_are_no_numbers_are_told_with_policy_and_count(scores, kl, message):
    posts = [Demonstration(f"p{i}", f"Q{i}", "r", {}, "test") for i in range(3)]
    drawn = [Drawn("text", (1, 0), True)] * 3
    judges = Judges(Told(*scores), None)
    with pytest.raises(StopError, match=message):
        judges.system("dpo", 0.7, "test", posts, drawn, kl)
    whole = Judges(Told(0.5, 0.1, 0.2), None).system("dpo", 0.7, "test", posts, drawn)
    assert describe(whole)["score"] == pytest.approx(0.8 / 3)


# --- the glossary -------------------------------------------------------------------------------


@pytest.mark.detail("G5")
def test_every_metric_of_every_journal_is_in_the_glossary(with_dpo):
    known = {entry.name: entry.stages for entry in METRICS}
    seen = 0
    for stage, where in with_dpo.stages().items():
        names = {name for row in where.journal_rows() for name in row["metrics"]}
        assert {name for name in names if stage not in known.get(name, ())} == set(), stage
        seen += len(names)
    assert seen > 40


# --- completions from elsewhere -----------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def every_file(root):
    return {p: p.stat().st_mtime_ns for p in root.path.rglob("*") if p.is_file()}


@pytest.mark.detail("H4")
def test_the_runs_own_completions_from_elsewhere_tie_with_themselves(copied, tmp_path):
    table = rows_of(copied.stages()["evaluate"].table)
    rows = [{"id": r["id"], "completion": f" {r['ppo']}<|endoftext|>"} for r in table[::2]]
    rows += [{"query": r["query"], "summary": r["ppo"]} for r in table[1::2]]
    rows.append({"id": "nobody", "response": "x"})
    file, before = write(tmp_path / "ppo.jsonl", rows), every_file(copied)
    where = compare(copied, file, Console(quiet=True))
    found = where.manifest().results
    assert {p: t for p, t in every_file(copied).items() if p in before} == before
    splits = Counter(row["split"] for row in table)
    assert (found["read"], found["unmatched"], found["duplicates"]) == (len(rows), 1, 0)
    assert found["matched"] == splits
    for row in found["win_rates"]:
        n = splits[row["split"]]
        pairs = [r for r in table if r["split"] == row["split"]]
        name, other = row["policy"].replace("ppo.jsonl", "ppo"), row["opponent"]
        other = other.replace("ppo.jsonl", "ppo")
        wins = sum(r["scores"][name] > r["scores"][other] for r in pairs)
        ties = sum(r["scores"][name] == r["scores"][other] for r in pairs)
        assert (row["wins"], row["ties"], row["n"]) == (wins, ties, n)
    own = [row for row in found["win_rates"] if row["policy"] == "ppo"]
    assert all(row["ties"] == row["n"] for row in own)
    judged = read_records(where.judgements, Judgement)
    assert len(judged) == sum(row["n"] for row in found["win_rates"])
    text = write_report(copied).read_text(encoding="utf-8")
    assert "ppo vs ppo.jsonl" in text
    assert "1 match no post of the verdict" in text


def test_the_same_file_again_changes_nothing_and_another_stands_beside(copied, tmp_path):
    table = rows_of(copied.stages()["evaluate"].table)
    file = write(tmp_path / "refs", [{"id": r["id"], "summary": r["reference"]} for r in table])
    first = compare(copied, file, Console(quiet=True))
    before = every_file(copied)
    assert compare(copied, file, Console(quiet=True)) == first
    assert every_file(copied) == before
    assert first.manifest().results["name"] == "refs (file)"
    reference = first.manifest().results["win_rates"][0]
    assert (reference["opponent"], reference["rate"]) == ("reference", 0.5)
    write(file, [{"id": table[0]["id"], "summary": "other"}])
    second = compare(copied, file, Console(quiet=True))
    assert second.path != first.path
    assert copied.all_against() == sorted(
        (first, second), key=lambda w: (w.manifest().finished, w.path.name)
    )
    assert second.manifest().results["matched"] == {table[0]["split"]: 1}


def test_a_comparison_with_an_older_verdict_is_kept_but_not_shown(copied, tmp_path):
    table = rows_of(copied.stages()["evaluate"].table)
    file = write(tmp_path / "old.jsonl", [{"id": table[0]["id"], "summary": "x y z"}])
    compare(copied, file, Console(quiet=True))
    assert "old.jsonl" in write_report(copied).read_text(encoding="utf-8")
    where = copied.stages()["evaluate"]
    replace(where.manifest(), key="1" * 64).write(where.manifest_path)
    assert "old.jsonl" not in write_report(copied).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "zz", "summary": "x"}], "none of its 1 rows matches"),
        ([{"id": "zz"}], "line 1: none of the columns"),
        (None, "no such file"),
    ],
)
def test_bad_input_ends_before_any_work(copied, tmp_path, monkeypatch, rows, message):
    monkeypatch.setattr("nplus.stages.against.context", lambda *_: pytest.fail("work was begun"))
    file = tmp_path / "theirs.jsonl"
    if rows is not None:
        write(file, rows)
    before = every_file(copied)
    with pytest.raises(InputError, match=message):
        compare(copied, file, Console(quiet=True))
    assert every_file(copied) == before


def test_a_run_without_a_verdict_is_refused(copied, tmp_path, road_config, drive):
    file = write(tmp_path / "theirs.jsonl", [{"id": "a", "summary": "x"}])
    drive(road_config(), copied.path, until="sft")
    with pytest.raises(InputError, match=r"no finished evaluation.*nplus run"):
        compare(copied, file, Console(quiet=True))


def test_a_comparison_that_breaks_leaves_nothing_but_a_models_replies(
    copied, tmp_path, monkeypatch
):
    table = rows_of(copied.stages()["evaluate"].table)
    file = write(tmp_path / "theirs.jsonl", [{"id": table[0]["id"], "summary": "x"}])
    before = every_file(copied)

    def broken(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr("nplus.stages.against.judge", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        compare(copied, file, Console(quiet=True))
    assert every_file(copied) == before
    assert not [p for p in copied.path.iterdir() if "against" in p.name]

    def broken_with_replies(plan, ctx, where):
        where.replies.write_text("{}", encoding="utf-8")
        raise RuntimeError("power cut")

    monkeypatch.setattr("nplus.stages.against.judge", broken_with_replies)
    with pytest.raises(RuntimeError, match="power cut"):
        compare(copied, file, Console(quiet=True))
    monkeypatch.undo()
    where = compare(copied, file, Console(quiet=True))  # goes on from what was answered
    assert where.replies.read_text(encoding="utf-8") == "{}"
    assert [p.name for p in copied.path.iterdir() if "against" in p.name] == [where.path.name]


def test_settings_of_another_version_are_told(copied, tmp_path):
    table = rows_of(copied.stages()["evaluate"].table)
    file = write(tmp_path / "theirs.jsonl", [{"id": table[0]["id"], "summary": "x"}])
    index = copied.index()
    index["config"]["reward"]["gone"] = math.pi
    copied.index_path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"not those of this version.*reward\.gone"):
        compare(copied, file, Console(quiet=True))


@pytest.mark.detail("A11", "D8")
def test_news_among_the_held_out_comparisons_stand_apart(copied):
    reward, where = (copied.stages()[name] for name in ("reward", "evaluate"))
    kept = read_records(reward.margins, Margin)
    rows = [replace(row, split="validation_cnndm") for row in kept[:5]] + kept[5:]
    write_records(reward.margins, rows)
    ctx = context(copied, Console(quiet=True))
    found = stage_margins(ctx, "reward")
    assert {name: len(part) for name, part in found.items()} == {
        "validation_cnndm": 5,
        "validation": len(kept) - 5,
    }
    report = reward_model_report(judges_of(ctx, where), ctx, where)
    news = next(row for row in report["by_source"] if row["name"] == "validation_cnndm")
    assert news["accuracy"] == sum(row.margin > 0 for row in kept[:5]) / 5
    assert {"validation", "validation_cnndm"} < {row["name"] for row in report["calibration"]}
    reward.margins.unlink()  # a run of an older version
    assert stage_margins(ctx, "reward") == {}
