"""A single file's rows to train, valid and test, with no post on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from nplus.data.sources import RawComparison, RawDemonstration
from nplus.data.tldr import fill
from nplus.records import InputError

Row = TypeVar("Row", RawDemonstration, RawComparison)


def set_aside(
    rows: Sequence[Row], names: Sequence[str], fraction: float, source: str
) -> dict[str, list[Row]]:
    """Shares of about `fraction` of the rows for `names`, the rest for `train`, by hash of the id.

    Rows of one id or of one text stay together, so no post is on both sides. Adding rows moves no
    other row, unless a share would be empty without it.
    """
    groups = _groups(rows)
    order = sorted(set(groups), key=_unit)
    if len(order) <= len(names) or fraction * len(names) >= 1:
        raise InputError(
            f"{source}: {len(order)} different posts cannot be split into train, "
            f"{', '.join(names)} with data.valid_fraction={fraction}; "
            "give more rows, or a folder with a file each"
        )
    home = dict.fromkeys(order, "train")
    for i, name in enumerate(names):
        inside = [g for g in order if i * fraction <= _unit(g) < (i + 1) * fraction]
        free = [g for g in order if home[g] == "train"]
        home |= dict.fromkeys([g for g in inside if home[g] == "train"] or free[:1], name)
    if "train" not in home.values():
        raise InputError(f"{source}: no row is left to train on; lower data.valid_fraction")
    parts: dict[str, list[Row]] = {name: [] for name in ("train", *names)}
    for row, group in zip(rows, groups, strict=True):
        parts[home[group]].append(row)
    return parts


def _groups(rows: Sequence[Row]) -> list[str]:
    """A name per row; rows that share an id or a text, directly or through others, share it."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = []
    for row in rows:
        text = row.fields.get(row.cut_field or "", "") or fill(row.template, row.fields)
        if not text and isinstance(row, RawDemonstration):
            text = row.response
        words = " ".join(text.split())
        # "id" sorts before "text", and the smaller root wins: a group is named after an id.
        pair = sorted((root(f"id {row.id}"), root(f"text {words}")))
        parent[pair[1]] = pair[0]
        keys.append(f"id {row.id}")
    return [root(key) for key in keys]


def _unit(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
