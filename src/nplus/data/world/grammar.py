"""Clauses of summaries by slot, the recogniser of values, and the runs of words the world uses."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from string import Formatter

from nplus.data.world import lexicon_news, wordings
from nplus.data.world.facts import FORMS, NEWS, Domain, domains

DETERMINERS = frozenset(("a", "an", "the", "my", "our"))
_TOKEN = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")
_SLOT_OF_FIELD = {name: slot for slot, names in FORMS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Clauses:
    """Clause templates of a domain; `subject` is told with the event, `place` hangs on them."""

    story: dict[str, tuple[str, ...]]
    main: dict[str, tuple[str, ...]]
    tied: dict[str, tuple[str, ...]]
    subject: str
    place: str


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a punctuation mark in lower case, and where it stands in the text."""

    text: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum() or self.text[0] == "'"


@dataclass(frozen=True, slots=True)
class Mention:
    """A recognised wording: characters `start:end` and tokens `first:last` of the text.

    `whole` is False for the identifying part of a composed value alone (`uncle` for `bossy uncle`);
    then `value` is that part and `field` is empty.
    """

    slot: str
    value: str
    field: str
    whole: bool
    start: int
    end: int
    first: int
    last: int


@cache
def clauses(name: str) -> Clauses:
    if name == NEWS:
        return Clauses(
            lexicon_news.STORY_MAIN, lexicon_news.MAIN, lexicon_news.TIED, "actor", "place"
        )
    amount = wordings.AMOUNTS[domains()[name].amount]
    main = {**wordings.MAIN, "amount": amount.main}
    tied = {**wordings.TIED, "amount": amount.tied}
    return Clauses(wordings.STORY_MAIN, main, tied, "person", "setting")


def tokenise(text: str) -> list[Token]:
    return [Token(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(text.lower())]


def _key(text: str) -> str:
    return " ".join(t.text for t in tokenise(text) if t.text not in DETERMINERS)


class Recogniser:
    """Finds a domain's values in a text; case and determiners do not matter, the longest wins."""

    def __init__(self, domain: Domain):
        self._phrases: dict[str, tuple[str, str, str, bool]] = {}
        for pool in domain.pools.values():
            for value in pool:
                for name, text in value.wordings:
                    self._add(_key(text), (value.slot, value.name, name, True))
                if value.part:
                    self._add(value.part, (value.slot, value.part, "", False))
        self._firsts = {key.split()[0] for key in self._phrases}
        self._longest = max(len(key.split()) for key in self._phrases)

    def _add(self, key: str, entry: tuple[str, str, str, bool]) -> None:
        known = self._phrases.setdefault(key, entry)
        if known[:2] != entry[:2]:
            raise ValueError(f"{key!r} could mean {known[:2]} or {entry[:2]}")

    def mentions(self, tokens: list[Token]) -> list[Mention]:
        """All mentions from left to right, without overlap; none crosses a punctuation mark."""
        out: list[Mention] = []
        content = [i for i, token in enumerate(tokens) if token.text not in DETERMINERS]
        at = 0
        while at < len(content):
            hit = (
                self._match(tokens, content, at)
                if tokens[content[at]].text in self._firsts
                else None
            )
            if hit is None:
                at += 1
                continue
            length, entry = hit
            first, last = content[at], content[at + length - 1]
            out.append(Mention(*entry, tokens[first].start, tokens[last].end, first, last + 1))
            at += length
        return out

    def _match(
        self, tokens: list[Token], content: list[int], at: int
    ) -> tuple[int, tuple[str, str, str, bool]] | None:
        words = [tokens[i].text for i in content[at : at + self._longest]]
        for length in range(len(words), 0, -1):
            entry = self._phrases.get(" ".join(words[:length]))
            if entry is not None:
                return length, entry
        return None


@cache
def recogniser(name: str) -> Recogniser:
    return Recogniser(domains()[name])


def segments(tokens: list[str]) -> Iterator[list[str]]:
    """The words between punctuation marks, determiners left out, with `^` and `$` at the ends."""
    words: list[str] = []
    for token in [*tokens, "."]:
        if token[0].isalnum() or token[0] in "'<":
            if token not in DETERMINERS:
                words.append(token)
        elif words:
            yield ["^", *words, "$"]
            words = []


def _abstract(template: str) -> list[str]:
    """Tokens of a template, `<slot>` standing for a value."""
    out: list[str] = []
    for text, name, _, _ in Formatter().parse(template):
        out.extend(token.text for token in tokenise(text))
        if name:
            out.append(f"<{_SLOT_OF_FIELD.get(name, name)}>")
    return out


def _post_templates(name: str) -> Iterator[str]:
    if name == NEWS:
        yield from (t for options in lexicon_news.ARTICLE.values() for t in options)
        yield from lexicon_news.PADDING
        return
    domain = domains()[name]
    tables = (wordings.SENTENCES, wordings.DISTRACTORS)
    yield from (t for table in tables for options in table.values() for t in options)
    for options in (wordings.STORY, wordings.PERSON, wordings.THEY, wordings.FEELING_QUESTION):
        yield from options
    yield from (*wordings.SMALL_TALK, *wordings.CLOSINGS, *domain.flavour)
    yield from wordings.AMOUNTS[domain.amount].post


def _body(template: str) -> list[str]:
    """The words of a clause, without determiners and closing mark."""
    return next(segments(_abstract(template)))[1:-1]


def _clause_runs(name: str) -> Iterator[list[str]]:
    """Clauses of summaries in all the company they can have: alone, tied, and joined by `and`."""
    table = clauses(name)
    main = [t for part in (table.story, table.main) for options in part.values() for t in options]
    tied = [t for options in table.tied.values() for t in options]
    firsts = sorted({_body(t)[0] for t in tied} | {"and", "$"})
    for template in (*main, *tied):
        body = _body(template)
        yield ["^", *body, "$"]
        if len(body) == 1:
            yield from ([before, *body, after] for before in ("^", "and") for after in firsts)
        if not template.endswith("?"):
            yield from (["^", *body, *_body(follower), "$"] for follower in tied)
            yield from (["^", *body, "and", *_body(follower), "$"] for follower in main)


@cache
def word_triples(name: str) -> frozenset[tuple[str, str, str]]:
    """All runs of three words or slots inside a segment that a post or a summary can hold."""
    lone = (*_post_templates(name), *wordings.FILLERS)
    runs = [words for template in lone for words in segments(_abstract(template))]
    runs.extend(_clause_runs(name))
    return frozenset(triple for run in runs for triple in zip(run, run[1:], run[2:], strict=False))
