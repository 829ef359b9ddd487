"""A file, folder or hub dataset, row by row: a fault is noted, and the next row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplus.config.data import DataConfig
from nplus.data.check.rows import CHUNK, Checker, as_raw
from nplus.data.comparisons import split_of
from nplus.data.conversations import conversation_kind, dialogue, dialogue_prompt, preference
from nplus.data.files import (
    SPLIT_NAMES,
    SPLITS,
    SUFFIXES,
    check_rows,
    hub_rows,
    is_local,
    named_files,
    parquet_rows,
)
from nplus.data.fit import Raw
from nplus.data.labels import SCORES
from nplus.data.prompts import PROMPTS, QUERY, prompt, prompt_layout
from nplus.data.sources import (
    DEMONSTRATIONS,
    PREFERENCES,
    RawComparison,
    check_choice,
    comparison,
    demonstration,
    layout_of,
    recognise,
)
from nplus.data.tldr import fill, template_fields
from nplus.records import Comparison, InputError, RowError, parse_line

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

PEEK, FAR = 256, 10_000
"""Rows that tell what a file holds, and how far to look for as many that are objects."""
RECORD = ("query", "responses", "choice")
"""Columns of a run's own comparisons."""
HELD_OUT = "held_out"
"""The split of a file that one is checked against, where its name says none."""

Line = tuple[str, Mapping[str, Any] | RowError]
"""Where it stands, and the row or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file or of one split of a hub dataset."""

    name: str
    split: str
    lines: Iterable[Line]
    of_folder: bool = False


def check_source(
    source: str | Path, data: DataConfig, codec: Codec | None = None, against: Iterable[str] = ()
) -> dict[str, Any]:
    """Every row of a source looked at; the report, as JSON. InputError where there is no source.

    `against` are further sources: held out, unless their files or rows say train.
    """
    checker = Checker(data, codec)
    files = [_check(part, checker) for part in parts(source)]
    _whole(source, files, checker)
    for part in (part for other in against for part in parts(other)):
        _compare(part, checker)
    if codec is None:
        checker.findings.add("tokens_skipped", str(source))
    checker.findings.populations["files"] = len(files)
    return {"source": str(source), "files": files, **checker.report()}


def first_rows(source: str | Path, data: DataConfig) -> Iterator[Raw]:
    """The rows of a source that a run takes, in their order."""
    for part in parts(source):
        for row, _, _ in Rows(part, data, lambda where, split, error: None):
            yield row


def parts(source: str | Path) -> Iterator[Part]:
    """The files of a source, or the splits of a hub dataset; InputError where there are none."""
    path = Path(source).expanduser()
    if not is_local(source):
        for split, rows in hub_rows(str(source)).items():
            yield Part(f"{source}, split {split}", split, rows)
        return
    if path.is_dir():
        files = named_files(path)
        if not files:
            raise InputError(f"{path}: no file in it is one of {', '.join(SUFFIXES)}")
        for name, file in files:
            yield Part(str(file), SPLIT_NAMES.get(name, name), lines_of(file), of_folder=True)
        return
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; name one, or a data set of the hub")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    yield Part(str(path), SPLIT_NAMES.get(path.stem, ""), lines_of(path))


def lines_of(path: Path) -> Iterator[Line]:
    """Every row of a file, faulty ones too; InputError where it cannot be read at all."""
    if path.suffix == ".parquet":
        for number, row in enumerate(parquet_rows(path), 1):
            yield f"{path}, row {number}", row
        return
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    yield where, parse_line(line, where, first=number == 1)
                except RowError as error:
                    yield where, error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def kind_of(row: Mapping[str, Any], template: str | None = None) -> str:
    """`comparisons`, `records` (those of a run), `demonstrations` or `prompts`; "" for no known."""
    keys = row.keys()
    if {"summaries", "info"} & keys or {"chosen", "rejected"} <= keys:
        return "comparisons"
    if set(RECORD) <= keys:
        return "records"
    try:
        layout_of(row, "", template=template)
    except RowError:
        names = set(template_fields(template)) if template else None
        known = [names] if names else [set(layout.columns) for layout in PROMPTS]
        return "prompts" if any(columns <= keys for columns in known) else ""
    return "demonstrations"


def _check(part: Part, checker: Checker) -> dict[str, Any]:
    """Feed the rows of a part; what it was."""
    add = checker.findings.add
    rows = Rows(part, checker.data, checker.faulty)
    kind, ignored = rows.kind, part.of_folder and part.split not in SPLITS
    if ignored and rows.kind not in ("comparisons", "records"):
        add("not_read", part.name)
        return {"file": part.name, "split": part.split, "kind": "not read", "rows": 0}
    found = iter(rows)
    while chunk := list(islice(found, CHUNK)):
        splits: dict[str, list[Raw]] = {}
        for row, split, tie in chunk:
            splits.setdefault(split, []).append(row)
            if tie:
                add("tie", row.where, tie, split=split)
        for split, group in splits.items():
            checker.feed("comparisons" if kind == "records" else kind, split, group)
    if rows.stopped is not None:
        add("unreadable", part.name, str(rows.stopped))
    elif not rows.count:
        add("no_rows", part.name)
    return {"file": part.name, "split": part.split, "kind": kind or "unknown", "rows": rows.count}


def _compare(part: Part, checker: Checker) -> None:
    """The prompts of a part that others are checked against."""
    faults: list[str] = []
    rows = Rows(part, checker.data, lambda where, split, error: faults.append(where))
    for row, split, _ in rows:
        side = split if part.split or isinstance(row, RawComparison) else HELD_OUT
        query = fill(row.template, row.fields).lstrip()
        checker.known(side, [(query, row)])
    if faults or rows.stopped is not None or not rows.count:
        why = f"{len(faults)} rows of it are faulty and were not compared: check that file too"
        checker.findings.add("not_read", part.name, why)


def _whole(source: str | Path, files: list[dict[str, Any]], checker: Checker) -> None:
    """What is wrong with a source as a whole."""
    if is_local(source):
        read = [file["split"] for file in files if file["kind"] not in ("comparisons", "records")]
        if Path(source).expanduser().is_dir() and read and "train" not in read:
            checker.findings.add("no_train", str(source))
        return
    try:
        check_rows(str(source), {file["split"]: file["rows"] for file in files})
    except InputError as error:
        checker.findings.add("row_count", str(source), str(error))


class Rows:
    """The rows of a part that a loader takes, `(row, split, tie)`; faults are handed on.

    `kind` is what most of its first rows are; `count` how many rows were read, faulty ones too;
    `stopped` why the part could not be read to its end.
    """

    def __init__(
        self, part: Part, data: DataConfig, fault: Callable[[str, str, RowError], None]
    ) -> None:
        self.part, self.data, self.fault = part, data, fault
        self.count = 0
        self._lines = iter(part.lines)
        self._head: list[Line] = []
        self.stopped: InputError | None = None
        rows: list[tuple[str, Mapping[str, Any]]] = []
        try:
            for line in islice(self._lines, FAR):
                self._head.append(line)
                rows += [(line[0], line[1])] if isinstance(line[1], Mapping) else []
                if len(rows) == PEEK:
                    break
        except InputError as error:
            self.stopped = error
        self.kind, self._make = _maker(rows, data)

    def __iter__(self) -> Iterator[tuple[Raw, str, str]]:
        for where, row in self._all():
            self.count += 1
            if isinstance(row, RowError):
                self.fault(where, self.part.split, row)
                continue
            try:
                made = self._make(where, row, self.part.split)
                split = self.part.split
                if isinstance(made, RawComparison):
                    split = made.split if self.kind == "records" else split_of(made)
            except RowError as error:
                self.fault(where, self.part.split, error)
            else:
                yield made, split, _tie(row) if self.kind == "comparisons" else ""

    def _all(self) -> Iterator[Line]:
        yield from self._head
        if self.stopped is None:
            try:
                yield from self._lines
            except InputError as error:
                self.stopped = error


Make = Callable[[str, Mapping[str, Any], str], Raw]


def _maker(rows: Sequence[tuple[str, Mapping[str, Any]]], data: DataConfig) -> tuple[str, Make]:
    """What most of the first rows are, and how one becomes what a run reads."""
    if data.format == "chat":
        return _conversation_maker(rows)
    template, cut_field = data.template, data.cut_field
    kinds = Counter(kind_of(row, template) for _, row in rows)
    del kinds[""]
    kind = kinds.most_common(1)[0][0] if kinds else ""
    mine = [row for _, row in rows if kind_of(row, template) == kind]

    def compared(where: str, row: Mapping[str, Any], split: str) -> Raw:
        return comparison(where, row, split, template=template, cut_field=cut_field)

    def unknown(where: str, row: Mapping[str, Any], split: str) -> Raw:
        recognise((*DEMONSTRATIONS, *PREFERENCES, *PROMPTS), row, where)
        raise RowError(f"{where}: unlike the first rows, which are of no kind", "unknown_columns")

    if kind == "comparisons":
        return kind, compared
    if kind == "records":
        return kind, _record
    if kind == "":
        return kind, unknown
    find = prompt_layout if kind == "prompts" else layout_of
    layouts = Counter(find(row, "", template=template, cut_field=cut_field) for row in mine)
    layout = layouts.most_common(1)[0][0]
    make = prompt if kind == "prompts" else demonstration
    return kind, lambda where, row, split: make(where, row, layout)


CONVERSATIONS: dict[str, Make] = {
    "comparisons": preference,
    "demonstrations": lambda where, row, split: dialogue(where, row),
    "prompts": lambda where, row, split: dialogue_prompt(where, row),
    "": lambda where, row, split: dialogue(where, row),
}


def _conversation_maker(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, Make]:
    """The same of conversations; a run's own comparisons hold what was rendered before."""
    kinds = Counter(
        "records" if set(RECORD) <= row.keys() else conversation_kind(row) for _, row in rows
    )
    del kinds[""]
    kind = kinds.most_common(1)[0][0] if kinds else ""
    return kind, _record if kind == "records" else CONVERSATIONS[kind]


def _record(where: str, row: Mapping[str, Any], split: str) -> Raw:
    """A comparison as a stage of a run writes it."""
    for name in RECORD:
        if name not in row:
            message = f"{where}: no field {name!r}, found {sorted(row)}; add it or remove the row"
            raise RowError(message, "missing_field", name)
    check_choice(where, row["choice"])
    sides = row["responses"]
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(s, str) for s in sides):
        message = f"{where}: field 'responses' must hold two texts"
        raise RowError(message, "wrong_type", "responses")
    query = prompt(where, row, QUERY).fields["query"]
    confidence = row.get("confidence")
    return as_raw(
        Comparison(
            id=str(row.get("id", "")),
            query=query,
            responses=(sides[0], sides[1]),
            policies=("", ""),
            choice=int(row["choice"]),
            worker=str(row.get("worker") or ""),
            split=str(row.get("split") or split or "train"),
            batch=str(row.get("batch") or ""),
            confidence=confidence if isinstance(confidence, int) else None,
        ),
        where,
    )


def _tie(row: Mapping[str, Any]) -> str:
    """What says that neither response is better: the scores of both, where they are equal."""
    for names in SCORES:
        first, second = (row.get(name) for name in names)
        if first is not None and first == second:
            return f"{names[0]} = {names[1]} = {first!r:.20}"
    return ""
