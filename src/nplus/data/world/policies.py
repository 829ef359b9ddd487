"""Scripted policies: what a comparison sets against a reference."""

import re

import numpy as np

from nplus.data.world.dice import Dice
from nplus.data.world.facts import FactSheet, domains
from nplus.data.world.gold import judge_mentions
from nplus.data.world.grammar import DETERMINERS, recogniser, tokenise
from nplus.data.world.writers import other_value

LEAD_WORDS = 25
CORRUPTIONS = ("swap", "drop", "repeat", "shuffle", "truncate")
_AFTER_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_AFTER_CLAUSE = re.compile(r"(?<=[.?!,;])\s+")


def lead(post: str, most: int = LEAD_WORDS) -> str:
    """The first sentences of the post, as many as fit `most` words; at least one."""
    sentences = _AFTER_SENTENCE.split(post.strip())
    out = [sentences[0]]
    for sentence in sentences[1:]:
        if len(" ".join([*out, sentence]).split()) > most:
            break
        out.append(sentence)
    return " ".join(out)


def minimal_swap(
    sheet: FactSheet, text: str, rng: np.random.Generator | Dice
) -> tuple[str, str] | None:
    """The text with exactly one rightly stated fact replaced, and that fact's slot.

    None if no fact is stated exactly once.
    """
    dice = rng if isinstance(rng, Dice) else Dice(rng)
    domain, find = domains()[sheet.domain], recogniser(sheet.domain)
    tokens = tokenise(text)
    mentions = find.mentions(tokens)
    covered, wrong = judge_mentions(sheet, mentions)
    for mention in dice.shuffled([m for m in mentions if m.whole and m.slot in covered]):
        other = other_value(sheet, mention.slot, dice)
        words = dict(domain.by_name[mention.slot, other].wordings)[mention.field]
        old = dict(domain.by_name[mention.slot, mention.value].wordings)[mention.field]
        start = mention.start
        # A determiner before the match belongs to the wording (`the vet is closed`) or to the
        # sentence (`a nurse`).
        if (
            old.split()[0] in DETERMINERS
            and mention.first
            and tokens[mention.first - 1].text in DETERMINERS
        ):
            start = tokens[mention.first - 1].start
        swapped = text[:start] + words + text[mention.end :]
        right, now_wrong = judge_mentions(sheet, find.mentions(tokenise(swapped)))
        if set(covered) - set(right) == {mention.slot} and set(now_wrong) - set(wrong) == {
            (mention.slot, other)
        }:
            return swapped, mention.slot
    return None


def _finish(text: str) -> str:
    text = text.rstrip(" ,;")
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _drop(text: str, dice: Dice) -> str:
    parts = _AFTER_CLAUSE.split(text)
    if len(parts) == 1:
        return _truncate(text, dice)
    parts.pop(int(dice.unit() * len(parts)))
    return _finish(" ".join(parts))


def _repeat(text: str, dice: Dice) -> str:
    parts = _AFTER_CLAUSE.split(text)
    at = int(dice.unit() * len(parts))
    return _finish(" ".join([*parts[: at + 1], *parts[at:]]))


def _shuffle(text: str, dice: Dice) -> str:
    return _finish(" ".join(dice.shuffled(text.rstrip(".?!").split())))


def _truncate(text: str, dice: Dice) -> str:
    words = text.split()
    keep = max(1, int(len(words) * (0.4 + 0.4 * dice.unit())))
    return " ".join(words[:keep]).rstrip(".,;?!")


def corrupt(
    sheet: FactSheet, text: str, rng: np.random.Generator | Dice, kind: str | None = None
) -> str:
    """The text made worse by one of `CORRUPTIONS`, drawn unless named.

    Raises ValueError for an unknown kind. A swap shuffles a text that states no fact.
    """
    dice = rng if isinstance(rng, Dice) else Dice(rng)
    kind = kind or dice.choose(CORRUPTIONS)
    if kind == "swap":
        swapped = minimal_swap(sheet, text, dice)
        return swapped[0] if swapped else _shuffle(text, dice)
    simple = {"drop": _drop, "repeat": _repeat, "shuffle": _shuffle, "truncate": _truncate}
    if kind not in simple:
        raise ValueError(f"unknown corruption {kind!r}; known: {CORRUPTIONS}")
    return simple[kind](text, dice)
