"""Rows against the tokenizer and the limits of the config: what is cut, left out or refused, and
whether every response keeps its EOS (Details A3, A6 and A8)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nplus.config.data import CHAT_CUTS, DataConfig
from nplus.data.check.bias import LengthBias
from nplus.data.check.count import Count, RenderedCounter, TokenCounter, characters
from nplus.data.check.findings import Findings
from nplus.data.check.kinds import Severity
from nplus.data.comparisons import comparison_limits, is_news
from nplus.data.fit import Limits, Query, Raw, demonstration_limits, fit_queries
from nplus.data.sources import EOS_TEXT, RawComparison
from nplus.data.tldr import fill
from nplus.records import InputError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

MARKERS = (EOS_TEXT, "<|im_end|>", "<|eot_id|>")
"""What is looked for where no tokenizer says how it writes EOS."""
MANY = 0.1
"""Share of queries from which cutting them is a warning."""
SEAM_ROWS = 64


@dataclass(slots=True)
class Lengths:
    """Lengths of queries and responses, in tokens where there is a tokenizer."""

    findings: Findings
    data: DataConfig
    codec: Codec | None
    fitted: bool = False
    bias: LengthBias = field(default_factory=LengthBias)
    queries: array[int] = field(default_factory=lambda: array("l"))
    responses: array[int] = field(default_factory=lambda: array("l"))
    truncated: Counter[str] = field(default_factory=Counter)
    eos_lost: int = 0
    seams: int = 0
    longest: Counter[str] = field(default_factory=Counter)
    """The largest length over each limit's key."""
    count: Count = field(init=False)
    count_queries: Count = field(init=False)
    markers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.count_queries = characters
        self.markers = MARKERS
        if self.codec is not None:
            self.count = self.count_queries = TokenCounter(self.codec)
            self.markers = (str(self.codec.tokenizer.eos_token),)
            if self.codec.chat is not None:
                self.count_queries = RenderedCounter(self.codec)

    @property
    def unit(self) -> str:
        return "characters" if self.codec is None else "tokens"

    def feed(self, split: str, rows: Sequence[Raw], queries: Sequence[str], prompts: bool) -> None:
        """Rows of one split; of `prompts` there is no response."""
        lengths = self.count_queries(queries)
        self.queries.extend(lengths)
        texts = [() if prompts else _responses(row) for row in rows]
        flat = iter(self._response_lengths([text for pair in texts for text in pair]))
        for row, query, length, pair in zip(rows, queries, lengths, texts, strict=True):
            found = [next(flat) for _ in pair]
            self.responses.extend(found)
            if isinstance(row, RawComparison):
                self.bias.feed(found[row.choice], found[1 - row.choice])
            if self.codec is not None:
                self._limits(split, row, length, found)
            rendered = self.codec is not None and self.codec.chat is not None
            self._markers(split, row.where, "" if rendered else query, pair)
        self.findings.populations["queries"] += len(rows)
        self.findings.populations["responses"] += sum(map(len, texts))
        if self.codec is not None and not prompts:
            self._seams(split, rows, queries, texts)

    def _response_lengths(self, texts: Sequence[str]) -> list[int]:
        if self.codec is None:
            return self.count(texts)
        return [n + 1 for n in self.count([self.codec.response_text(text) for text in texts])]

    def _limits(self, split: str, row: Raw, query: int, responses: Sequence[int]) -> None:
        add, overlong = self.findings.add, self.data.overlong
        query_limit, limits = limits_of(row, split, self.data)
        longest = max(responses, default=0)
        if query > query_limit and not self.fitted:
            cut = self._long_query(split, row, query, query_limit, longest)
            if cut is None:
                return
            query = cut
        cut_to = self.data.max_response_tokens
        if overlong == "cut" and longest > cut_to:
            lost = sum(n > cut_to for n in responses)
            self.eos_lost += lost
            why = f"{longest} tokens with EOS, cut to data.max_response_tokens={cut_to}"
            add("eos_lost", row.where, why, split=split)
        if overlong == "cut" or self.fitted:
            return
        severity: Severity = "warning" if overlong == "drop" else "error"
        for kind, tokens, key, limit in (
            ("overlong_response", longest, limits.response_key, limits.response),
            ("overlong_length", query + longest, limits.length_key, limits.length),
        ):
            if limit is not None and tokens > limit:
                why = f"{tokens} tokens with EOS, over {key}={limit}"
                add(kind, row.where, why, split=split, severity=severity)
                self._note_longest(kind, key, tokens)

    def _long_query(
        self, split: str, row: Raw, tokens: int, limit: int, response: int
    ) -> int | None:
        """The length of a query that is cut, 0 where it does not matter; None if it is left out."""
        add, data, codec = self.findings.add, self.data, self.codec
        assert codec is not None
        why = f"{tokens} tokens, over a limit of {limit}"
        severity: Severity
        if data.truncation == "filter":
            add("filtered_query", row.where, why, split=split)
            return None
        if data.truncation == "paragraph":
            least = None if row.cut_field is None else self._least(row)
            if least is None or least > limit:
                rest = f", {least} of them without any {row.cut_field!r}"
                why += ", and a ready-made query is never cut" if least is None else rest
                severity = "warning" if data.overlong == "drop" else "error"
                add("overlong_query", row.where, why, split=split, severity=severity)
                return None
        elif data.truncation in CHAT_CUTS:
            found = fit_queries([row], codec, limit, truncation=data.truncation)[0]
            if isinstance(found, InputError):
                severity = "warning" if data.overlong == "drop" else "error"
                add("overlong_query", row.where, str(found), split=split, severity=severity)
                return None
        self.truncated[split] += 1
        add("truncated_query", row.where, why, field=row.cut_field or "", split=split)
        length = limits_of(row, split, data)[1].length
        if length is None or limit + response <= length:
            return 0
        fitted = fit_queries([row], codec, limit, truncation=data.truncation)[0]
        return fitted.tokens if isinstance(fitted, Query) else 0

    def _least(self, row: Raw) -> int:
        """Tokens of a query without the text that may be cut."""
        emptied = fill(row.template, {**row.fields, str(row.cut_field): ""}).lstrip()
        return self.count([emptied])[0]

    def _note_longest(self, kind: str, key: str, tokens: int) -> None:
        name = f"{kind} {key}"
        self.longest[name] = max(self.longest[name], tokens)
        said = f"set {key}={self.longest[name]} or more"
        dropped = self.data.overlong == "drop"
        said += " to keep what is left out now" if dropped else ", or data.overlong=drop"
        self.findings.mends[kind] = said

    def _markers(self, split: str, where: str, query: str, responses: Iterable[str]) -> None:
        for marker in self.markers:
            inside = any(marker in text for text in responses)
            if inside or marker in query:
                side = "response" if inside else "query"
                why = f"{marker!r} inside the {side}"
                self.findings.add("eos_text", where, why, field=side, split=split)

    def _seams(
        self, split: str, rows: Sequence[Raw], queries: Sequence[str], texts: Sequence[Any]
    ) -> None:
        """The first rows joined as ids and as text."""
        from nplus.data.collate import check_seam

        left = SEAM_ROWS - self.seams
        for row, query, pair in zip(rows[:left], queries, texts, strict=False):
            self.seams += 1
            assert self.codec is not None
            if query and not check_seam(self.codec, query, pair[0]):
                kind = "seam" if self.codec.chat is None else "template_rewrites"
                self.findings.add(kind, row.where, split=split)

    def finish(self) -> dict[str, Any]:
        """Lengths, the share of cut queries and of responses that keep their EOS."""
        cut, rows = self.truncated.total(), len(self.queries)
        if rows and cut / rows > MANY:
            self.findings.raise_to("warning", "truncated_query")
        found: dict[str, Any] = {
            "unit": self.unit,
            "query": summary(self.queries),
            "response": summary(self.responses),
            "truncated": None,
            "eos": None,
        }
        if self.codec is not None:
            n = len(self.responses)
            found["truncated"] = {"count": cut, "of": rows, "share": cut / rows if rows else 0.0}
            kept = n - self.eos_lost
            found["eos"] = {"kept": kept, "of": n, "share": kept / n if n else 1.0}
        return found


def _responses(row: Raw) -> tuple[str, ...]:
    return row.responses if isinstance(row, RawComparison) else (row.response,)


def limits_of(row: Raw, split: str, data: DataConfig) -> tuple[int, Limits]:
    """The most tokens of a query, and the limits of what stands behind it."""
    if isinstance(row, RawComparison):
        return comparison_limits(data, news=is_news(row))
    return data.max_query_tokens, demonstration_limits(data, split)


def summary(lengths: array[int]) -> dict[str, float] | None:
    """Mean, median, 95th percentile and the longest; None of nothing."""
    if not lengths:
        return None
    ordered = sorted(lengths)
    return {
        "mean": sum(ordered) / len(ordered),
        "median": ordered[(len(ordered) - 1) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }
