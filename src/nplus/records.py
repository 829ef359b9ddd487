"""JSON-lines records: what crosses the disk between stages.

Every record is a frozen dataclass; `read_records` and `write_records` move them through JSONL.
A reader's error names file, line and field.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar


class InputError(ValueError):
    """The user's input is wrong: one clear message naming file, row or key and the mend (exit
    code 2)."""


class RowError(InputError):
    """One row of the user's data is wrong; `kind` is the name that `nplus data check` has for it,
    `field` the column where it is one."""

    def __init__(self, message: str, kind: str, field: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.field = field


class StopError(RuntimeError):
    """A run ended by a rule of its own: one message that says why and what to change (exit code
    1)."""


class StorageError(OSError):
    """The disk does not take what is to be written; what stood before still stands."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query as text; `fields` are the columns its template was filled from (subreddit, title,
    post...)."""

    id: str
    query: str
    fields: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A query and the text a human wrote for it, with no leading space and no EOS (Detail A6)."""

    id: str
    query: str
    response: str
    fields: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True, slots=True)
class Dialogue(Demonstration):
    """A demonstration whose query is a rendered conversation.

    `turns`: where the assistant's earlier turns stand in it, first character to the one behind the
    token that ends the turn.
    """

    turns: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A response sampled from a policy."""

    id: str
    query: str
    response: str
    policy: str
    sample: int = 0
    temperature: float = 1.0
    tokens: int = 0
    has_eos: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to one query and which of them was preferred (OpenAI's fields kept)."""

    id: str
    query: str
    responses: tuple[str, str]
    policies: tuple[str, str]
    choice: int
    worker: str = ""
    batch: str = ""
    split: str = "train"
    confidence: int | None = None
    margin: float | None = None
    """How much better the preferred response is, where something tells: its score less the
    other's."""
    ended: tuple[bool, bool] = (True, True)
    """Whether each response ended by itself; one that was cut off has no EOS to be taught."""

    @property
    def chosen(self) -> str:
        return self.responses[self.choice]

    @property
    def rejected(self) -> str:
        return self.responses[1 - self.choice]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judged response beside its opponent: scores are the judge's, higher is better."""

    id: str
    split: str
    policy: str
    opponent: str
    response: str
    opponent_response: str
    score: float
    opponent_score: float
    tokens: int
    opponent_tokens: int


@dataclass(frozen=True, slots=True)
class Margin:
    """A reward model's score of a comparison's chosen response minus that of the other.

    `source` names the comparisons; `id` and `policies` are the comparison's.
    """

    id: str
    policies: tuple[str, str]
    margin: float
    source: str = ""
    split: str = ""
    batch: str = ""
    confidence: int | None = None


Winner = Literal["ours", "opponent", "tie", "invalid"]
"""Of a comparison: `responses[0]`, `responses[1]`, neither, or no usable answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which response of the comparison `id` a comparator prefers.

    `shown_first` ("ours" or "opponent"), `votes` (a `Winner` each) and `replies` (raw) have one
    entry a question: none where nothing is shown in an order, two where both orders are asked.
    """

    id: str
    winner: Winner
    shown_first: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()


Record = TypeVar(
    "Record", Prompt, Demonstration, Dialogue, Completion, Comparison, Judgement, Margin, Verdict
)


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """The JSON object in `path`; InputError names the file, what is wrong with it, and `mend`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}; {mend}")
    return found


def parse_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line number, object)` of a JSONL file; an `InputError` names the line that is broken."""
    for number, line in _lines(path):
        if line.strip():
            yield number, parse_line(line, f"{path}, line {number}", first=number == 1)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """`(line number, bytes)` of a file; an `InputError` where it cannot be read."""
    try:
        with path.open("rb") as lines:
            yield from enumerate(lines, 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read it ({error.strerror}); name a file that can be read"
        ) from error


SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape of half a character; two in a row are one character, one alone is none."""


def parse_line(line: bytes, where: str, *, first: bool = False) -> dict[str, Any]:
    """The object of one line, whose text is all of whole characters; `RowError` says what is wrong.

    `first`: a byte-order mark may stand before it.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
        if SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise RowError(
            f"{where}: not UTF-8 text (byte {error.start + 1} of it); save the file as UTF-8",
            "not_utf8",
        ) from error
    except UnicodeEncodeError as error:
        raise RowError(
            f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character; mend or remove the line",
            "half_character",
        ) from error
    except json.JSONDecodeError as error:
        raise RowError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
            "mend or remove the line",
            "broken_json",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise RowError(
            f"{where}: not JSON that can be read ({error}); mend or remove the line", "broken_json"
        ) from error
    if not isinstance(row, dict):
        raise RowError(
            f"{where}: expected a JSON object, found {type(row).__name__}; write one object a line",
            "not_an_object",
        )
    return row


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """All records of `kind` in a JSONL file written by `write_records`.

    InputError names file, line and field of what is damaged, for a file that is not there too.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the stage that writes it again")
    known = {f.name: str(f.type) for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    records = []
    for number, row in parse_lines(path):
        where = f"{path}, line {number}"
        if missing := needed - row.keys():
            raise InputError(f"{where}: {kind.__name__} lacks {sorted(missing)}; {_DAMAGED}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known
        }
        for name, value in values.items():
            if not _KINDS[known[name]](value):
                raise InputError(
                    f"{where}: field {name!r} is {_kind(value)}, not {known[name]}; {_DAMAGED}"
                )
        records.append(kind(**values))
    return records


_DAMAGED = "the file is damaged: remove its stage's directory and run again"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _two(kind: type) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, kind) for part in value)
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": _whole,
    "int | None": lambda value: value is None or _whole(value),
    # NaN is written as NaN and null as null: a score may be missing
    "float": lambda value: value is None or _whole(value) or isinstance(value, float),
    "float | None": lambda value: value is None or _whole(value) or isinstance(value, float),
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, str]": _two(str),
    "tuple[bool, bool]": _two(bool),
    "tuple[str, ...]": lambda value: isinstance(value, tuple),
    "tuple[tuple[int, int], ...]": lambda value: (
        isinstance(value, tuple)
        and all(isinstance(x, list) and len(x) == 2 and all(map(_whole, x)) for x in value)
    ),
    "Mapping[str, str]": lambda value: isinstance(value, dict),
    "Winner": lambda value: isinstance(value, str),
}
"""Whether a value read from JSON is one of a record's annotation."""


def write_records(path: Path, records: Iterable[Any]) -> int:
    """Write records as JSONL, aside and then renamed; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    with aside.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)
    return count


@dataclass(frozen=True, slots=True)
class Sample:
    """What a scorer judges: a prompt's id and query, the response, and its ids where known."""

    id: str
    query: str
    response: str
    tokens: tuple[int, ...] = ()
    """Response ids through EOS, of the policy's tokenizer; empty for text from elsewhere."""


class Scorer(Protocol):
    """One score a sample, higher is better: a reward model, the gold scorer, a rule..."""

    def score(self, samples: Sequence[Sample]) -> list[float]: ...
