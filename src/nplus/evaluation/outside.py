"""Completions from elsewhere, read and matched to the posts of a run (Detail H4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.records import InputError, parse_lines

TEXT_KEYS = ("completion", "response", "summary")
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Outside:
    """One completion of the file; `id` or `query` may be None, not both."""

    line: int
    id: str | None
    query: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Matched:
    """`rows` maps an index into the posts to its completion; the counts say what was left out.

    `duplicates` are rows whose post had a completion already, `other_query` rows that were matched
    by id though their query reads otherwise.
    """

    rows: Mapping[int, Outside]
    read: int
    unmatched: int
    duplicates: int
    other_query: int


def read_outside(path: Path) -> list[Outside]:
    """Every row of a JSONL file with `id` or `query` and one of `completion`, `response`,
    `summary`, cut at the EOS marker and stripped (Detail H2).

    InputError names file, line and mend for a file that is missing or empty, for broken JSON and
    for a row without a column or with a value that is not text.
    """
    if not path.is_file():
        what = "is no file that can be read" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}; name a JSONL file of completions")
    rows = [_row(row, f"{path}, line {line}", line) for line, row in parse_lines(path)]
    if not rows:
        raise InputError(f"{path}: holds no rows; each needs `id` or `query`, and `completion`")
    return rows


def _row(row: Mapping[str, Any], where: str, line: int) -> Outside:
    key = next((key for key in TEXT_KEYS if key in row), None)
    there = ", ".join(sorted(row)) or "none"
    if key is None:
        names = ", ".join(f"`{key}`" for key in TEXT_KEYS)
        raise InputError(
            f"{where}: none of the columns {names}; found {there}; rename the completion's column"
        )
    if not isinstance(row[key], str):
        raise InputError(
            f"{where}: `{key}` is text, not {type(row[key]).__name__}; mend or remove the row"
        )
    if row.get("id") is None and row.get("query") is None:
        raise InputError(
            f"{where}: neither `id` nor `query`; found {there}; add one that says which post it is"
        )
    for name, kinds in (("id", (str, int)), ("query", (str,))):
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise InputError(
                f"{where}: `{name}` is text, not {type(value).__name__}; mend or remove the row"
            )
    name, query = row.get("id"), row.get("query")
    return Outside(line, None if name is None else str(name), query, row[key].split(END)[0].strip())


def match_rows(rows: Sequence[Outside], posts: Sequence[tuple[str, str]]) -> Matched:
    """Each row to the post of its id, or else of its query text without outer spaces.

    `posts` are `(id, query)`. Where posts or rows share a query, the first counts (Detail H4); so
    does the first of several rows for one post.
    """
    ids: dict[str, int] = {}
    queries: dict[str, int] = {}
    for index, (name, query) in enumerate(posts):
        ids.setdefault(name, index)
        queries.setdefault(query.strip(), index)
    found: dict[int, Outside] = {}
    unmatched = duplicates = other_query = 0
    for row in rows:
        at = ids.get(row.id) if row.id is not None else None
        if at is not None and row.query is not None and row.query.strip() != posts[at][1].strip():
            other_query += 1
        if at is None and row.query is not None:
            at = queries.get(row.query.strip())
        if at is None:
            unmatched += 1
        elif at in found:
            duplicates += 1
        else:
            found[at] = row
    return Matched(dict(sorted(found.items())), len(rows), unmatched, duplicates, other_query)
