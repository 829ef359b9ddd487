"""A data source to a folder that every stage reads: records by split, tokenizer, facts.

Everything is read and checked before anything is written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nplus.config.data import DataConfig, TokenizerConfig, WorldConfig
from nplus.data.collate import check_seam
from nplus.data.comparisons import by_split, fit_comparisons, read_comparisons
from nplus.data.conversations import load_dialogues, load_preferences
from nplus.data.files import SPLITS
from nplus.data.fit import (
    Fitted,
    demonstration_limits,
    fit,
    kept,
    refuse,
    require_rows,
    summary,
)
from nplus.data.sources import (
    RawComparison,
    RawDemonstration,
    load_comparisons,
    load_demonstrations,
)
from nplus.data.splits import set_aside
from nplus.data.tldr import fill
from nplus.data.tokens import Codec, response_text, train_bpe
from nplus.records import (
    Comparison,
    Demonstration,
    Dialogue,
    InputError,
    read_records,
    write_records,
)

__all__ = ["DataDir", "Inspect", "prepare", "read_comparisons"]

Inspect = Callable[
    [Mapping[str, Sequence[RawDemonstration]], Mapping[str, list[RawComparison]], Codec], None
]
"""Looks at demonstrations and comparisons by split; what it raises stops the preparation."""

SEAM_ROWS = 64
VOCABULARY_ROWS = 8_000
REFERENCE_POLICY = "ref"
LABELLED = "labelled.jsonl"


@dataclass(frozen=True, slots=True)
class _Gathered:
    """A source as read: rows by split, files to copy as they are, texts to train a tokenizer on."""

    splits: Mapping[str, Sequence[RawDemonstration]]
    copies: Mapping[str, Path] = field(default_factory=dict)
    vocabulary: Iterable[str] | None = None
    comparisons: Mapping[str, list[RawComparison]] = field(default_factory=dict)
    """People's, by split."""
    faulty: Mapping[str, int] = field(default_factory=dict)
    """Conversations that `data.faulty=drop` has left out, by kind of fault."""


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    model_source: str | Path | None,
    out: Path,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    inspect: Inspect | None = None,
) -> dict[str, Any]:
    """Fill `out` with `<split>.jsonl` of Demonstrations, `tokenizer/`, the world's facts, and
    `labelled.jsonl` of people's comparisons where there are some.

    Returns `splits` (counts, token lengths, truncated share, dropped rows), `tokenizer` (size,
    required_rows), `overlap` (held-out queries that training holds too), `seam_mismatches` and
    `comparisons`, like `splits`; of conversations also `chat` (the token that ends a turn, and rows
    left out by kind of fault). Bad input is an InputError before the first file is written, a
    length constant smaller than the data too (Detail A8). `inspect` is shown the rows before that,
    in their splits but not yet cut to length.
    """
    with _gather(data) as gathered:
        codec = _codec(tokenizer, model_source, gathered, trust_remote_code, revision)
        codec = codec.for_data(data, tokenizer.pad_token)
        records, report = _demonstrations(gathered.splits, codec, data)
        labelled, labels = fit_comparisons(dict(gathered.comparisons), codec, data)
        if inspect is not None:
            inspect(gathered.splits, gathered.comparisons, codec)
        for split, part in records.items():
            write_records(out / f"{split}.jsonl", part)
        for target, source in gathered.copies.items():
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / target)
    if labelled:
        write_records(out / LABELLED, labelled)
    codec.save(out / "tokenizer")
    sample = records["train"][:SEAM_ROWS]
    found = {} if codec.chat is None else {"chat": _told(codec, gathered.faulty)}
    return {
        **found,
        "splits": report,
        "tokenizer": {"size": codec.size, "required_rows": codec.required_rows},
        "overlap": _overlap(records),
        "seam_mismatches": sum(not check_seam(codec, d.query, d.response) for d in sample),
        "comparisons": labels,
    }


def _told(codec: Codec, faulty: Mapping[str, int]) -> dict[str, Any]:
    """What conversations came to: the token that ends a turn, and rows left out by fault."""
    assert codec.chat is not None
    return {"end_of_turn": codec.chat.end, "eos_id": codec.eos_id, "faulty": dict(faulty)}


@contextmanager
def _gather(data: DataConfig) -> Iterator[_Gathered]:
    if data.source == "files":
        if not data.data:
            raise InputError("data.data is empty: name a file, a folder or a hub dataset")
        faulty: Counter[str] = Counter()
        splits = _first_rows(_files(data, faulty), data.max_rows)
        yield _Gathered(splits, comparisons=_labelled(data, faulty), faulty=faulty)
        return
    with tempfile.TemporaryDirectory(prefix="nplus-world-") as folder:
        world = _world(data.world, Path(folder))
        yield replace(
            world,
            splits=_first_rows(world.splits, data.max_rows),
            comparisons=_labelled(data),
        )


def _labelled(
    data: DataConfig, faulty: Counter[str] | None = None
) -> dict[str, list[RawComparison]]:
    source = data.comparisons.data
    if source is None:
        return {}
    if data.format == "chat":
        return by_split(load_preferences(source, faulty=data.faulty, dropped=faulty), data)
    rows = load_comparisons(source, template=data.template, cut_field=data.cut_field)
    return by_split(rows, data)


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
        # Of training posts the label stage makes comparisons, from the policy's own samples.
        **{f"comparisons_{split}": size for split, size in sizes.items() if split != "train"},
        comparisons_train=0,
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
    for empty in ("train",) if config.news else ("train", "news"):
        copies.pop(f"comparisons/{empty}.jsonl")
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


def _files(data: DataConfig, faulty: Counter[str]) -> dict[str, Sequence[RawDemonstration]]:
    """Rows by split: those of a folder as they are, those of a single file by hash."""
    source = str(data.data)
    if data.format == "chat":
        loaded = load_dialogues(source, faulty=data.faulty, dropped=faulty)
    else:
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


def _demonstrations(
    splits: Mapping[str, Sequence[RawDemonstration]], codec: Codec, data: DataConfig
) -> tuple[dict[str, list[Demonstration]], dict[str, Any]]:
    """Records and summary by split; a row that does not fit is an error, or dropped."""
    fitted = {split: _fit(rows, codec, data, split) for split, rows in splits.items()}
    refuse(list(fitted.values()), data.overlong)
    records, report = {}, {}
    for split, rows in splits.items():
        stays = kept(fitted[split], data.overlong)
        require_rows(fitted[split], stays, split)
        chosen = [
            (row, place)
            for row, place, stay in zip(rows, fitted[split], stays, strict=True)
            if stay
        ]
        records[split] = [_record(row, place, split, codec) for row, place in chosen]
        report[split] = summary([place for _, place in chosen], len(rows))
    return records, report


def _record(row: RawDemonstration, place: Fitted, split: str, codec: Codec) -> Demonstration:
    made = row.id, place.query, row.response, dict(row.fields), split
    if codec.chat is None:
        return Demonstration(*made)
    return Dialogue(*made, turns=codec.chat.turns(place.messages, row.where))


def _fit(
    rows: Sequence[RawDemonstration], codec: Codec, data: DataConfig, split: str
) -> list[Fitted]:
    limits = demonstration_limits(data, split)
    return fit(rows, codec, data, query_limit=data.max_query_tokens, limits=limits)


def _overlap(splits: Mapping[str, Sequence[Demonstration]]) -> dict[str, int]:
    """Per held-out split: queries that the training split holds too."""
    train = {record.query for record in splits["train"]}
    return {
        split: sum(record.query in train for record in part)
        for split, part in splits.items()
        if split not in ("train", "pretrain")
    }


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
        return read_records(self._file(split), Demonstration)

    def dialogues(self, split: str) -> list[Dialogue]:
        """All conversations of a split, with where the assistant speaks."""
        return read_records(self._file(split), Dialogue)

    def _file(self, split: str) -> Path:
        if split not in self.splits():
            raise InputError(
                f"{self.path}: no split {split!r}; there are {', '.join(self.splits())}"
            )
        return self.path / f"{split}.jsonl"

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

    def labelled(self) -> list[Comparison]:
        """People's comparisons; InputError when the data came without any."""
        path = self.path / LABELLED
        if not path.is_file():
            raise InputError(f"{self.path}: no comparisons; name some in data.comparisons.data")
        return read_records(path, Comparison)
