"""Reference writers of uneven skill.

Five kinds of writer share the work. Most are good, none is perfect, and all vary the facts they
pick, their order and their wording, so that what comes next is spread over many words wherever a
summary could go on.
"""

from dataclasses import dataclass, field

import numpy as np

from nplus.data.world.dice import Dice
from nplus.data.world.facts import FactSheet, domains
from nplus.data.world.grammar import Clauses, clauses, tokenise
from nplus.data.world.wordings import FILLERS, JOINERS

# How much a writer is drawn to a slot, before `WriterProfile.focus`.
IMPORTANCE = {
    "event": 4.0,
    "question": 3.4,
    "complication": 3.2,
    "person": 2.4,
    "amount": 2.2,
    "setting": 1.1,
    "feeling": 1.1,
    "narrator": 0.8,
    "actor": 2.4,
    "cause": 3.2,
    "number": 2.2,
    "place": 1.4,
    "reaction": 2.2,
}


@dataclass(frozen=True, slots=True)
class WriterProfile:
    """One kind of writer.

    share: weight in the mix. counts: pairs (number of facts, weight). focus: exponent on the
    importance of a slot (0 picks evenly). error: probability that one fact is told wrongly.
    filler: probability of an empty opening phrase. most: size never exceeded (see `_size`); the
    least important facts are dropped first. least: smallest size; facts are added to reach it.
    """

    share: float
    counts: tuple[tuple[int, float], ...]
    focus: float = 1.0
    error: float = 0.01
    filler: float = 0.0
    most: int = 25
    least: int = 10


@dataclass(frozen=True, slots=True)
class WriterMix:
    """Who writes the references, and how clauses are put together.

    stop, comma, and_, semicolon: weights of what stands between two clauses. tied: probability that
    a clause hangs on the one before it (`but ...`, `with ...`) where it can. question_last,
    subject_first: probability of the usual order.
    """

    careful: WriterProfile = field(
        default_factory=lambda: WriterProfile(0.34, ((5, 0.5), (6, 0.5)), focus=1.6, error=0.01)
    )
    plain: WriterProfile = field(
        default_factory=lambda: WriterProfile(0.36, ((4, 0.8), (5, 0.2)), focus=1.2, error=0.02)
    )
    brief: WriterProfile = field(
        default_factory=lambda: WriterProfile(0.16, ((3, 0.8), (2, 0.2)), focus=1.0, error=0.02)
    )
    rambler: WriterProfile = field(
        default_factory=lambda: WriterProfile(
            0.1, ((4, 0.4), (5, 0.6)), 0.5, error=0.03, filler=0.8
        )
    )
    sloppy: WriterProfile = field(
        default_factory=lambda: WriterProfile(0.04, ((4, 0.6), (3, 0.4)), focus=0.5, error=0.5)
    )
    stop: float = 0.4
    comma: float = 0.3
    and_: float = 0.2
    semicolon: float = 0.1
    tied: float = 0.4
    question_last: float = 0.7
    subject_first: float = 0.65

    @property
    def writers(self) -> dict[str, WriterProfile]:
        return {
            name: getattr(self, name) for name in ("careful", "plain", "brief", "rambler", "sloppy")
        }


@dataclass(frozen=True, slots=True)
class Reference:
    """A summary, who wrote it, the slots told rightly and the (slot, value)s told wrongly."""

    text: str
    writer: str
    slots: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]


def _pick(slots: tuple[str, ...], focus: float, dice: Dice) -> list[str]:
    """The slots in random order, important ones likelier to come early."""
    left = list(slots)
    chosen = []
    while left:
        slot = dice.weighted(left, [IMPORTANCE[s] ** focus for s in left])
        left.remove(slot)
        chosen.append(slot)
    return chosen


def _size(text: str) -> int:
    """Words and punctuation marks; a word of nine letters or more counts twice."""
    return sum(1 + (len(token.text) > 8) for token in tokenise(text))


def _order(picked: list[str], table: Clauses, mix: WriterMix, dice: Dice) -> list[str]:
    """Clause heads in the order of telling; `story` is the event, its subject, or both."""
    told = set(picked)
    story = ["story"] if told & {"event", table.subject} else []
    rest = [s for s in picked if s not in ("event", table.subject, "question")]
    beside = story and table.place in told and dice.chance(0.7)
    if beside:
        rest.remove(table.place)
    order = dice.shuffled(rest)
    if story:
        at = 0 if dice.chance(mix.subject_first) else int(dice.unit() * (len(order) + 1))
        order[at:at] = ["story", table.place] if beside else ["story"]
    if "question" in told:
        last = dice.chance(mix.question_last)
        order.insert(len(order) if last else int(dice.unit() * (len(order) + 1)), "question")
        if beside and not last and order.index(table.place) != order.index("story") + 1:
            order.remove("question")
            order.append("question")
    return order


def _story_template(picked: list[str], table: Clauses, dice: Dice) -> str:
    if "event" in picked:
        return dice.choose(table.story["both" if table.subject in picked else "event"])
    return dice.choose(table.story[table.subject])


def _compose(picked: list[str], table: Clauses, mix: WriterMix, dice: Dice) -> str:
    """A template of the whole summary; its order and wording are drawn anew on each call."""
    text = last = ""
    for head in _order(picked, table, mix, dice):
        after_story = last == "story"
        can_tie = bool(text) and not text.endswith("?") and head in table.tied
        if head == table.place and not after_story:
            can_tie = False
        if can_tie and (head == table.place or dice.chance(mix.tied)):
            clause = dice.choose(table.tied[head])
            near = head == table.place or dice.chance(0.4)
            text += f" {clause}" if near else f", {clause}"
        else:
            options = table.main.get(head)
            clause = dice.choose(options) if options else _story_template(picked, table, dice)
            text += _joiner(text, mix, dice) + clause
        last = head
    return text if text.endswith("?") else f"{text}."


def _joiner(text: str, mix: WriterMix, dice: Dice) -> str:
    if not text:
        return ""
    if text.endswith("?"):
        return " "
    weights = (mix.stop, mix.comma, mix.and_, mix.semicolon)
    return JOINERS[dice.weighted(("stop", "comma", "and", "semicolon"), weights)]


def _told(sheet: FactSheet, slots: list[str], error: float, dice: Dice) -> dict[str, str]:
    """Slot -> value to tell; now and then one of `slots` has another value of the pool."""
    told = sheet.facts
    if dice.chance(error):
        slot = dice.choose(slots)
        told[slot] = other_value(sheet, slot, dice)
    return told


def other_value(sheet: FactSheet, slot: str, dice: Dice) -> str:
    """A value of the slot's training pool that is not the sheet's."""
    pool = domains()[sheet.domain].train[slot]
    at = int(dice.unit() * len(pool))
    return pool[at].name if pool[at].name != sheet.facts[slot] else pool[at - 1].name


def _fill(sheet: FactSheet, template: str, told: dict[str, str]) -> str:
    by_name = domains()[sheet.domain].by_name
    words: dict[str, str] = {}
    for key in told.items():
        words.update(by_name[key].wordings)
    return template.format_map(words)


def _write(
    sheet: FactSheet, name: str, profile: WriterProfile, mix: WriterMix, dice: Dice
) -> Reference:
    table = clauses(sheet.domain)
    slots = domains()[sheet.domain].slots
    count = min(len(slots), dice.weighted(*zip(*profile.counts, strict=True)))
    ranked = _pick(slots, profile.focus, dice)
    told = _told(sheet, ranked[:count], profile.error, dice)
    opening = f"{dice.choose(FILLERS)}, " if dice.chance(profile.filler) else ""
    picked, text = ranked[:count], ""
    while not profile.least <= (size := _size(text)) <= profile.most:
        if size > profile.most:
            picked.remove(min(picked, key=IMPORTANCE.__getitem__))
        elif text:
            picked.append(ranked[len(picked)])
        text = opening + _fill(sheet, _compose(picked, table, mix, dice), told)
    facts = sheet.facts
    right = tuple(slot for slot in slots if slot in picked and told[slot] == facts[slot])
    wrong = tuple(
        (slot, told[slot]) for slot in slots if slot in picked and told[slot] != facts[slot]
    )
    return Reference(text, name, right, wrong)


def reference(
    sheet: FactSheet, rng: np.random.Generator | Dice, mix: WriterMix, writer: str | None = None
) -> Reference:
    """A summary by one of the mix's writers, drawn by share unless named."""
    dice = rng if isinstance(rng, Dice) else Dice(rng)
    writers = mix.writers
    name = writer or dice.weighted(tuple(writers), [profile.share for profile in writers.values()])
    return _write(sheet, name, writers[name], mix, dice)


def write_reference(sheet: FactSheet, rng: np.random.Generator | Dice, mix: WriterMix) -> str:
    return reference(sheet, rng, mix).text


def retell(sheet: FactSheet, rng: np.random.Generator | Dice, mix: WriterMix | None = None) -> str:
    """All facts in random order, in the wordings of summaries."""
    dice = rng if isinstance(rng, Dice) else Dice(rng)
    table = clauses(sheet.domain)
    picked = dice.shuffled(domains()[sheet.domain].slots)
    return _fill(sheet, _compose(picked, table, mix or WriterMix(), dice), sheet.facts)
