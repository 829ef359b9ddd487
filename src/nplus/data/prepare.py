"""A data source to a folder that every stage reads: records by split, tokenizer, facts.

Everything is read and checked before anything is written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nplus.config.data import DataConfig, TokenizerConfig, WorldConfig
from nplus.data.collate import check_seam
from nplus.data.sources import (
    SPLITS,
    RawComparison,
    RawDemonstration,
    load_comparisons,
    load_demonstrations,
)
from nplus.data.splits import set_aside
from nplus.data.tldr import fill, truncate_query
from nplus.data.tokens import Codec, response_text, train_bpe
from nplus.records import Comparison, Demonstration, InputError, read_records, write_records

SEAM_ROWS = 64
VOCABULARY_ROWS = 8_000
REFERENCE_POLICY = "ref"
UNLIMITED = ("pretrain", "news")
"""Splits whose responses no policy has to end within `max_response_tokens`."""


@dataclass(frozen=True, slots=True)
class _Gathered:
    """A source as read: rows by split, files to copy as they are, texts to train a tokenizer on."""

    splits: Mapping[str, Sequence[RawDemonstration]]
    copies: Mapping[str, Path] = field(default_factory=dict)
    vocabulary: Iterable[str] | None = None


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Rows of a split cut to length, with what that took."""

    records: list[Demonstration]
    query_tokens: list[int]
    response_tokens: list[int]
    truncated: int
    dropped: int

    def summary(self) -> dict[str, Any]:
        """Counts and token lengths, EOS included in a response's."""
        rows = len(self.records)
        return {
            "rows": rows,
            "dropped": self.dropped,
            "truncated_share": self.truncated / rows,
            "query_tokens_max": max(self.query_tokens),
            "query_tokens_mean": sum(self.query_tokens) / rows,
            "response_tokens_max": max(self.response_tokens),
            "response_tokens_mean": sum(self.response_tokens) / rows,
        }


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    model_source: str | Path | None,
    out: Path,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> dict[str, Any]:
    """Fill `out` with `<split>.jsonl` of Demonstrations, `tokenizer/` and the world's facts.

    Returns `splits` (counts, token lengths, truncated share, dropped rows), `tokenizer` (size,
    required_rows), `overlap` (held-out queries that training holds too) and `seam_mismatches`.
    Bad input is an InputError before the first file is written.
    """
    with _gather(data) as gathered:
        codec = _codec(tokenizer, model_source, gathered, trust_remote_code, revision)
        fitted = {split: _fit(rows, codec, data, split) for split, rows in gathered.splits.items()}
        for split, part in fitted.items():
            write_records(out / f"{split}.jsonl", part.records)
        for target, source in gathered.copies.items():
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / target)
    codec.save(out / "tokenizer")
    sample = fitted["train"].records[:SEAM_ROWS]
    return {
        "splits": {split: part.summary() for split, part in fitted.items()},
        "tokenizer": {"size": codec.size, "required_rows": codec.required_rows},
        "overlap": _overlap(fitted),
        "seam_mismatches": sum(not check_seam(codec, d.query, d.response) for d in sample),
    }


@contextmanager
def _gather(data: DataConfig) -> Iterator[_Gathered]:
    if data.source == "files":
        if not data.data:
            raise InputError("data.data is empty: name a file, a folder or a hub dataset")
        yield _Gathered(_first_rows(_files(data), data.max_rows))
        return
    with tempfile.TemporaryDirectory(prefix="nplus-world-") as folder:
        world = _world(data.world, Path(folder))
        yield _Gathered(_first_rows(world.splits, data.max_rows), world.copies, world.vocabulary)


def _first_rows(
    splits: Mapping[str, Sequence[RawDemonstration]], max_rows: int | None
) -> dict[str, Sequence[RawDemonstration]]:
    return {**splits, "train": splits["train"][:max_rows]}


def _world(config: WorldConfig, folder: Path) -> _Gathered:
    """The embedded world, written out and read back by the adapters that read the public data."""
    from nplus.data.world.export import SPLITS as POSTS
    from nplus.data.world.export import WorldSpec, export, vocabulary_texts

    sizes: dict[str, Any] = {"train": config.train, "valid": config.valid, "test": config.test}
    sizes |= {"valid_heldout": config.heldout, "test_heldout": config.heldout}
    spec = WorldSpec(
        seed=config.seed,
        pretrain=config.pretrain,
        news=config.news,
        **sizes,
        **{f"comparisons_{split}": size for split, size in sizes.items()},
    )
    paths = export(spec, folder)
    splits = {name: load_demonstrations(paths[name])[""] for name in (*POSTS, "pretrain")}
    if config.news:
        splits["news"] = _references(load_comparisons(paths["comparisons_news"]))
    # Messages name rows after the folder is gone.
    splits = {
        name: [
            replace(row, where=row.where.replace(str(folder), "the world's data")) for row in rows
        ]
        for name, rows in splits.items()
    }
    pairs = {name: path for name, path in paths.items() if name.startswith("comparisons_")}
    copies = {
        f"comparisons/{name.removeprefix('comparisons_')}.jsonl": pairs[name] for name in pairs
    }
    if not config.news:
        copies.pop("comparisons/news.jsonl", None)
    return _Gathered(
        splits, copies | {"facts.jsonl": paths["facts"]}, vocabulary_texts(spec, VOCABULARY_ROWS)
    )


def _references(rows: Iterable[RawComparison]) -> list[RawDemonstration]:
    """The reference of each comparison that has one, as a demonstration."""
    return [
        RawDemonstration(
            where=row.where,
            id=row.id,
            template=row.template,
            cut_field=row.cut_field,
            fields=row.fields,
            response=row.responses[row.policies.index(REFERENCE_POLICY)],
        )
        for row in rows
        if REFERENCE_POLICY in row.policies
    ]


def _files(data: DataConfig) -> dict[str, Sequence[RawDemonstration]]:
    """Rows by split: those of a folder as they are, those of a single file by hash."""
    source = str(data.data)
    loaded = load_demonstrations(source, template=data.template, cut_field=data.cut_field)
    splits = {SPLITS[0] if name == "" else name: rows for name, rows in loaded.items()}
    if "train" not in splits:
        raise InputError(
            f"{source}: no training split, found {sorted(splits)}; rename one to train"
        )
    missing = [name for name in ("test", "valid") if name not in splits]
    if missing:
        splits |= set_aside(splits["train"], missing, data.valid_fraction, source)
    return {name: splits[name] for name in SPLITS if name in splits}


def _codec(
    config: TokenizerConfig,
    model_source: str | Path | None,
    gathered: _Gathered,
    trust_remote_code: bool,
    revision: str | None,
) -> Codec:
    if config.vocab_size is not None:
        texts = gathered.vocabulary or _training_texts(gathered.splits["train"])
        return train_bpe(texts, config.vocab_size, config.pad_token)
    if model_source is None:
        raise InputError("no tokenizer: set tokenizer.vocab_size to train one, or name a model")
    return Codec.load(
        model_source,
        pad_token=config.pad_token,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )


def _training_texts(rows: Iterable[RawDemonstration]) -> Iterator[str]:
    return (fill(row.template, row.fields) + response_text(row.response) for row in rows)


def fit_queries(
    rows: Sequence[RawDemonstration | RawComparison], codec: Codec, limit: int
) -> list[tuple[str, int] | InputError]:
    """`(query, tokens)` of each row, at most `limit` tokens (Detail A3), or why it cannot be."""
    fast = codec.splits_at_spaces
    fitted: list[tuple[str, int] | InputError] = []
    # Detail A5: a query starts with no space.
    filled = [fill(row.template, row.fields).lstrip() for row in rows]
    for row, query, ids in zip(rows, filled, codec.encode_queries(filled), strict=True):
        if len(ids) <= limit:
            fitted.append((query, len(ids)))
        elif row.cut_field is None:
            fitted.append(_uncut(row, len(ids), limit))
        else:
            fitted.append(_cut(row, row.cut_field, codec, limit, fast))
    return fitted


def _uncut(row: RawDemonstration | RawComparison, tokens: int, limit: int) -> InputError:
    return InputError(
        f"{row.where}: a ready-made query of {tokens} tokens, over data.max_query_tokens={limit}, "
        "is never cut; raise the limit, set data.overlong=drop, or give the original columns"
    )


def _cut(
    row: RawDemonstration | RawComparison, cut_field: str, codec: Codec, limit: int, fast: bool
) -> tuple[str, int] | InputError:
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
    return query, len(codec.encode_query(query))


def _fit(rows: Sequence[RawDemonstration], codec: Codec, data: DataConfig, split: str) -> _Fitted:
    """Rows cut to length; one that cannot fit is an error, or dropped, as `overlong` says."""
    queries = fit_queries(rows, codec, data.max_query_tokens)
    responses = [len(ids) for ids in codec.encode_responses([row.response for row in rows])]
    limit = None if split in UNLIMITED else data.max_response_tokens
    faults: list[InputError] = []
    kept: list[tuple[RawDemonstration, str, int, int]] = []
    for row, query, tokens in zip(rows, queries, responses, strict=True):
        if isinstance(query, InputError):
            faults.append(query)
        elif limit is not None and tokens > limit:
            faults.append(_overlong(row, tokens, limit, max(responses)))
        else:
            kept.append((row, *query, tokens))
    _raise_or_drop(faults, len(rows), data, split)
    return _Fitted(
        records=[
            Demonstration(row.id, query, row.response, dict(row.fields), split)
            for row, query, _, _ in kept
        ],
        query_tokens=[tokens for _, _, tokens, _ in kept],
        response_tokens=[tokens for _, _, _, tokens in kept],
        truncated=sum(
            fill(row.template, row.fields).lstrip() != query for row, query, _, _ in kept
        ),
        dropped=len(faults),
    )


def _overlong(row: RawDemonstration, tokens: int, limit: int, longest: int) -> InputError:
    # Detail A8: cut to length it would lose its EOS, and nothing downstream would see it end.
    return InputError(
        f"{row.where}: the response has {tokens} tokens with EOS, over "
        f"data.max_response_tokens={limit}; raise it (the longest has {longest}) "
        "or set data.overlong=drop"
    )


def _raise_or_drop(faults: list[InputError], rows: int, data: DataConfig, split: str) -> None:
    if faults and data.overlong == "error":
        more = f" ({len(faults)} such rows in {split})" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")
    if len(faults) == rows:
        raise InputError(f"every row of {split} was dropped; the first: {faults[0]}")


def _overlap(fitted: Mapping[str, _Fitted]) -> dict[str, int]:
    """Per held-out split: queries that the training split holds too."""
    train = {record.query for record in fitted["train"].records}
    return {
        split: sum(record.query in train for record in part.records)
        for split, part in fitted.items()
        if split not in ("train", "pretrain")
    }


def read_comparisons(
    source: str | Path, codec: Codec, data: DataConfig
) -> tuple[list[Comparison], int]:
    """Comparisons of a file or folder with queries cut to length, and how many were dropped."""
    rows = load_comparisons(source, template=data.template, cut_field=data.cut_field)
    queries = fit_queries(rows, codec, data.max_query_tokens)
    faults = [query for query in queries if isinstance(query, InputError)]
    _raise_or_drop(faults, len(rows), data, str(source))
    kept = [
        Comparison(
            id=row.id,
            query=query[0],
            responses=row.responses,
            policies=row.policies,
            choice=row.choice,
            worker=row.worker,
            batch=row.batch,
            split=row.split,
            confidence=row.confidence,
        )
        for row, query in zip(rows, queries, strict=True)
        if not isinstance(query, InputError)
    ]
    return kept, len(faults)


class DataDir:
    """Reads a folder that `prepare` filled."""

    def __init__(self, path: str | Path) -> None:
        """InputError when `path` holds no prepared data."""
        self.path = Path(path)
        if not (self.path / "tokenizer").is_dir() or not self.splits():
            raise InputError(f"{path}: not prepared data (train.jsonl and tokenizer/ are expected)")

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are there."""
        return tuple(split for split in SPLITS if (self.path / f"{split}.jsonl").is_file())

    def demonstrations(self, split: str) -> list[Demonstration]:
        """All demonstrations of a split."""
        if split not in self.splits():
            raise InputError(
                f"{self.path}: no split {split!r}; there are {', '.join(self.splits())}"
            )
        return read_records(self.path / f"{split}.jsonl", Demonstration)

    def codec(self) -> Codec:
        """The tokenizer."""
        return Codec.load(self.path / "tokenizer")

    @property
    def facts_path(self) -> Path | None:
        """The world's facts by prompt id; None for other sources."""
        path = self.path / "facts.jsonl"
        return path if path.is_file() else None

    def comparison_files(self) -> dict[str, Path]:
        """Raw comparison files by split, for `read_comparisons`."""
        return {file.stem: file for file in sorted((self.path / "comparisons").glob("*.jsonl"))}
