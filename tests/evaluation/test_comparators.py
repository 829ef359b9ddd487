"""Comparators against judges of known answers (Detail H2, quirk Q7, conformance check 13)."""

import math
import random
import re
from dataclasses import replace

import pytest

from nplus.evaluation.comparators import (
    LLMJudge,
    RandomOrder,
    ScoreComparator,
    Symmetrised,
    judge_prompt,
    judged,
    mirrored,
    ordered,
    ours_first,
    parse_reply,
    position_report,
    shown,
    swapped,
    verdict_report,
)
from nplus.evaluation.winrate import summarise
from nplus.records import (
    Comparison,
    InputError,
    Judgement,
    Verdict,
    read_records,
    write_records,
)

Z = 1.959963984540054


def wilson(k, n):
    centre, half = k / n + Z * Z / (2 * n), Z * math.sqrt(k / n * (1 - k / n) / n + Z**2 / 4 / n**2)
    return [(centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)]


def pair(n, ours=" good", theirs=" bad"):
    return Comparison(f"t3_{n}", f"POST: {n}\n\nTL;DR:", (ours, theirs), ("ppo", "ref"), 0)


def pairs(n, **texts):
    return [pair(i, **texts) for i in range(n)]


def said(letter):
    return f"Comparison: they differ.\nBetter: {letter}"


def summaries(prompt):
    """What stands under the two summary headings, read without the product."""
    return re.search(
        r"### Summary A\n(.*)\n\n### Summary B\n(.*)\n\n### Instr", prompt, re.S
    ).groups()


def always(letter):
    return lambda prompt: said(letter)


def perfect(prompt):
    first, second = summaries(prompt)
    assert {first, second} == {"good", "bad"}
    return said("A" if first == "good" else "B")


class Lengths:
    """A scorer: longer is better."""

    def score(self, samples):
        return [float(len(sample.response)) for sample in samples]


class Table:
    """A scorer by text."""

    def __init__(self, **scores):
        self.scores = scores

    def score(self, samples):
        return [self.scores[sample.response.strip()] for sample in samples]


# --- order (conformance check 13) ---------------------------------------------------------------


@pytest.mark.parametrize(("letter", "first"), [("A", 1.0), ("B", 0.0)])
def test_a_judge_that_looks_at_the_place_only_gives_half_in_random_order(letter, first):
    n = 4_000
    report = verdict_report(RandomOrder(LLMJudge(always(letter)), seed=3).compare(pairs(n)))
    # Three standard deviations of a fair coin thrown n times.
    assert abs(report["rate"] - 0.5) < 3 * 0.5 / math.sqrt(n)
    assert (report["n"], report["ties"], report["invalid"]) == (n, 0, 0)
    position = report["position"]
    assert position["first_wins"]["rate"] == first
    assert position["ours_first"]["rate"] == first
    assert position["ours_second"]["rate"] == 1.0 - first
    assert position["difference"]["value"] == 2 * first - 1
    assert position["ours_first"]["n"] + position["ours_second"]["n"] == n


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_looks_at_the_place_only_gives_ties_in_both_orders(letter):
    verdicts = Symmetrised(LLMJudge(always(letter))).compare(pairs(50))
    assert [verdict.winner for verdict in verdicts] == ["tie"] * 50
    report = verdict_report(verdicts)
    assert (report["rate"], report["ties"], report["n"], report["asked"]) == (0.5, 50, 50, 50)
    assert report["position"]["consistent"]["rate"] == 0.0
    assert report["position"]["first_wins"] == {
        **report["position"]["first_wins"],
        "rate": float(letter == "A"),
        "n": 100,
    }


def test_without_an_order_the_place_is_taken_for_quality():
    # What `ordered` is for.
    assert verdict_report(LLMJudge(always("A")).compare(pairs(20)))["rate"] == 1.0


@pytest.mark.parametrize("order", ["random", "both"])
@pytest.mark.parametrize("swap", [False, True])
def test_a_perfect_judge_is_right_in_either_order(order, swap):
    rows = [swapped(row) for row in pairs(60)] if swap else pairs(60)
    report = verdict_report(ordered(LLMJudge(perfect), order, seed=0).compare(rows))
    assert (report["wins"], report["losses"]) == ((0, 60) if swap else (60, 0))
    position = report["position"]
    assert position["ours_first"]["rate"] == position["ours_second"]["rate"] == float(not swap)
    assert position["difference"]["value"] == 0.0
    asked = 60 * (2 if order == "both" else 1)
    assert position["ours_first"]["n"] + position["ours_second"]["n"] == asked
    if order == "both":
        assert position["ours_first"]["n"] == position["ours_second"]["n"] == 60
        assert (position["consistent"]["rate"], position["consistent"]["n"]) == (1.0, 60)
    else:
        assert 15 < position["ours_first"]["n"] < 45


def test_what_is_shown_first_is_what_the_prompt_shows_first():
    prompts = {}

    def ask(prompt):
        prompts[re.search(r"POST: (\d+)", prompt)[1]] = summaries(prompt)
        return said("A")

    verdicts = RandomOrder(LLMJudge(ask), seed=1).compare(pairs(40))
    sides = {verdict.id: verdict.shown_first for verdict in verdicts}
    assert set(sides.values()) == {("ours",), ("opponent",)}
    for number, (first, _) in prompts.items():
        assert sides[f"t3_{number}"] == (("ours",) if first == "good" else ("opponent",))
    # The judge says A: whoever was shown first wins.
    assert all((verdict.winner,) == verdict.shown_first for verdict in verdicts)


def test_the_coin_depends_on_seed_and_id_only():
    rows = pairs(200)
    comparator = RandomOrder(LLMJudge(always("A")), seed=5)
    whole = {v.id: v for v in comparator.compare(rows)}
    mixed = random.Random(0).sample(rows, 80)
    assert comparator.compare(mixed) == [whole[row.id] for row in mixed]
    assert [whole[row.id].shown_first == ("ours",) for row in rows] == [
        ours_first(5, row.id) for row in rows
    ]
    other = {v.id: v for v in RandomOrder(LLMJudge(always("A")), seed=6).compare(rows)}
    assert 60 < sum(whole[row.id] == other[row.id] for row in rows) < 140


def test_both_orders_by_hand():
    # What the judge answers when ours is A, and when ours is B; then the verdict.
    table = {
        ("A", "B"): "ours",
        ("B", "A"): "opponent",
        ("A", "A"): "tie",
        ("B", "B"): "tie",
        ("A", "neither"): "invalid",
        ("neither", "B"): "invalid",
        ("neither", "neither"): "invalid",
    }
    rows = pairs(len(table))
    answers = dict(zip((row.query for row in rows), table, strict=True))

    def ask(prompt):
        query = re.search(r"### Post\n(.*)\n\n### Summary A", prompt, re.S)[1]
        return said(answers[query][summaries(prompt)[0] != "good"])

    verdicts = Symmetrised(LLMJudge(ask)).compare(rows)
    assert [verdict.winner for verdict in verdicts] == list(table.values())
    assert verdicts[0].shown_first == ("ours", "opponent")
    assert verdicts[2].votes == ("ours", "opponent")
    assert verdicts[4].replies == (said("A"), said("neither"))
    report = verdict_report(verdicts)
    counts = [report[k] for k in ("wins", "losses", "ties", "invalid", "n", "asked")]
    assert counts == [1, 1, 2, 3, 4, 7]
    # Of the four answered twice, two agree.
    assert (report["position"]["consistent"]["rate"], report["position"]["consistent"]["n"]) == (
        0.5,
        4,
    )


def test_an_unknown_order_is_an_input_error():
    with pytest.raises(InputError, match=r"judge\.order=best.*both.*random"):
        ordered(LLMJudge(always("A")), "best", seed=0)


# --- every comparator ---------------------------------------------------------------------------

COMPARATORS = {
    "judge": LLMJudge(perfect),
    "judge, random": ordered(LLMJudge(perfect), "random", 0),
    "judge, both": ordered(LLMJudge(perfect), "both", 0),
    "scores": ScoreComparator(Lengths()),
    "scores, random": ordered(ScoreComparator(Lengths()), "random", 0),
    "scores, both": ordered(ScoreComparator(Lengths()), "both", 0),
}


@pytest.mark.parametrize("name", COMPARATORS)
def test_the_contract(name):
    comparator = COMPARATORS[name]
    rows = [row if n % 3 else swapped(row) for n, row in enumerate(pairs(30))]
    verdicts = comparator.compare(rows)
    assert [verdict.id for verdict in verdicts] == [row.id for row in rows]
    assert [v.winner for v in verdicts] == ["ours" if n % 3 else "opponent" for n in range(30)]
    # Rows in another order, and one by one.
    assert comparator.compare(rows[::-1]) == verdicts[::-1]
    assert [comparator.compare([row])[0] for row in rows] == verdicts
    # Nobody looks at what a human chose.
    assert comparator.compare([replace(row, choice=1) for row in rows]) == verdicts
    assert comparator.compare([]) == []


def test_scores_decide_tie_and_fail():
    scorer = Table(high=2.0, low=-1.0, nan=math.nan)
    texts = [("high", "low"), ("low", "high"), ("low", "low"), ("nan", "low"), ("high", "nan")]
    rows = [pair(n, *both) for n, both in enumerate(texts)]
    expected = ["ours", "opponent", "tie", "invalid", "invalid"]
    for comparator in (ScoreComparator(scorer), Symmetrised(ScoreComparator(scorer))):
        verdicts = comparator.compare(rows)
        assert [verdict.winner for verdict in verdicts] == expected
    report = verdict_report(verdicts)
    assert report["position"] is None
    assert (report["rate"], report["n"], report["invalid"]) == (0.5, 3, 2)


def test_swapping_and_mirroring_twice_change_nothing():
    row = replace(pair(1), choice=1, confidence=7)
    assert swapped(row).responses == (" bad", " good")
    assert (swapped(row).policies, swapped(row).chosen) == (("ref", "ppo"), row.chosen)
    assert swapped(swapped(row)) == row
    verdict = Verdict("x", "ours", ("ours", "opponent"), ("ours", "invalid"), ("r", "s"))
    assert mirrored(verdict) == Verdict(
        "x", "opponent", ("opponent", "ours"), ("opponent", "invalid"), ("r", "s")
    )
    assert mirrored(mirrored(verdict)) == verdict


# --- the question -------------------------------------------------------------------------------


def test_the_judge_sees_query_and_summaries_cut_at_eos():
    query = "SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: uses {braces} and %s\n\nTL;DR:"
    prompt = judge_prompt(query, " one two <|endoftext|> junk<|endoftext|>", "\n three{0}  ")
    heads = re.findall(r"^### (.*)$", prompt, re.M)
    assert heads == ["Post", "Summary A", "Summary B", "Instructions"]
    assert f"### Post\n{query}\n\n### Summary A" in prompt
    assert summaries(prompt) == ("one two", "three{0}")
    assert "junk" not in prompt
    assert all(word in prompt for word in ("accuracy", "coverage", "coherence"))


def test_another_eos_marker():
    assert shown(" a </s> b") == "a </s> b"
    assert shown(" a </s> b", "</s>") == "a"
    prompts = []
    judge = LLMJudge(lambda p: prompts.append(p) or said("A"), eos_text="</s>")
    judge.compare([pair(0, " a </s> b", " c")])
    assert summaries(prompts[0]) == ("a", "c")


def test_equal_questions_are_asked_once():
    prompts = []

    def ask(prompt):
        prompts.append(prompt)
        return said("A")

    verdicts = Symmetrised(LLMJudge(ask)).compare([pair(0), pair(0), pair(1, " same", " same ")])
    # The twin questions of the first two, and one of the third, which reads the same both ways.
    assert len(prompts) == len(set(prompts)) == 3
    assert [verdict.winner for verdict in verdicts] == ["tie"] * 3


def test_questions_go_through_each():
    seen = []

    def each(ask, prompts):
        seen.extend(prompts)
        return [ask(prompt) for prompt in prompts]

    verdicts = LLMJudge(perfect, each).compare(pairs(7))
    assert len(seen) == 7
    assert {verdict.winner for verdict in verdicts} == {"ours"}


def test_an_error_of_the_endpoint_is_no_verdict():
    def ask(prompt):
        raise InputError("no endpoint")

    with pytest.raises(InputError, match="no endpoint"):
        ordered(LLMJudge(ask), "random", 0).compare(pairs(3))


# --- the answer (quirk Q7) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Comparison: B omits the end.\nBetter: A", "A"),
        ("Comparison: A omits the end.\nBetter: B\n\n", "B"),
        ("**Comparison:** both do.\n**Better:** B", "B"),
        ('Comparison: x\nbetter : "a".', "A"),
        ("Comparison: x\nBetter: Summary B", "B"),
        ("Comparison: x\nBetter summary: A", "A"),
        ("Comparison: x\nBetter:\n\n(B)", "B"),
        ("Comparison: x\r\nBetter: A\r\n", "A"),
        ("Comparison: x\nPreferred: B", "B"),
        ("A", "A"),
        ("Comparison: x\n**Summary B**", "B"),
        ("Better: A\nSo, again:\nBetter: A", "A"),
    ],
)
def test_an_answer_is_read(reply, expected):
    assert parse_reply(reply) == expected


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n\t\n",
        "Comparison: A is better than B in every way.",
        "Comparison: x\nBetter:",
        "Comparison: x\nBetter: neither",
        "Comparison: x\nBetter: A or B",
        "Comparison: x\nBetter: A/B",
        "Comparison: x\nBetter: A and B",
        "Comparison: x\nBetter: C",
        "Comparison: x\nBetter: AB",
        "Comparison: x\nBetter: A, since B leaves much out",
        "Better: A\nNo:\nBetter: B",
        "Better: <A or B>",
        "Comparison: x\nA tie",
        "A\nB is close\nboth",
        "I cannot judge this post.",
        "Comparison: B",
    ],
)
def test_what_names_neither_is_invalid(reply):
    assert parse_reply(reply) is None
    verdicts = RandomOrder(LLMJudge(lambda prompt: reply), seed=0).compare(pairs(10))
    assert {verdict.winner for verdict in verdicts} == {"invalid"}
    assert {verdict.replies for verdict in verdicts} == {(reply,)}
    report = verdict_report(verdicts)
    assert (report["invalid"], report["losses"], report["n"]) == (10, 0, 0)
    assert math.isnan(report["rate"])


def test_invalid_answers_leave_the_win_rate_alone():
    # 8 items: 3 wins, 1 loss, 4 without an answer. By quirk Q7 that would be 3/8.
    answers = ["A", "A", "B", "A", "?", "", "A!B", "none"]
    rows = pairs(8)

    def ask(prompt):
        return said(answers[int(re.search(r"POST: (\d+)", prompt)[1])])

    report = verdict_report(LLMJudge(ask).compare(rows))
    assert (report["wins"], report["losses"], report["invalid"]) == (3, 1, 4)
    assert report["rate"] == 0.75
    assert [report["low"], report["high"]] == pytest.approx(wilson(3, 4))
    assert report["invalid_share"]["rate"] == 0.5
    assert [report["invalid_share"][k] for k in ("low", "high")] == pytest.approx(wilson(4, 8))
    assert (report["position"]["ours_first"]["n"], report["position"]["ours_first"]["invalid"]) == (
        4,
        4,
    )


# --- what verdicts come to ----------------------------------------------------------------------


def verdict(n, side, vote):
    return Verdict(f"t{n}", vote, (side,), (vote,), ("",))


@pytest.mark.detail("H2")
def test_the_position_bias_of_the_published_judgements():
    # Detail H2: GPT-4 on OpenAI's checkpoint: 371 of 518 first, 269 of 482 second, 64.0 % overall.
    counts = {
        ("ours", "ours"): 371,
        ("ours", "opponent"): 518 - 371,
        ("opponent", "ours"): 269,
        ("opponent", "opponent"): 482 - 269,
    }
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    report = verdict_report([verdict(n, *kind) for n, kind in enumerate(kinds)])
    assert (report["rate"], report["n"]) == (0.64, 1000)
    assert [report["low"], report["high"]] == pytest.approx(wilson(640, 1000))
    first, second = (report["position"][key] for key in ("ours_first", "ours_second"))
    assert (round(first["rate"], 3), round(second["rate"], 3)) == (0.716, 0.558)
    assert [first["low"], first["high"]] == pytest.approx(wilson(371, 518))
    assert [second["low"], second["high"]] == pytest.approx(wilson(269, 482))
    gap = report["position"]["difference"]
    assert gap["value"] == pytest.approx(371 / 518 - 269 / 482)
    assert 0.0 < gap["low"] < gap["value"] < gap["high"]
    # Whoever stood first won 371 + 213 times.
    assert report["position"]["first_wins"]["rate"] == pytest.approx((371 + 213) / 1000)
    assert report["position"]["consistent"]["n"] == 0


def test_a_place_that_never_comes_is_unknown():
    position = position_report([verdict(n, "ours", "ours") for n in range(3)])
    assert position["ours_first"]["rate"] == 1.0
    assert math.isnan(position["ours_second"]["rate"])
    assert math.isnan(position["difference"]["value"])
    assert (position["difference"]["low"], position["difference"]["high"]) == (-1.0, 1.0)


def test_no_verdicts_is_an_error():
    with pytest.raises(ValueError, match="no verdicts"):
        verdict_report([])


def judgement(n):
    return Judgement(f"t{n}", "test", "ppo@0.7", "ref", "a", "b", -9.0, -5.0, 8 + n, 10)


def test_verdicts_take_the_place_of_scores():
    winners = ["ours", "tie", "invalid", "opponent", "ours"]
    verdicts = [verdict(n, "ours", winner) for n, winner in enumerate(winners)]
    rows = judged([judgement(n) for n in range(5)], verdicts)
    assert [(row.id, row.score, row.opponent_score) for row in rows] == [
        ("t0", 1.0, 0.0),
        ("t1", 0.5, 0.5),
        ("t3", 0.0, 1.0),
        ("t4", 1.0, 0.0),
    ]
    row, report = summarise(rows), verdict_report(verdicts)
    assert all(row[k] == report[k] for k in ("wins", "ties", "losses", "n", "rate", "low", "high"))
    assert row["tokens"] == (8 + 9 + 11 + 12) / 4


def test_verdicts_of_other_items_are_refused():
    with pytest.raises(ValueError, match="'t1' stands beside judgement 't0'"):
        judged([judgement(0)], [verdict(1, "ours", "ours")])


def test_verdicts_cross_the_disk(tmp_path):
    verdicts = Symmetrised(LLMJudge(perfect)).compare(pairs(3))
    verdicts += ScoreComparator(Lengths()).compare(pairs(2))
    assert write_records(tmp_path / "verdicts.jsonl", verdicts) == 5
    assert read_records(tmp_path / "verdicts.jsonl", Verdict) == verdicts
