"""The gold formula against totals worked out by hand, and against texts that try to cheat."""

import time
from dataclasses import replace

import pytest

from nplus.data.world.dice import Dice
from nplus.data.world.facts import FactSheet, domains, draw_sheet
from nplus.data.world.gold import GoldScorer, GoldWeights
from nplus.data.world.posts import render_post
from nplus.data.world.writers import WriterMix, reference, retell
from nplus.seeding import stream

SHEET = FactSheet(
    "pets",
    (
        "nurse",
        "bossy uncle",
        "tiny kitchen",
        "fed my dog chocolate",
        "the vet is closed",
        "5 months",
        "angry",
        "call the vet",
    ),
)
GOLD = GoldScorer()
STORY = "my bossy uncle fed my dog chocolate"


@pytest.mark.parametrize(
    ("text", "total", "covered", "wrong"),
    [
        (f"{STORY}.", 1.6, ("person", "event"), ()),
        (
            f"{STORY}, but the vet is closed. should I call the vet?",
            3.4,
            ("person", "event", "complication", "question"),
            (),
        ),
        # A wrong modifier costs the fact and 1.2.
        ("my lazy uncle fed my dog chocolate.", -0.2, ("event",), (("person", "lazy uncle"),)),
        # The right head alone is nothing; another head is wrong.
        ("my uncle fed my dog chocolate.", 1.0, ("event",), ()),
        ("my aunt fed my dog chocolate.", -0.2, ("event",), (("person", "aunt"),)),
        ("I am angry.", 0.35, ("feeling",), ()),
        ("I am sad.", -1.2, (), (("feeling", "sad"),)),
        ("my pet turned 5 months, with the vet closed.", 1.5, ("complication", "amount"), ()),
        ("my pet turned 6 months.", -1.2, (), (("amount", "6 months"),)),
        # Unfinished costs 1.
        (STORY, 0.6, ("person", "event"), ()),
        # A repeated clause: two values again (one four-word sequence among them) and no more.
        (f"{STORY}. {STORY}.", 1.6 - 0.4 * 3, ("person", "event"), ()),
        ("", -3.0, (), ()),
        ("qwe rty uiop asd.", -2.0, (), ()),
    ],
)
def test_totals_by_hand(text, total, covered, wrong):
    score = GOLD.score(SHEET, text)
    assert score.covered == covered
    assert score.wrong == wrong
    assert score.total == pytest.approx(total)


def test_length_is_free_up_to_the_budget():
    text = f"{STORY} in a tiny kitchen. now the vet is closed. nurse here, so I am angry."
    score = GOLD.score(SHEET, text)
    assert (score.words, score.over) == (22, 0)
    assert score.total == pytest.approx(1 + 0.6 + 0.4 + 0.9 + 0.25 + 0.35)
    longer = GOLD.score(SHEET, f"{text} should I call the vet?")
    assert longer.over == 5
    assert longer.total == pytest.approx(score.total + 0.9 - 5 * 0.15)


def test_a_distractor_of_the_post_counts_as_wrong():
    sheet = replace(SHEET, distractors=(("person", "lazy sister"),))
    score = GOLD.score(sheet, "my lazy sister fed my dog chocolate.")
    assert score.wrong == (("person", "lazy sister"),)


def test_weights_are_the_scorers():
    gold = GoldScorer(GoldWeights(event=5.0, wrong=2.0))
    assert gold.score(SHEET, "someone fed my dog chocolate. I am sad.").total == pytest.approx(3.0)


def _hacks(sheet, post, dice):
    domain = domains()[sheet.domain]
    names = {slot: [value.name for value in pool] for slot, pool in domain.train.items()}
    good = retell(sheet, dice)
    yield ""
    yield "."
    yield "yes."
    yield post
    yield " ".join(sheet.values) + "."
    yield ", ".join(sheet.values) + "."
    yield " ".join(names["event"]) + "."
    yield "; ".join(names["question"]) + "?"
    yield ". ".join([*names["complication"], *names["event"]]) + "."
    yield "I feel " + " and I feel ".join(names["feeling"]) + "."
    yield f"{good} {good} {good}"
    yield f"{sheet.facts['event']}. " * 8
    yield "my my my the the a."


def test_no_hack_beats_a_careful_reference_on_average_or_often():
    mix, totals, wins, hacks = WriterMix(), [], 0, []
    for index in range(150):
        dice = Dice(stream(6, index))
        sheet = draw_sheet(domains()["school"], dice, distracted=0.5)
        post = render_post(sheet, dice)
        total = GOLD.score(sheet, reference(sheet, dice, mix, "careful").text).total
        best = max(GOLD.score(sheet, text).total for text in _hacks(sheet, post, dice))
        totals.append(total)
        hacks.append([GOLD.score(sheet, text).total for text in _hacks(sheet, post, dice)])
        wins += best > total
    careful = sum(totals) / len(totals)
    means = [sum(column) / len(column) for column in zip(*hacks, strict=True)]
    assert max(means) < careful - 0.3
    assert wins < 0.4 * len(totals)


def test_speed():
    mix, cases = WriterMix(), []
    for index in range(500):
        dice = Dice(stream(7, index))
        sheet = draw_sheet(domains()["cars"], dice)
        cases.append((sheet, reference(sheet, dice, mix).text))
    GOLD.score(*cases[0])
    start = time.process_time()
    for case in cases:
        GOLD.score(*case)
    # About 7000 texts a second on an idle core; the factor is for a busy one.
    assert 500 / (time.process_time() - start) > 1500
