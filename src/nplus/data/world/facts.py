"""Domains (slots and their pools of values) and the hidden fact sheet behind each post.

A composed value (person, setting, amount) is made of two parts. About one combination in ten is
held out of training by a fixed pattern in which every part still occurs in other combinations.
What is held out belongs to the world and not to a seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

from nplus.data.world import lexicon, lexicon_news
from nplus.data.world.dice import Dice
from nplus.data.world.lexicon import DomainWords
from nplus.data.world.lexicon_more import SECOND
from nplus.data.world.wordings import AMOUNTS

SLOTS = ("narrator", "person", "setting", "event", "complication", "amount", "feeling", "question")
NEWS_SLOTS = ("actor", "place", "event", "cause", "number", "reaction")
COMPOSED = ("person", "setting", "amount")
NEWS = "news"
LEFT_OUT = ("is", "are", "keep", "keeps")
# The field names under which a slot's two forms appear in templates.
FORMS = {
    "event": ("event", "event_ing"),
    "complication": ("comp", "comp_short"),
    "question": ("question", "question_ing"),
    "reaction": ("reaction", "reaction_short"),
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a slot.

    wordings: pairs (template field, text); the first text is the value's name. part: of a composed
    value, the part that identifies it (`uncle` of `bossy uncle`, `40` of `40 dollars`).
    """

    slot: str
    wordings: tuple[tuple[str, str], ...]
    part: str | None = None
    heldout: bool = False

    @property
    def name(self) -> str:
        return self.wordings[0][1]


@dataclass(frozen=True, slots=True)
class Domain:
    """The slots of one subreddit (or of the news) and all values each may take."""

    name: str
    slots: tuple[str, ...]
    pools: dict[str, tuple[Value, ...]]
    amount: str = ""
    flavour: tuple[str, ...] = ()
    train: dict[str, tuple[Value, ...]] = field(init=False)
    unseen: dict[str, tuple[Value, ...]] = field(init=False)
    by_name: dict[tuple[str, str], Value] = field(init=False)

    def __post_init__(self) -> None:
        split = {
            flag: {s: tuple(v for v in p if v.heldout == flag) for s, p in self.pools.items()}
            for flag in (False, True)
        }
        names = {(slot, value.name): value for slot, pool in self.pools.items() for value in pool}
        object.__setattr__(self, "train", split[False])
        object.__setattr__(self, "unseen", split[True])
        object.__setattr__(self, "by_name", names)

    @property
    def distinct_posts(self) -> int:
        """How many different fact sheets training can draw; wording multiplies this further."""
        return prod(len(pool) for pool in self.train.values())


@dataclass(frozen=True, slots=True)
class FactSheet:
    """The facts a post is written from.

    `values` follows the domain's slots. `distractors` are (slot, other value) pairs the post
    mentions without stating them. `heldout` lists what training never shows: slots whose value is
    held out, and `wording:SLOT` for a held-out sentence.
    """

    domain: str
    values: tuple[str, ...]
    distractors: tuple[tuple[str, str], ...] = ()
    heldout: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, str]:
        return dict(zip(domains()[self.domain].slots, self.values, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "domain": self.domain,
            "facts": self.facts,
            "distractors": [list(pair) for pair in self.distractors],
            "heldout": list(self.heldout),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FactSheet":
        slots = domains()[data["domain"]].slots
        return cls(
            domain=data["domain"],
            values=tuple(data["facts"][slot] for slot in slots),
            distractors=tuple((slot, value) for slot, value in data["distractors"]),
            heldout=tuple(data["heldout"]),
        )


def fields(sheet: FactSheet) -> dict[str, str]:
    """Template field -> text, for all facts of a sheet."""
    by_name = domains()[sheet.domain].by_name
    out: dict[str, str] = {}
    for key in sheet.facts.items():
        out.update(by_name[key].wordings)
    return out


def _is_heldout(first: int, second: int) -> bool:
    return (7 * first + 3 * second) % 10 == 9


def _composed(
    slot: str, firsts: str, seconds: str, *, identity: int, holdout: bool = True
) -> Iterator[Value]:
    for i, first in enumerate(firsts.split()):
        for j, second in enumerate(seconds.split()):
            yield Value(
                slot=slot,
                wordings=((slot, f"{first} {second}"),),
                part=(first, second)[identity],
                heldout=holdout and _is_heldout(i, j),
            )


def _words(slot: str, text: str) -> Iterator[Value]:
    for part in text.split(";" if ";" in text else None):
        yield Value(slot=slot, wordings=((slot, part.strip()),))


def _phrases(slot: str, text: str) -> Iterator[Value]:
    """Parse `verb/gerund rest` or `subject verb/gerund rest` or `subject is rest`."""
    base_field, ing_field = FORMS[slot]
    for phrase in (part.strip() for part in text.split(";")):
        words = phrase.split()
        base = [word.split("/")[0] for word in words]
        if "/" in phrase:
            ing = [word.split("/")[-1] for word in words]
        else:
            verb = next(k for k, word in enumerate(words) if word in LEFT_OUT)
            ing = words[:verb] + words[verb + 1 :]
        yield Value(slot, ((base_field, " ".join(base)), (ing_field, " ".join(ing))))


def _tldr_domain(words: DomainWords, kind: str) -> Domain:
    numbers = {"money": lexicon.MONEY, "time": lexicon.TIME, "age": lexicon.AGE}[kind]
    pools = {
        "narrator": _words("narrator", lexicon.NARRATORS),
        "person": _composed("person", lexicon.PERSON_MODIFIERS, lexicon.PERSON_HEADS, identity=1),
        "setting": _composed("setting", lexicon.SETTING_MODIFIERS, words.rooms, identity=1),
        "event": _phrases("event", words.events),
        "complication": _phrases("complication", words.complications),
        "amount": _composed("amount", *numbers, identity=0),
        "feeling": _words("feeling", lexicon.FEELINGS),
        "question": _phrases("question", words.questions),
    }
    return Domain(
        words.name, SLOTS, {s: tuple(p) for s, p in pools.items()}, words.amount, words.flavour
    )


def _news_domain() -> Domain:
    news = lexicon_news
    pools = {
        "actor": _composed(
            "actor", news.ACTOR_MODIFIERS, news.ACTOR_HEADS, identity=1, holdout=False
        ),
        "place": _composed(
            "place", news.PLACE_MODIFIERS, news.PLACE_HEADS, identity=1, holdout=False
        ),
        "event": _phrases("event", news.EVENTS),
        "cause": _words("cause", news.CAUSES),
        "number": _composed("number", *news.NUMBERS, identity=0, holdout=False),
        "reaction": _phrases("reaction", news.REACTIONS),
    }
    return Domain(NEWS, NEWS_SLOTS, {slot: tuple(pool) for slot, pool in pools.items()})


@cache
def domains() -> dict[str, Domain]:
    """All domains by name; built on first use."""
    built = [_tldr_domain(words, AMOUNTS[words.amount].money) for words in lexicon.FIRST + SECOND]
    return {domain.name: domain for domain in [*built, _news_domain()]}


@cache
def subreddits() -> tuple[str, ...]:
    return tuple(name for name in domains() if name != NEWS)


def _choose_heldout(dice: Dice) -> tuple[str, ...]:
    """At least one of the kinds of held-out content, a second one now and then."""
    kinds = (*COMPOSED, "wording")
    first = dice.choose(kinds)
    chosen = {first} | {kind for kind in kinds if dice.chance(0.15)}
    return tuple(
        f"wording:{dice.choose(SLOTS)}" if k == "wording" else k for k in kinds if k in chosen
    )


def draw_sheet(
    domain: Domain, dice: Dice, *, heldout: bool = False, distracted: float = 0.4
) -> FactSheet:
    """A random sheet; `heldout` asks for at least one held-out value or wording."""
    marks = _choose_heldout(dice) if heldout else ()
    chosen = {
        slot: dice.choose(domain.unseen[slot] if slot in marks else domain.train[slot]).name
        for slot in domain.slots
    }
    distractors = []
    if dice.chance(distracted):
        for slot in dice.shuffled(domain.slots)[: 1 if dice.chance(0.7) else 2]:
            other = dice.choose(domain.train[slot]).name
            if other != chosen[slot]:
                distractors.append((slot, other))
    return FactSheet(domain.name, tuple(chosen.values()), tuple(distractors), marks)
