"""Weights on disk, looked at before they are loaded: whole, safetensors, inside their directory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nplus.records import InputError, read_object

ONE, MANY = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.ckpt")
PICKLED, PICKLED_MANY = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The only pickles that `model.allow_pickle` reads."""
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses a longer one."""
MEND = "point to a directory written by a finished stage or by save_pretrained"


def require_weights(path: Path, *, allow_pickle: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a model's directory, by name; none of a pickle's are known.

    Raises InputError for a directory without config.json or weights, for weights that are cut short
    or damaged, for a name that leads out of the directory, and for pickles unless `allow_pickle`.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; {MEND}")
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no config.json; this is not a model directory; {MEND}")
    config = read_object(path / "config.json", MEND)
    # A config may name its weights; else transformers takes these, in this order.
    named = config.get("transformers_weights")
    candidates = [ONE, MANY] if named is None else [_inside(path, named, path / "config.json")]
    found = next((path / name for name in candidates if (path / name).is_file()), None)
    if found is None:
        _refuse_pickle(path, allow_pickle)
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in [found] if found.suffix != ".json" else _shards(found):
        shapes |= tensor_shapes(file)
    return shapes


def _refuse_pickle(path: Path, allowed: bool) -> None:
    """InputError unless the directory holds pickled weights that the user wants read."""
    pickles = sorted(file.name for kind in PICKLES for file in path.glob(kind))
    if not pickles:
        raise InputError(f"{path}: holds a config.json but no weights ({ONE}); {MEND}")
    if not allowed:
        raise InputError(
            f"{path}: holds its weights only as a pickle ({pickles[0]}), which can run code when "
            "it is read; save them as safetensors (save_pretrained does), or set "
            "model.allow_pickle=true if you trust their author"
        )
    if (path / PICKLED_MANY).is_file() and PICKLED not in pickles:
        _shards(path / PICKLED_MANY, suffix=".bin")
    elif PICKLED not in pickles:
        raise InputError(f"{path}: no weights that can be read ({ONE} or {PICKLED}); {MEND}")


def _shards(index: Path, suffix: str = ".safetensors") -> list[Path]:
    """The files that an index names, each inside its directory."""
    names = read_object(index, MEND).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: no weight_map, so no weights; {MEND}")
    shards = []
    for name in dict.fromkeys(map(str, names.values())):
        file = index.parent / _inside(index.parent, name, index)
        if file.suffix != suffix:
            raise InputError(f"{index}: names {name!r}, which is no {suffix} file; {MEND}")
        if not file.is_file():
            raise InputError(f"{file}: no such file, though {index.name} names it; copy it there")
        shards.append(file)
    return shards


def _inside(folder: Path, name: object, source: Path) -> str:
    """`name`, where it is that of a file in `folder` itself."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.-]*", name):
        raise InputError(f"{source}: names {name!r} for weights, no file of {folder}; {MEND}")
    return name


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name from a safetensors header, which is held against the size of the file."""
    try:
        with file.open("rb") as data:
            size = file.stat().st_size
            length = int.from_bytes(data.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise InputError(f"{file}: cut short, or no safetensors file; {_AGAIN}")
            header = json.loads(data.read(length))
        shapes, end = _shapes(header)
    except OSError as error:
        raise InputError(f"{file}: cannot read it ({error.strerror}); {_AGAIN}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: its safetensors header is damaged; {_AGAIN}") from error
    if size != 8 + length + end:
        raise InputError(
            f"{file}: {size:,} bytes, where its header says {8 + length + end:,}: it is cut short "
            f"or damaged; {_AGAIN}"
        )
    if not shapes:
        raise InputError(f"{file}: holds no tensors; {_AGAIN}")
    try:
        with safe_open(file, framework="pt"):  # kinds of numbers, overlaps, gaps
            return shapes
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: its safetensors header is damaged ({error}); {_AGAIN}"
        ) from error


_AGAIN = "copy or save the weights again"


def _shapes(header: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes by name, and where the last tensor ends."""
    tensors = {name: row for name, row in header.items() if name != "__metadata__"}
    shapes = {name: tuple(int(size) for size in row["shape"]) for name, row in tensors.items()}
    ends = [int(row["data_offsets"][1]) for row in tensors.values()]
    return shapes, max(ends, default=0)
