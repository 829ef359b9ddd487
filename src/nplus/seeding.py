"""Random numbers named by where they are used, and resumable data order.

What is drawn depends on a seed and a path of names and counters only: never on batch layout,
rank, device, or on what ran before. A path is hashed (blake2b) to the key of a counter-based
generator (Philox 4x64), so any stream can be opened at any time, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

PathPart = str | int

_LATTICE = 2.0**-52


def _encode(part: PathPart) -> bytes:
    """Type tag, length, text: no two different paths give the same bytes."""
    if isinstance(part, str):
        body, tag = part.encode(), b"s"
    elif isinstance(part, int | np.integer) and not isinstance(part, bool):
        body, tag = b"%d" % part, b"i"
    else:
        raise TypeError(f"a path is made of str and int, not {type(part).__name__}: {part!r}")
    return tag + len(body).to_bytes(4, "little") + body


def _key(seed: int, path: tuple[PathPart, ...]) -> bytes:
    encoded = b"".join([_encode(seed), *map(_encode, path)])
    return hashlib.blake2b(encoded, digest_size=16, person=b"nplus.seeding.1").digest()


def _bits(seed: int, path: tuple[PathPart, ...]) -> np.random.Philox:
    return np.random.Philox(key=np.frombuffer(_key(seed, path), dtype="<u8"))


def _open_unit(bits_U64: np.ndarray) -> np.ndarray:
    # Midpoints of 2^52 equal cells: exact in float64, so neither 0 nor 1 can come out.
    return ((bits_U64 >> np.uint64(12)).astype(np.float64) + 0.5) * _LATTICE


def name_of(seed: int, *path: PathPart) -> str:
    """The key of the stream of `(seed, *path)`, 32 hexadecimal digits: what it draws hangs on this
    alone."""
    return _key(seed, path).hex()


def stream(seed: int, *path: PathPart) -> np.random.Generator:
    """A generator of its own for `(seed, *path)`, for example `stream(seed, "split", epoch)`.

    Detail B5: what is drawn depends on names, never on the process that draws or what came before.

    Raises TypeError when the seed or a part of the path is neither str nor int.
    """
    return np.random.Generator(_bits(seed, path))


def uniforms(seed: int, *path: PathPart, n: int) -> np.ndarray:
    """[n] float64 in the open interval (0, 1); a longer request starts with the shorter one."""
    return _open_unit(_bits(seed, path).random_raw(n))


def uniform_grid(seed: int, keys: Sequence[tuple[PathPart, ...]], columns: int) -> np.ndarray:
    """[len(keys), columns] float64 in (0, 1).

    Row i depends on `(seed, keys[i])` alone and equals `uniforms(seed, *keys[i], n=columns)`;
    asking for more columns leaves the earlier ones as they are.
    """
    grid = np.empty((len(keys), columns), dtype=np.float64)
    for row, key in zip(grid, keys, strict=True):
        row[:] = uniforms(seed, *key, n=columns)
    return grid


def epoch_order(seed: int, name: str, epoch: int, n: int) -> np.ndarray:
    """[n] int64: the permutation of `range(n)` for one pass over a data set (Detail E2).

    Sorts raw 64-bit draws instead of calling `Generator.permutation`, whose algorithm numpy
    may change between versions.
    """
    if n < 1:
        raise ValueError(f"an epoch needs at least one item, not {n}")
    return np.argsort(_bits(seed, ("epoch_order", name, epoch)).random_raw(n), kind="stable")


def take(seed: int, name: str, n: int, start: int, count: int) -> np.ndarray:
    """[count] int64: items `start .. start+count` of the endless sequence of reshuffled passes.

    Detail E2: each pass holds every one of the `n` items once, in an order of its own. The
    cursor `start` is all the state there is: resuming needs nothing else.
    """
    orders = [epoch_order(seed, name, epoch, n) for epoch in _passes(n, start, count)]
    if not orders:
        return np.empty(0, dtype=np.int64)
    return np.concatenate(orders)[start % n :][:count]


def take_grouped(
    seed: int, name: str, groups: Sequence[Sequence[int]], start: int, count: int
) -> np.ndarray:
    """[count] int64: as `take` over the items of all groups, the items of a group side by side.

    Each pass reshuffles the groups; a group may straddle two requests.
    """
    sizes = np.array([len(group) for group in groups])
    n, items = int(sizes.sum()), []
    for epoch in _passes(n, start, count):
        order = epoch_order(seed, name, epoch, len(groups))
        ends = sizes[order].cumsum()
        low, high = max(0, start - epoch * n), min(n, start + count - epoch * n)
        first, last = ends.searchsorted([low, high - 1], side="right")
        skipped = low - int(ends[first] - sizes[order[first]])
        some = [item for group in order[first : last + 1] for item in groups[group]]
        items += some[skipped:][: high - low]
    return np.array(items, dtype=np.int64)


def _passes(n: int, start: int, count: int) -> range:
    """The passes over `n` items that hold the items `start .. start+count`."""
    if start < 0 or count < 0:
        raise ValueError(f"start and count are not negative: start={start}, count={count}")
    if n < 1:
        raise ValueError(f"cannot draw from {n} items")
    return range(start // n, -(-(start + count) // n))
