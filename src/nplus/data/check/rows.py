"""Rows in, a report out: what the command and the stages share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from nplus.config.data import DataConfig
from nplus.data.check import bias
from nplus.data.check.findings import Findings
from nplus.data.check.lengths import Lengths
from nplus.data.check.preview import preview
from nplus.data.check.texts import Texts, prompt_keys
from nplus.data.conversations import RawDialogue, RawPreference
from nplus.data.fit import Raw
from nplus.data.sources import RawComparison
from nplus.data.tldr import fill
from nplus.records import Comparison, RowError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

CHUNK = 2048
"""Rows that are held at a time."""
BROKEN = ("not_utf8", "half_character", "broken_json", "not_an_object")
"""Kinds of lines that are no rows, and that `data.faulty=drop` cannot leave out."""
PREVIEWS = 1
"""Rows of a kind that are shown token by token."""


@dataclass(slots=True)
class Checker:
    """Looks at rows, chunk by chunk; nothing is kept of a row but digests and lengths."""

    data: DataConfig
    codec: Codec | None = None
    fitted: bool = False
    """The rows have been cut to length: only that they keep their EOS is still to be seen."""
    findings: Findings = field(default_factory=Findings)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    texts: Texts = field(init=False)
    lengths: Lengths = field(init=False)
    faulty_rows: int = 0

    def __post_init__(self) -> None:
        self.texts = Texts(self.findings)
        self.lengths = Lengths(self.findings, self.data, self.codec, self.fitted)

    def faulty(self, where: str, split: str, error: RowError) -> None:
        """A row that a loader refuses."""
        self.faulty_rows += 1
        self.findings.populations["rows"] += 1
        left_out = self.data.faulty == "drop" and error.kind not in BROKEN
        self.findings.add(
            error.kind,
            where,
            str(error),
            field=error.field,
            split=split,
            severity="warning" if left_out else None,
        )
        self._counted(split)["faulty"] += 1

    def feed(self, kind: str, split: str, rows: Iterable[Raw]) -> None:
        """Rows of one split; `kind` is demonstrations, comparisons or prompts."""
        left = iter(rows)
        while chunk := list(islice(left, CHUNK)):
            # Detail A5: a query starts with no space.
            queries = [fill(row.template, row.fields).lstrip() for row in chunk]
            self.texts.feed(split, chunk, queries)
            if self.codec is not None and self.codec.chat is not None:
                chunk, queries = self._rendered(split, chunk)
            before = self.lengths.truncated[split]
            self.findings.populations["rows"] += len(chunk)
            self._empty(split, chunk)
            self.lengths.feed(split, chunk, queries, kind == "prompts")
            counted = self._counted(split)
            counted["rows"] += len(chunk)
            counted["truncated"] += self.lengths.truncated[split] - before
            shown = self.shown.setdefault(kind, [])
            for row, query in zip(chunk, queries, strict=True):
                if len(shown) >= PREVIEWS:
                    break
                shown.append(preview(row, query, self.codec, self.data, prompt=kind == "prompts"))

    def _rendered(self, split: str, rows: Sequence[Raw]) -> tuple[list[Raw], list[str]]:
        """Rows whose conversation the template takes, and what it makes of their prompts."""
        assert self.codec is not None
        assert self.codec.chat is not None
        found: list[tuple[Raw, str]] = []
        for row in rows:
            if not isinstance(row, RawDialogue | RawPreference):
                found.append((row, fill(row.template, row.fields)))
                continue
            texts = row.responses if isinstance(row, RawComparison) else (row.response,)
            try:
                query = self.codec.chat.prompt(row.messages, row.where)
                if isinstance(row, RawDialogue):
                    self.codec.chat.turns(row.messages, row.where)
                for text in filter(None, texts):
                    self.codec.chat.whole(row.messages, text, row.where)
            except RowError as error:
                self.faulty(row.where, split, error)
            else:
                found.append((row, query))
        return [row for row, _ in found], [query for _, query in found]

    def known(self, split: str, prompts: Iterable[tuple[str, Raw]]) -> None:
        """Prompts that are only compared with: `(query, row)`."""
        for query, row in prompts:
            self.texts.side(split, row.where, prompt_keys(row, query))

    def report(self) -> dict[str, Any]:
        """Everything found, as JSON; see `docs/guides/data.md`."""
        self.texts.finish()
        lengths = self.lengths.finish()
        found = self.lengths.bias.measure(self.lengths.unit)
        bias.judge(found, self.findings, "all pairs")
        totals = self.findings.populations
        return {
            "schema": 1,
            "ok": self.findings.total("error") == 0,
            "rows": totals["rows"],
            "faulty_rows": self.faulty_rows,
            "errors": self.findings.total("error"),
            "warnings": self.findings.total("warning"),
            "notes": self.findings.total("note"),
            "splits": {name: dict(counts) for name, counts in self.splits.items()},
            "findings": self.findings.listed(),
            "lengths": lengths,
            "length_bias": found,
            "preview": [{"kind": k, **row} for k, rows in self.shown.items() for row in rows],
        }

    def _counted(self, split: str) -> Counter[str]:
        return self.splits.setdefault(split or "all", Counter(rows=0, faulty=0, truncated=0))

    def _empty(self, split: str, rows: Sequence[Raw]) -> None:
        for row in rows:
            for side, text in enumerate(row.responses if isinstance(row, RawComparison) else ()):
                if not text.strip():
                    why = f"responses[{side}] is empty"
                    self.findings.add("empty_response", row.where, why, split=split)


def as_raw(row: Comparison, where: str) -> RawComparison:
    """A record, whose query is ready-made, as the row it could have been read from."""
    return RawComparison(
        where=where,
        id=row.id,
        template="{query}",
        cut_field=None,
        fields={"query": row.query},
        responses=(row.responses[0], row.responses[1]),
        policies=(row.policies[0], row.policies[1]),
        choice=row.choice,
        worker=row.worker,
        batch=row.batch,
        split=row.split,
        confidence=row.confidence,
        margin=row.margin,
    )
