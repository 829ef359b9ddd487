"""One row as a model sees it: the filled template, its ids, and where each part begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nplus.config.data import DataConfig
from nplus.data.check.findings import place
from nplus.data.comparisons import comparison_limits, is_news
from nplus.data.fit import Query, Raw, fit_queries
from nplus.data.sources import RawComparison

if TYPE_CHECKING:
    from nplus.data.tokens import Codec


def preview(
    row: Raw, query: str, codec: Codec | None, data: DataConfig, *, prompt: bool
) -> dict[str, Any]:
    """A row's text, and with a tokenizer its ids, their texts and the boundaries between them.

    Texts are as the model reads them: cut to length, the response behind its one space. Of a pair
    the preferred response is shown. `response_begins` is the index of its first id, `eos` that of
    the last, or None where the response lost it.
    """
    file, number = place(row.where)
    response = row.response if not isinstance(row, RawComparison) else row.responses[row.choice]
    found: dict[str, Any] = {"file": file, "row": number, "query": query, "response": response}
    if codec is None:
        return found | {"ids": None}
    limit = data.max_query_tokens
    if isinstance(row, RawComparison):
        limit = comparison_limits(data, news=is_news(row))[0]
    whole = query
    fitted = fit_queries([row], codec, limit, truncation=data.truncation)[0]
    if isinstance(fitted, Query):
        found["query"] = query = fitted.text
    ((first, second),) = codec.encode_pairs([query], [response])
    ids = first if prompt else [*first, *second]
    found["response"] = codec.response_text(response)
    ended = not prompt and ids[-1] == codec.eos_id
    pieces = [codec.tokenizer.decode([token]) for token in ids]
    return found | {
        "ids": ids,
        "tokens": pieces,
        "query_tokens": len(first),
        "response_begins": None if prompt else len(first),
        "eos": len(ids) - 1 if ended else None,
        "eos_id": codec.eos_id,
        "cut": query != whole,
    }
