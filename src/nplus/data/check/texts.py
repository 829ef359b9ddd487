"""Rows against rows: duplicates, labels that conflict, held-out prompts that stand in training.

Texts are compared as their digests, so that the memory of a row is some hundred bytes.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from nplus.data.check.findings import Findings
from nplus.data.fit import Raw
from nplus.data.sources import RawComparison

TRAINING = ("", "train")
"""Splits that are trained on. Pretraining text is not counted, as in `prepare`'s own overlap."""
LONG_ENOUGH = 40
"""Characters from which a post alone, whatever its title, is the same prompt again."""
DIGEST = 16
Key = bytes


def digest(text: str) -> Key:
    """Of a text without regard to case, white space and Unicode's spellings of one character."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _hash(" ".join(text.casefold().split()).encode())


def _hash(data: bytes) -> Key:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def prompt_keys(row: Raw, query: str) -> tuple[Key, ...]:
    """The keys of a prompt: the filled query, and the post alone where it is long enough to be
    known by. A row of bare text has none."""
    keys = (digest(query),) if query else ()
    text = row.fields.get(row.cut_field, "") if row.cut_field else ""
    return (*keys, digest(text)) if len(text) >= LONG_ENOUGH else keys


@dataclass(slots=True)
class Texts:
    """All prompts, rows and pairs so far, by digest."""

    findings: Findings
    rows: dict[Key, str] = field(default_factory=dict)
    prompts: dict[Key, str] = field(default_factory=dict)
    ids: dict[str, tuple[Key, str]] = field(default_factory=dict)
    pairs: dict[Key, tuple[bool, str]] = field(default_factory=dict)
    train: dict[Key, str] = field(default_factory=dict)
    held: list[tuple[tuple[Key, ...], str, str]] = field(default_factory=list)

    def feed(self, split: str, rows: Sequence[Raw], queries: Sequence[str]) -> None:
        """Rows of one split, and their filled queries."""
        for row, query in zip(rows, queries, strict=True):
            keys = prompt_keys(row, query)
            self.side(split, row.where, keys)
            if isinstance(row, RawComparison):
                self._pair(split, row, keys[0] if keys else b"")
            else:
                again = self._again(split, row.where, keys[:1], digest(row.response))
                if not again and keys:
                    self._prompt(split, row.where, keys[0])
                self._id(split, row, keys[0] if keys else digest(row.response))

    def side(self, split: str, where: str, keys: tuple[Key, ...]) -> None:
        """A prompt that is trained on, or held out."""
        if split in TRAINING:
            for key in keys:
                self.train.setdefault(key, where)
        elif split != "pretrain":
            self.held.append((keys, where, split))

    def finish(self) -> None:
        """Name the held-out rows whose prompt is trained on."""
        self.findings.populations["held-out rows"] = len(self.held)
        for keys, where, split in self.held:
            found = next((self.train[key] for key in keys if key in self.train), None)
            if found is not None:
                self.findings.add("leakage", where, f"also {found}", split=split)

    def _again(self, split: str, where: str, prompt: tuple[Key, ...], *parts: Key) -> bool:
        first = self.rows.setdefault(_hash(b"".join([split.encode(), *prompt, *parts])), where)
        if first != where:
            self.findings.add("duplicate_row", where, f"the same as {first}", split=split)
        return first != where

    def _prompt(self, split: str, where: str, key: Key) -> None:
        first = self.prompts.setdefault(_hash(split.encode() + key), where)
        if first != where:
            self.findings.add("duplicate_prompt", where, f"that of {first}", split=split)

    def _id(self, split: str, row: Raw, key: Key) -> None:
        first = self.ids.setdefault(row.id, (key, row.where))
        if first[0] != key:
            why = f"id {row.id!r:.60} also names another text in {first[1]}"
            self.findings.add("duplicate_id", row.where, why, field="id", split=split)

    def _pair(self, split: str, row: RawComparison, prompt: Key) -> None:
        add, found = self.findings.add, self.findings.populations
        found["pairs"] += 1
        if row.responses[0] == row.responses[1]:
            add("identical_pair", row.where, f"both are {row.responses[0]!r:.60}", split=split)
        if row.confidence == 5:
            add("tie", row.where, "confidence 5", field="extra.confidence", split=split)
        sides = [digest(text) for text in row.responses]
        chosen = sides[row.choice]
        # Another worker's label of the same pair is another opinion, and no duplicate.
        self._again(split, row.where, (prompt,), *sorted(sides), chosen, row.worker.encode())
        if sides[0] == sides[1]:
            return
        first = chosen == min(sides)
        known, where = self.pairs.setdefault(
            _hash(b"".join([prompt, *sorted(sides)])), (first, row.where)
        )
        if known != first:
            add("conflicting_label", row.where, f"{where} prefers the other", split=split)
