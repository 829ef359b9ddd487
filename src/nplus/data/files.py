"""Files, folders and hub datasets to rows by split."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nplus.config.hub import HUB_ROWS
from nplus.records import InputError, parse_lines

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLITS = ("train", "valid", "test", "valid_heldout", "test_heldout", "news", "pretrain")
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
}
TOKEN_COLUMNS = re.compile(r"_token(_len|_response_label)?$")
"""Ids of another tokenizer, in data that was prepared for one: never read, thousands a row."""

Place = tuple[str, dict[str, Any]]
"""`(where, row)`: where names file and line, or dataset and row, for messages."""


def rows_of(path: Path) -> Iterator[Place]:
    """`(where, row)` of a JSONL or Parquet file."""
    if not path.is_file():
        what = "is no file that can be read" if path.exists() else "no such file or folder"
        raise InputError(
            f"{path}: {what}; name a file of {', '.join(SUFFIXES)} or a folder of them"
        )
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: unknown kind of file; convert it to one of {', '.join(SUFFIXES)}"
        )
    if path.suffix != ".parquet":
        yield from ((f"{path}, line {n}", row) for n, row in parse_lines(path))
        return
    for number, row in enumerate(parquet_rows(path), 1):
        yield f"{path}, row {number}", row


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file without the ids of another tokenizer, some thousands at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = _texts(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            yield from batch.to_pylist()
    # ValueError: a column of texts that are no UTF-8
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({error}); write it again, or give JSONL"
        ) from error


def _texts(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if not TOKEN_COLUMNS.search(name)]


def open_source(source: str | Path) -> dict[str, list[Place]]:
    """Rows by split name; a single file is the one split `""`. InputError for what is not there.

    `source` is a JSONL or Parquet file, a folder with one file a split, or a hub dataset name, with
    `:configuration` behind it where it has several.
    """
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            splits = _folder(path)
        elif is_local(source):
            splits = {"": list(rows_of(path))}
        else:
            splits = _hub(str(source))
    except (OSError, RuntimeError) as error:  # RuntimeError: ~user without a home
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source}: cannot read it ({reason}); name another") from error
    for name, rows in splits.items():
        if not rows:
            raise InputError(f"{source}: {name or 'the file'} is empty; expected one row a line")
    return splits


def _is_path(source: str) -> bool:
    return Path(source).is_absolute() or source[:1] in (".", "~")


def every_file(path: Path, only: Container[str] | None = None) -> dict[str, list[Place]]:
    """Rows of the files in a folder and in its `data/`, by split, or by file name where that names
    none; of the files named in `only`, where it is given."""
    found: dict[str, list[Place]] = {}
    for name, file in named_files(path):
        if only is None or name in only:
            found.setdefault(SPLIT_NAMES.get(name, name), []).extend(rows_of(file))
    return found


def named_files(path: Path) -> list[tuple[str, Path]]:
    """`(name, file)` of the files with rows in a folder and in its `data/`; shards share a name."""
    return [
        (re.sub(r"-\d+-of-\d+$", "", file.stem), file)
        for file in sorted([*path.iterdir(), *path.glob("data/*")])
        if file.suffix in SUFFIXES
    ]


def is_local(source: str | Path) -> bool:
    """Whether a source means a file or folder here, and not a hub dataset."""
    path = Path(source).expanduser()
    return (
        path.exists()
        or path.suffix in SUFFIXES
        or path.is_absolute()
        or str(source)[:1] in (".", "~", "")
    )


def _folder(path: Path) -> dict[str, list[Place]]:
    splits = every_file(path, SPLIT_NAMES)
    if "train" not in splits:
        raise InputError(
            f"{path}: no file of the training split; expected train.jsonl or train.parquet "
            "(and valid and test beside it)"
        )
    return splits


def _hub(source: str) -> dict[str, list[Place]]:
    splits = {split: list(rows) for split, rows in hub_rows(source).items()}
    check_rows(source, {split: len(rows) for split, rows in splits.items()})
    return splits


def hub_rows(source: str) -> dict[str, Iterable[Place]]:
    """Rows of a hub dataset by split, without their token ids."""
    import datasets

    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, *([configuration] if configuration else []))
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source}: neither a file here nor a hub dataset that could be loaded ({reason}); "
            "check the name, or give a local file or folder"
        ) from error

    def places(split: str, rows: Any) -> Iterator[Place]:
        texts = rows.select_columns(_texts(rows.column_names))
        for number, row in enumerate(texts, 1):
            yield f"{source}, split {split}, row {number}", row

    return {SPLIT_NAMES.get(split, split): places(split, rows) for split, rows in loaded.items()}


def check_rows(source: str, found: Mapping[str, int]) -> None:
    """InputError where public data known by name has other splits or rows than it should."""
    expected = HUB_ROWS.get(source)
    if expected is None or dict(found) == expected:
        return
    raise InputError(
        f"{source}: has {_counted(found)} rows, published were {_counted(expected)} (Detail A1): "
        "the download is incomplete or the data has changed; fetch it again, or give your copy as "
        "a file or folder"
    )


def _counted(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in sorted(rows.items()))
