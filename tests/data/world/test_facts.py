"""Domains, held-out values and fact sheets."""

import json
from collections import Counter

import pytest

from nplus.data.world.dice import Dice
from nplus.data.world.facts import (
    COMPOSED,
    NEWS,
    SLOTS,
    FactSheet,
    domains,
    draw_sheet,
    fields,
    subreddits,
)
from nplus.data.world.posts import render_post
from nplus.seeding import stream


def test_there_are_many_subreddits_with_facts_of_their_own():
    assert len(subreddits()) >= 12
    for slot in ("event", "complication", "question"):
        pools = [{v.name for v in domains()[name].pools[slot]} for name in subreddits()]
        assert all(len(pool) >= 12 for pool in pools)
        for i, first in enumerate(pools):
            # Some questions and complications fit several subreddits; the pools differ.
            assert all(len(first & second) <= 5 for second in pools[:i])


@pytest.mark.parametrize("name", subreddits())
def test_a_domain_has_more_than_a_million_distinct_posts(name):
    domain = domains()[name]
    product = 1
    for slot in SLOTS:
        product *= len({value.name for value in domain.pools[slot] if not value.heldout})
    assert product > 1_000_000
    assert domain.distinct_posts == product
    # Each sheet gives another post: the values stand in the text.
    sheet = draw_sheet(domain, Dice(stream(0, name)), distracted=0.0)
    post = render_post(sheet, Dice(stream(1, name)))
    for slot in ("narrator", "person", "setting", "amount", "feeling"):
        assert fields(sheet)[slot] in post


@pytest.mark.parametrize("slot", COMPOSED)
@pytest.mark.parametrize("name", subreddits())
def test_a_tenth_of_the_combinations_is_held_out_and_no_part_is(name, slot):
    domain = domains()[name]
    share = len(domain.unseen[slot]) / len(domain.pools[slot])
    assert 0.05 <= share <= 0.15
    seen = Counter(word for value in domain.train[slot] for word in value.name.split())
    for value in domain.unseen[slot]:
        assert all(seen[word] >= 2 for word in value.name.split())


def test_no_text_holds_the_end_of_text_marker():
    texts = [v for d in domains().values() for p in d.pools.values() for v in p]
    assert not any("<|" in text for value in texts for _, text in value.wordings)


@pytest.mark.parametrize("name", [*subreddits()[:3], NEWS])
def test_a_sheet_survives_json(name):
    for index in range(30):
        sheet = draw_sheet(
            domains()[name], Dice(stream(3, name, index)), heldout=name != NEWS, distracted=1.0
        )
        assert FactSheet.from_json(json.loads(json.dumps(sheet.to_json()))) == sheet


def test_distractors_are_never_facts():
    for index in range(300):
        sheet = draw_sheet(domains()["pets"], Dice(stream(4, index)), distracted=1.0)
        assert all(sheet.facts[slot] != value for slot, value in sheet.distractors)
