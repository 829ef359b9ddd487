"""People's comparisons for a reward model: read, split and measured (Details A1, A8 and A11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplus.config.data import CNNDM_TEMPLATE, DataConfig
from nplus.data.conversations import load_preferences
from nplus.data.fit import Fitted, Limits, fit, kept, refuse, require_rows, summary
from nplus.data.sources import RawComparison, load_comparisons
from nplus.data.splits import set_aside
from nplus.records import Comparison, InputError, RowError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

CNNDM_BATCHES = ("batch0_cnndm", "cnndm0", "cnndm2")
NEWS_SPLIT = "validation_cnndm"
"""News, of which no comparison was trained on: its accuracy is told apart (Detail A11)."""
LABEL_SPLITS = ("train", "valid1", "valid2", NEWS_SPLIT)
SPLIT_NAMES = {name: name for name in LABEL_SPLITS} | {"valid": "valid1", "test": "valid2"}
"""OpenAI chose models on valid1 and told final numbers on valid2."""


def is_news(row: RawComparison) -> bool:
    """Whether a comparison is of a CNN/DM article."""
    return row.batch in CNNDM_BATCHES or row.template == CNNDM_TEMPLATE


def split_of(row: RawComparison) -> str:
    """Detail A11: `train`, `valid1` or `valid2` as the row says; held-out news apart."""
    name = SPLIT_NAMES.get(row.split)
    if name is None:
        raise RowError(
            f"{row.where}: split {row.split!r} is unknown; expected one of "
            f"{', '.join(LABEL_SPLITS)}, or files named train, valid and test",
            "unknown_split",
            "split",
        )
    return NEWS_SPLIT if name != "train" and is_news(row) else name


def by_split(rows: Sequence[RawComparison], data: DataConfig) -> dict[str, list[RawComparison]]:
    """Rows by split; where none is held out, `data.valid_fraction` of the queries are valid1."""
    source = str(data.comparisons.data)
    splits: dict[str, list[RawComparison]] = {name: [] for name in LABEL_SPLITS}
    for row in rows:
        splits[split_of(row)].append(row)
    if not splits["train"]:
        raise InputError(f"{source}: no comparison is of the training split; mark some split=train")
    if len(splits["train"]) == len(rows):
        parts = set_aside(rows, ["valid"], data.valid_fraction, source)
        splits |= {"train": parts["train"], "valid1": parts["valid"]}
    return {name: part for name, part in splits.items() if part}


def fit_comparisons(
    splits: dict[str, list[RawComparison]], codec: Codec, data: DataConfig
) -> tuple[list[Comparison], dict[str, Any]]:
    """Comparisons with queries cut to length, and per split what that took.

    Raises InputError where a response, or a query with one, is longer than the config allows.
    """
    fitted = {name: _fit_split(rows, codec, data) for name, rows in splits.items()}
    refuse(list(fitted.values()), data.overlong)
    records, report = [], {}
    for name, rows in splits.items():
        stays = kept(fitted[name], data.overlong)
        require_rows(fitted[name], stays, f"{name} of {data.comparisons.data}")
        chosen = [
            (row, place) for row, place, stay in zip(rows, fitted[name], stays, strict=True) if stay
        ]
        records += [_record(row, place.query, name) for row, place in chosen]
        report[name] = {
            **summary([place for _, place in chosen], len(rows)),
            "ties": sum(row.responses[0] == row.responses[1] for row, _ in chosen),
        }
    return records, report


def comparison_limits(data: DataConfig, *, news: bool) -> tuple[int, Limits]:
    """The most tokens of a query, and the limits of what stands behind it."""
    cfg, key = data.comparisons, "data.comparisons."
    if news:
        return cfg.max_news_query_tokens, Limits(
            cfg.max_news_response_tokens,
            f"{key}max_news_response_tokens",
            cfg.max_news_length,
            f"{key}max_news_length",
        )
    return data.max_query_tokens, Limits(
        cfg.max_response_tokens, f"{key}max_response_tokens", cfg.max_length, f"{key}max_length"
    )


def _fit_split(rows: Sequence[RawComparison], codec: Codec, data: DataConfig) -> list[Fitted]:
    found: dict[int, Fitted] = {}
    for of_news in (False, True):
        query_limit, limits = comparison_limits(data, news=of_news)
        index = [at for at, row in enumerate(rows) if is_news(row) == of_news]
        part = [rows[at] for at in index]
        fitted = fit(part, codec, data, query_limit=query_limit, limits=limits)
        found |= dict(zip(index, fitted, strict=True))
    return [found[at] for at in range(len(rows))]


def _record(row: RawComparison, query: str, split: str) -> Comparison:
    return Comparison(
        id=row.id,
        query=query,
        responses=row.responses,
        policies=row.policies,
        choice=row.choice,
        worker=row.worker,
        batch=row.batch,
        split=split,
        confidence=row.confidence,
        margin=row.margin,
    )


def read_comparisons(
    source: str | Path, codec: Codec, data: DataConfig
) -> tuple[list[Comparison], int]:
    """Comparisons of a file or folder, in their own splits, with queries cut to length, and how
    many were dropped."""
    if data.format == "chat":
        rows = load_preferences(source, faulty=data.faulty)
    else:
        rows = load_comparisons(source, template=data.template, cut_field=data.cut_field)
    records = within_limits(rows, codec, data, source)
    return records, len(rows) - len(records)


def within_limits(
    rows: Sequence[RawComparison],
    codec: Codec,
    data: DataConfig,
    source: str | Path,
    positions: int | None = None,
) -> list[Comparison]:
    """Those of `rows` that fit, in order, their queries cut to `data.max_query_tokens`; with a
    response at most `positions` tokens."""
    limits = Limits(None, "", positions, "the model's positions")
    fitted = fit(rows, codec, data, query_limit=data.max_query_tokens, limits=limits)
    refuse([fitted], data.overlong)
    stays = kept(fitted, data.overlong)
    require_rows(fitted, stays, str(source))
    return [
        _record(row, place.query, row.split)
        for row, place, stay in zip(rows, fitted, stays, strict=True)
        if stay
    ]
