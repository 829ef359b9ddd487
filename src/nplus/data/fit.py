"""Rows against the lengths of the config: queries are cut, nothing else is (Details A3 and A8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from nplus.config.data import DataConfig
from nplus.data.conversations import Messages, RawDialogue, RawPreference
from nplus.data.history import fit_conversation
from nplus.data.sources import RawComparison, RawDemonstration
from nplus.data.tldr import fill, truncate_query
from nplus.records import InputError, RowError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

Raw = RawDemonstration | RawComparison

UNLIMITED = ("pretrain", "news")
"""Splits whose responses no policy has to end within `max_response_tokens`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens of a response, and of query and response together, with the settings' keys.

    None has no limit.
    """

    response: int | None
    response_key: str
    length: int | None
    length_key: str


def demonstration_limits(data: DataConfig, split: str) -> Limits:
    """The limits of a split of demonstrations."""
    bounded = split not in UNLIMITED
    return Limits(
        data.max_response_tokens if bounded else None,
        "data.max_response_tokens",
        data.max_length if bounded else None,
        "data.max_length",
    )


@dataclass(frozen=True, slots=True)
class Overlong:
    """A length over its limit, EOS counted: cut, the row would lose its EOS (Detail A8)."""

    where: str
    what: str
    tokens: int
    key: str
    limit: int


class Query(NamedTuple):
    """A query within its limit."""

    text: str
    tokens: int
    cut: bool = False
    messages: Messages = ()
    """What is left of a conversation."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row's query, at most as long as it may be, and lengths in tokens (EOS in a response's)."""

    query: str
    query_tokens: int
    response_tokens: tuple[int, ...]
    """One of a demonstration, two of a comparison, none of a prompt."""
    cut: bool
    faults: tuple[InputError | Overlong, ...] = ()
    filtered: bool = False
    """`data.truncation=filter` leaves it out, or `data.faulty=drop`."""
    messages: Messages = ()
    """The messages that the query was rendered from; of a text none."""

    @property
    def length(self) -> int:
        """The longest of query and response together."""
        return self.query_tokens + max(self.response_tokens, default=0)


def fit(
    rows: Sequence[Raw], codec: Codec, data: DataConfig, *, query_limit: int, limits: Limits
) -> list[Fitted]:
    """Every row measured, its query in at most `query_limit` tokens, or with what stands against
    it."""
    queries = fit_queries(rows, codec, query_limit, truncation=data.truncation)
    texts = [_responses(row) for row in rows]
    flat = iter(codec.encode_responses([text for pair in texts for text in pair]))
    found = []
    for row, query, pair in zip(rows, queries, texts, strict=True):
        tokens = tuple(len(next(flat)) for _ in pair)
        query = _joins(row, query, pair, codec)
        if isinstance(query, RowError) and codec.chat is not None and data.faulty == "drop":
            found.append(Fitted("", 0, tokens, False, filtered=True))
        elif isinstance(query, InputError):
            found.append(Fitted("", 0, tokens, False, (query,)))
        elif query is None:
            found.append(Fitted("", 0, tokens, False, filtered=True))
        else:
            whole = Fitted(query.text, query.tokens, tokens, query.cut, messages=query.messages)
            found.append(replace(whole, faults=_overlong(row.where, whole, limits)))
    return found


def _responses(row: Raw) -> tuple[str, ...]:
    """Of a comparison both; a row whose response is empty is a prompt."""
    if isinstance(row, RawComparison):
        return row.responses
    return (row.response,) if row.response else ()


def _joins(
    row: Raw, query: Query | InputError | None, responses: Sequence[str], codec: Codec
) -> Query | InputError | None:
    """The query, or for a conversation why its tokens do not begin those of the whole."""
    if codec.chat is None or not isinstance(query, Query) or not query.messages:
        return query
    try:
        if isinstance(row, RawDialogue):
            codec.chat.turns(query.messages, row.where)
        for response in responses:
            whole = codec.chat.whole(query.messages, response, row.where)
            first, second = codec.encode_pairs([query.text], [response])[0]
            if codec.encode_query(whole) != first + second and codec.rules.cut_to is None:
                raise RowError(
                    f"{row.where}: the tokenizer joins the end of the prompt, "
                    f"{query.text[-15:]!r}, with the beginning of the response, "
                    f"{response[:15]!r}, so a policy would be trained on other tokens than it is "
                    "asked with; mend the template in data.chat_template=PATH",
                    "template_rewrites",
                )
    except RowError as error:
        return error
    return query


def _overlong(where: str, row: Fitted, limits: Limits) -> tuple[Overlong, ...]:
    lengths = (
        ("response", max(row.response_tokens, default=0), limits.response_key, limits.response),
        ("query with its response", row.length, limits.length_key, limits.length),
    )
    return tuple(
        Overlong(where, what, tokens, key, limit)
        for what, tokens, key, limit in lengths
        if limit is not None and tokens > limit
    )


def fit_queries(
    rows: Sequence[Raw], codec: Codec, limit: int, *, truncation: str = "paragraph"
) -> list[Query | InputError | None]:
    """The query of each row, at most `limit` tokens (Detail A3), or why it cannot be.

    `truncation` is that of `DataConfig`; None marks a row that `filter` leaves out.
    """
    if codec.chat is not None:
        return [_fit_chat(row, codec, limit, truncation) for row in rows]
    fast = codec.splits_at_spaces
    fitted: list[Query | InputError | None] = []
    # Detail A5: a query starts with no space.
    filled = [fill(row.template, row.fields).lstrip() for row in rows]
    for row, query, ids in zip(rows, filled, codec.encode_queries(filled), strict=True):
        if len(ids) <= limit:
            fitted.append(Query(query, len(ids)))
        elif truncation == "filter":
            fitted.append(None)
        elif truncation == "tokens":
            text, tokens = _first_tokens(ids, codec, limit)
            fitted.append(Query(text, tokens, text != query))
        elif row.cut_field is None:
            fitted.append(_uncut(row, len(ids), limit))
        else:
            fitted.append(_cut(row, row.cut_field, codec, limit, fast))
    return fitted


def _fit_chat(row: Raw, codec: Codec, limit: int, truncation: str) -> Query | InputError | None:
    """A conversation rendered, within the limit; one that was rendered before is not cut."""
    if not isinstance(row, RawDialogue | RawPreference):
        query = fill(row.template, row.fields)
        return Query(query, len(codec.encode_query(query)))
    try:
        found = fit_conversation(row.messages, codec, limit, truncation, row.where)
    except InputError as error:
        return error
    if found is None:
        return None
    messages, text, tokens = found
    return Query(text, tokens, messages != row.messages, messages)


def _first_tokens(ids: list[int], codec: Codec, limit: int) -> tuple[str, int]:
    """The text of the first tokens; fewer where it does not read back in as few."""
    for count in range(limit, 0, -1):
        query = codec.decode(ids[:count])
        tokens = len(codec.encode_query(query))
        if tokens <= limit:
            return query, tokens
    raise InputError(f"no first tokens of a query read back in {limit} tokens: another tokenizer?")


def _uncut(row: Raw, tokens: int, limit: int) -> InputError:
    return InputError(
        f"{row.where}: a ready-made query of {tokens} tokens, over data.max_query_tokens={limit}, "
        "is never cut; raise the limit, set data.overlong=drop, or give the original columns"
    )


def _cut(row: Raw, cut_field: str, codec: Codec, limit: int, fast: bool) -> Query | InputError:
    try:
        query = truncate_query(
            row.template,
            row.fields,
            cut_field,
            limit,
            codec.encode,
            where=row.where,
            splits_at_spaces=fast,
        ).lstrip()
    except InputError as error:
        return error
    whole = fill(row.template, row.fields).lstrip()
    return Query(query, len(codec.encode_query(query)), query != whole)


def kept(rows: Sequence[Fitted], overlong: str) -> list[bool]:
    """Which rows stay: those without a fault; with `overlong=cut`, also those of long responses."""

    def stays(row: Fitted) -> bool:
        unfit = any(isinstance(f, InputError) for f in row.faults)
        return not (row.filtered or unfit) and (overlong == "cut" or not row.faults)

    return [stays(row) for row in rows]


def refuse(parts: Sequence[Sequence[Fitted]], overlong: str) -> None:
    """InputError for rows that do not fit, where `overlong` is not `drop` (Detail A8).

    Each setting that is too small is named with its longest row and the value that would do.
    """
    faults = [fault for rows in parts for row in rows for fault in row.faults]
    errors = [fault for fault in faults if isinstance(fault, InputError)]
    if errors and overlong != "drop":
        more = f" ({len(errors)} such rows)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    long = [fault for fault in faults if isinstance(fault, Overlong)]
    if long and overlong == "error":
        keys = dict.fromkeys(fault.key for fault in long)
        raise InputError("; ".join(_too_small([f for f in long if f.key == key]) for key in keys))


def _too_small(faults: Sequence[Overlong]) -> str:
    longest = max(faults, key=lambda fault: fault.tokens)
    also = f" and {len(faults) - 1} more are over it" if len(faults) > 1 else ""
    return (
        f"{longest.where}: the {longest.what} has {longest.tokens} tokens with EOS, over "
        f"{longest.key}={longest.limit}{also}; set {longest.key}={longest.tokens} or more, or "
        "data.overlong=drop"
    )


def require_rows(rows: Sequence[Fitted], stays: Sequence[bool], name: str) -> None:
    """InputError when nothing is left of a split."""
    if any(stays):
        return
    fault = next((fault for row in rows for fault in row.faults), None)
    why = _too_small([fault]) if isinstance(fault, Overlong) else fault
    raise InputError(f"every row of {name} was dropped; the first: {why or 'data.truncation'}")


def summary(rows: Sequence[Fitted], total: int) -> dict[str, Any]:
    """Counts and token lengths of the rows that stay of `total`, EOS included in a response's; of
    prompts nothing is told of responses."""
    queries = [row.query_tokens for row in rows]
    responses = [tokens for row in rows for tokens in row.response_tokens]
    found = {
        "rows": len(rows),
        "dropped": total - len(rows),
        "truncated_share": sum(row.cut for row in rows) / len(rows),
        "query_tokens_max": max(queries),
        "query_tokens_mean": sum(queries) / len(queries),
    }
    if not responses:
        return found
    return found | {
        "response_tokens_max": max(responses),
        "response_tokens_mean": sum(responses) / len(responses),
        "length_max": max(row.length for row in rows),
    }
