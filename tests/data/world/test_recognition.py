"""Every value in every wording is recognised, and nothing else is."""

from itertools import product
from string import Formatter

import pytest

from nplus.data.world import lexicon_news, wordings
from nplus.data.world.dice import Dice
from nplus.data.world.facts import FORMS, NEWS, domains, draw_sheet, subreddits
from nplus.data.world.gold import GoldScorer
from nplus.data.world.grammar import clauses, recogniser, tokenise
from nplus.data.world.posts import render_article, render_post
from nplus.seeding import stream

SLOT = {name: slot for slot, names in FORMS.items() for name in names}


def _templates(name):
    table = clauses(name)
    groups = [table.story, table.main, table.tied]
    if name == NEWS:
        groups.append(lexicon_news.ARTICLE)
        lone = [*lexicon_news.PADDING]
    else:
        groups += [wordings.SENTENCES, wordings.DISTRACTORS]
        domain = domains()[name]
        lone = [*wordings.AMOUNTS[domain.amount].post, *wordings.STORY, *wordings.PERSON]
        lone += [*wordings.THEY, *wordings.FEELING_QUESTION, *wordings.SMALL_TALK]
        lone += [*wordings.CLOSINGS, *wordings.FILLERS, *wordings.TITLES, *domain.flavour]
    return [t for group in groups for options in group.values() for t in options] + lone


@pytest.mark.parametrize("name", list(domains()))
def test_every_value_is_recognised_in_every_template(name):
    domain, find = domains()[name], recogniser(name)
    for template in _templates(name):
        needed = [field for _, field, _, _ in Formatter().parse(template) if field]
        slots = [SLOT.get(field, field) for field in needed]
        # All values of each field in turn, the others at their first value.
        for turn in range(len(needed)) or [None]:
            choices = [
                domain.pools[slot] if at == turn else domain.pools[slot][:1]
                for at, slot in enumerate(slots)
            ]
            for values in product(*choices):
                words = {f: dict(v.wordings)[f] for f, v in zip(needed, values, strict=True)}
                found = find.mentions(tokenise(template.format_map(words)))
                got = [(m.slot, m.value, m.field, m.whole) for m in found]
                want = [(v.slot, v.name, f, True) for f, v in zip(needed, values, strict=True)]
                assert got == want, template


def test_matching_ignores_case_spaces_determiners_and_breaks_at_punctuation():
    find = recogniser("pets")

    def found(text):
        return [(m.slot, m.value, m.whole) for m in find.mentions(tokenise(text))]

    assert found("The  BOSSY uncle!") == [("person", "bossy uncle", True)]
    assert found("fed the dog a chocolate") == [("event", "fed my dog chocolate", True)]
    assert found("bossy, uncle") == [("person", "uncle", False)]
    assert found("uncles and dollars") == []
    assert found("40 dollars") == []  # here amounts are ages
    assert found("40") == []
    assert found("5") == [("amount", "5", False)]


def test_a_mention_tells_where_it_stands():
    text = "So my Bossy Uncle left."
    (mention,) = recogniser("pets").mentions(tokenise(text))
    assert text[mention.start : mention.end] == "Bossy Uncle"


@pytest.mark.parametrize("name", [*subreddits(), NEWS])
def test_a_post_states_its_facts_and_mentions_its_distractors(name):
    gold = GoldScorer()
    for index in range(60):
        dice = Dice(stream(5, name, index))
        sheet = draw_sheet(domains()[name], dice, heldout=name != NEWS and index % 2 == 0)
        if name == NEWS:
            sheet = draw_sheet(domains()[name], dice, distracted=0.0)
            post = render_article(sheet, dice)[1]
        else:
            post = render_post(sheet, dice)
        score = gold.score(sheet, post)
        assert set(score.covered) == set(domains()[name].slots)
        assert set(score.wrong) == set(sheet.distractors)
        assert score.broken == 0
