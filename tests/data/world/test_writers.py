"""Writers, retellings and scripted policies against the gold scorer."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from nplus.data.world.dice import Dice
from nplus.data.world.facts import NEWS, domains, draw_sheet, subreddits
from nplus.data.world.gold import GoldScorer
from nplus.data.world.policies import CORRUPTIONS, corrupt, lead, minimal_swap
from nplus.data.world.posts import render_post
from nplus.data.world.writers import WriterMix, WriterProfile, reference, retell, write_reference
from nplus.seeding import stream

GOLD = GoldScorer()
MIX = WriterMix()


def _cases(count, *, seed, names=None):
    names = names or [*subreddits(), NEWS]
    for index in range(count):
        dice = Dice(stream(seed, index))
        yield draw_sheet(domains()[names[index % len(names)]], dice), dice


def test_a_reference_covers_exactly_what_its_writer_told():
    for sheet, dice in _cases(3000, seed=11):
        told = reference(sheet, dice, MIX)
        score = GOLD.score(sheet, told.text)
        assert score.covered == told.slots
        assert set(score.wrong) == set(told.wrong)
        assert (score.broken, score.repeats) == (0, 0), told.text


def test_a_retelling_tells_everything():
    for sheet, dice in _cases(800, seed=12):
        score = GOLD.score(sheet, retell(sheet, dice))
        assert score.covered == domains()[sheet.domain].slots
        assert (score.wrong, score.broken, score.repeats) == ((), 0, 0)


def test_the_mix_is_good_on_average_with_few_errors():
    totals, wrong, facts = defaultdict(list), 0, 0
    for sheet, dice in _cases(3000, seed=13, names=subreddits()):
        told = reference(sheet, dice, MIX)
        totals[told.writer].append(GOLD.score(sheet, told.text).total)
        wrong += bool(told.wrong)
        facts += len(told.slots)
    mean = {name: sum(t) / len(t) for name, t in totals.items()}
    assert mean["careful"] > mean["plain"] > mean["rambler"] > mean["brief"] > mean["sloppy"]
    assert 2.6 < sum(map(sum, totals.values())) / 3000 < 3.3
    assert 0.005 < wrong / 3000 < 0.06
    assert 3.5 < facts / 3000 < 4.5


def test_the_mix_is_followed():
    only = replace(
        MIX,
        **{name: replace(p, share=0.0) for name, p in MIX.writers.items() if name != "brief"},
        brief=WriterProfile(1.0, ((3, 1.0),), error=0.0, least=1),
    )
    for sheet, dice in _cases(100, seed=14):
        told = reference(sheet, dice, only)
        assert (told.writer, len(told.slots), told.wrong) == ("brief", 3, ())


def test_what_follows_is_spread_over_many_words():
    first = Counter()
    for sheet, dice in _cases(1500, seed=15, names=("pets",)):
        words = write_reference(sheet, dice, MIX).split()
        first[words[0]] += 1
    assert max(first.values()) < 0.25 * 1500


def test_a_generator_and_its_dice_give_the_same_text():
    sheet = draw_sheet(domains()["jobs"], Dice(stream(0, "sheet")))
    again = [write_reference(sheet, stream(0, "text"), MIX) for _ in range(2)]
    assert again[0] == again[1] == write_reference(sheet, Dice(stream(0, "text")), MIX)


def test_lead_takes_whole_sentences():
    assert lead("one two. three four! five?", most=4) == "one two. three four!"
    assert lead("a b c d e f. g.", most=2) == "a b c d e f."
    for sheet, dice in _cases(100, seed=16, names=subreddits()):
        text = lead(render_post(sheet, dice))
        assert len(text.split()) <= 25
        assert text.endswith((".", "?"))


def test_a_minimal_swap_changes_exactly_one_fact():
    done, slots = 0, set()
    for sheet, dice in _cases(1500, seed=17):
        text = write_reference(sheet, dice, MIX)
        before = GOLD.score(sheet, text)
        swapped = minimal_swap(sheet, text, dice)
        if swapped is None:
            assert not before.covered
            continue
        after = GOLD.score(sheet, swapped[0])
        assert set(before.covered) - set(after.covered) == {swapped[1]}
        assert len(after.wrong) == len(before.wrong) + 1
        assert after.broken == 0
        done += 1
        slots.add(swapped[1])
    assert done > 1450
    assert slots >= set(domains()["pets"].slots)


def test_a_swap_keeps_the_determiners_right():
    sheet = draw_sheet(domains()["pets"], Dice(stream(0, "x")))
    text = f"sadly {sheet.facts['complication']}."
    for index in range(40):
        swapped, slot = minimal_swap(sheet, text, stream(1, index))
        assert slot == "complication"
        words = swapped.rstrip(".").split(" ", 1)[1]
        assert words in {value.name for value in domains()["pets"].pools["complication"]}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_makes_texts_worse(kind):
    change = []
    for sheet, dice in _cases(300, seed=18, names=subreddits()):
        text = write_reference(sheet, dice, MIX)
        worse = GOLD.score(sheet, corrupt(sheet, text, dice, kind)).total
        change.append(worse - GOLD.score(sheet, text).total)
    assert sum(change) / len(change) < -0.8
    assert sum(c < 0 for c in change) > 0.75 * len(change)


def test_an_unknown_corruption_is_an_error():
    sheet = draw_sheet(domains()["pets"], Dice(stream(0)))
    with pytest.raises(ValueError, match="known"):
        corrupt(sheet, "text.", stream(0), "invert")
