"""Rows to demonstrations and comparisons, recognised by their columns (Detail A1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nplus.config.data import CNNDM_TEMPLATE, POST_TEMPLATE, TLDR_TEMPLATE
from nplus.data.files import Place, every_file, open_source
from nplus.data.labels import label_of, name_of
from nplus.data.tldr import template_fields
from nplus.records import InputError, RowError

RESPONSE_COLUMNS = ("summary", "highlights", "reference_response", "response", "completion")
EOS_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class RawDemonstration:
    """A checked row whose query is not cut to length yet; `cut_field` None: it must not be cut."""

    where: str
    id: str
    template: str
    cut_field: str | None
    fields: Mapping[str, str]
    response: str


@dataclass(frozen=True, slots=True)
class RawComparison:
    """A checked comparison, its query not yet cut to length, its texts without leading space."""

    where: str
    id: str
    template: str
    cut_field: str | None
    fields: Mapping[str, str]
    responses: tuple[str, str]
    policies: tuple[str, str]
    choice: int
    worker: str = ""
    batch: str = ""
    split: str = "train"
    confidence: int | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns by which a kind of data is known, and what is done with them."""

    columns: tuple[str, ...]
    template: str
    cut_field: str | None
    response: str
    required: tuple[str, ...] = field(default=())
    """Columns that may not be blank, beside the response."""


DEMONSTRATIONS = (
    Layout(("subreddit", "title", "post", "summary"), TLDR_TEMPLATE, "post", "summary", ("post",)),
    Layout(("post", "summary"), POST_TEMPLATE, "post", "summary", ("post",)),
    Layout(("article", "highlights"), CNNDM_TEMPLATE, "article", "highlights", ("article",)),
    Layout(("article", "summary"), CNNDM_TEMPLATE, "article", "summary", ("article",)),
    Layout(("query", "reference_response"), "{query}", None, "reference_response", ("query",)),
    Layout(("query", "response"), "{query}", None, "response", ("query",)),
    Layout(("prompt", "completion"), "{prompt}", None, "completion", ("prompt",)),
    Layout(("text",), "", None, "text"),
)
PREFERENCES = (
    Layout(("query", "chosen", "rejected"), "{query}", None, "chosen", ("query",)),
    Layout(("prompt", "chosen", "rejected"), "{prompt}", None, "chosen", ("prompt",)),
)


def load_demonstrations(
    source: str | Path, *, template: str | None = None, cut_field: str | None = None
) -> dict[str, list[RawDemonstration]]:
    """Checked rows by split (`""` for a single file), recognised by their columns (Detail A1).

    A fault is an InputError naming its row.
    """
    return {
        split: demonstrations(rows, template=template, cut_field=cut_field)
        for split, rows in open_source(source).items()
    }


def demonstrations(
    rows: list[Place], *, template: str | None = None, cut_field: str | None = None
) -> list[RawDemonstration]:
    """Checked demonstrations; the first row's columns tell the layout of all."""
    where, first = rows[0]
    layout = layout_of(first, where, template=template, cut_field=cut_field)
    found = [demonstration(place, row, layout) for place, row in rows]
    require_one_post_an_id(found)
    return found


def require_one_post_an_id(rows: Sequence[RawDemonstration]) -> None:
    """RowError where two posts have one id, by which scores, noise and splits go; a post may stand
    there again, with another summary or the same."""
    seen: dict[str, RawDemonstration] = {}
    for row in rows:
        first = seen.setdefault(row.id, row)
        same = first.fields == row.fields and (row.fields or first.response == row.response)
        if not same:
            raise RowError(
                f"{row.where}: id {row.id[:80]!r} is that of another post too ({first.where}); "
                "give each post an id of its own, or leave the column out",
                "duplicate_id",
                "id",
            )


def layout_of(
    row: Mapping[str, Any], where: str, *, template: str | None = None, cut_field: str | None = None
) -> Layout:
    """The layout of a demonstration, by the given template or else by its columns."""
    if template is None:
        return recognise(DEMONSTRATIONS, row, where)
    return _explicit(template, cut_field, row, where)


def recognise(layouts: tuple[Layout, ...], row: Mapping[str, Any], where: str) -> Layout:
    """The first layout whose columns are all there; `RowError` lists them."""
    for layout in layouts:
        if set(layout.columns) <= row.keys():
            return layout
    accepted = "; ".join(", ".join(layout.columns) for layout in layouts)
    raise RowError(
        f"{where}: found columns {sorted(row)}, which match no known data; accepted are: "
        f"{accepted}. Rename columns, or name them in data.template",
        "unknown_columns",
    )


def _explicit(template: str, cut_field: str | None, row: Mapping[str, Any], where: str) -> Layout:
    names = template_fields(template)
    response = next((c for c in RESPONSE_COLUMNS if c in row and c not in names), None)
    if response is None:
        raise RowError(
            f"{where}: no column with the reference text, found {sorted(row)}; "
            f"name it one of {', '.join(RESPONSE_COLUMNS)}",
            "unknown_columns",
        )
    if not names:
        raise InputError("data.template names no column: write one in braces, as in {post}")
    if cut_field is None:
        cut_field = next((n for n in ("post", "article") if n in names), None)
        cut_field = names[0] if cut_field is None and len(names) == 1 else cut_field
    if cut_field not in names:
        raise InputError(
            f"data.cut_field={cut_field!r} is not in the template; name one of {', '.join(names)}"
        )
    return Layout((*names, response), template, cut_field, response, (cut_field,))


def demonstration(where: str, row: Mapping[str, Any], layout: Layout) -> RawDemonstration:
    """One row, checked; `RowError` says what is wrong with it."""
    fields = fields_of(where, row, layout)
    response = _prose(where, row, layout.response)
    return RawDemonstration(
        where=where,
        id=identity(row, *fields.values(), "" if layout.required else response),
        template=layout.template,
        cut_field=layout.cut_field,
        fields=fields,
        response=response,
    )


def fields_of(where: str, row: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """The columns of a row's template; `RowError` for one that is missing or must not be blank."""
    fields = {name: _text(where, row, name) for name in template_fields(layout.template)}
    for name in layout.required:
        if not fields[name].strip():
            raise _empty(where, name)
    return fields


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise RowError(
            f"{where}: no field {name!r}, found {sorted(row)}; add it or remove the row",
            "missing_field",
            name,
        )
    value = row[name]
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise RowError(
            f"{where}: field {name!r} is {kind}, expected text; mend or remove the row",
            "wrong_type",
            name,
        )
    return value


def _prose(where: str, row: Mapping[str, Any], name: str) -> str:
    """A response: no spaces around it (Detail A6), no marker of a pre-tokenised column's end."""
    text = _text(where, row, name).strip()
    if name in ("reference_response", "chosen", "rejected"):
        text = text.removesuffix(EOS_TEXT).rstrip()
    if not text:
        raise _empty(where, name)
    return text


def _empty(where: str, name: str) -> RowError:
    message = f"{where}: field {name!r} is empty; fill it in or remove the row"
    return RowError(message, "empty_field", name)


def identity(row: Mapping[str, Any], *texts: str) -> str:
    """The row's own id, or one made of its text."""
    own = row.get("id")
    if isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip():
        return str(own)
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()


def load_comparisons(
    source: str | Path, *, template: str | None = None, cut_field: str | None = None
) -> list[RawComparison]:
    """All comparisons of a source: OpenAI's schema, or `prompt`, `chosen`, `rejected`.

    `template` and `cut_field` stand in for the TL;DR template of OpenAI's rows with a post. Every
    fault is an InputError naming its row. Rows keep their split and batch, so that accuracy can be
    told for each (Detail A11).
    """
    # OpenAI names its files after batches, not splits: of a folder, every file is read.
    path = Path(source).expanduser()
    splits = (every_file(path) if path.is_dir() else {}) or open_source(source)
    return [
        comparison(where, row, split, template=template, cut_field=cut_field)
        for split, rows in splits.items()
        for where, row in rows
    ]


def comparison(
    where: str,
    row: Mapping[str, Any],
    split: str = "",
    *,
    template: str | None = None,
    cut_field: str | None = None,
) -> RawComparison:
    """One row of any known schema, checked; `RowError` says what is wrong with it."""
    if "summaries" in row or "info" in row:
        return _openai(where, row, template, cut_field)
    return _preference(where, row, split or "train")


def _openai(
    where: str, row: Mapping[str, Any], template: str | None, cut_field: str | None
) -> RawComparison:
    info = _part(where, row, "info", dict)
    sides = _part(where, row, "summaries", list)
    choice = row.get("choice")
    if len(sides) != 2 or not all(isinstance(side, dict) for side in sides):
        message = (
            f"{where}: field 'summaries' must hold two objects with 'text'; mend or remove the row"
        )
        raise RowError(message, "wrong_type", "summaries")
    check_choice(where, choice)
    layout = _query_layout(info, template, cut_field)
    fields = fields_of(f"{where}, info", info, layout)
    # A policy that ends at once has written an empty text, and people have compared it.
    texts = [
        _text(f"{where}, summaries[{i}]", side, "text").strip() for i, side in enumerate(sides)
    ]
    return RawComparison(
        where=where,
        id=identity(info, *fields.values()),
        template=layout.template,
        cut_field=layout.cut_field,
        fields=fields,
        responses=(texts[0], texts[1]),
        policies=(name_of(where, sides[0], "policy"), name_of(where, sides[1], "policy")),
        choice=int(choice),
        **label_of(where, row),
    )


def check_choice(where: str, choice: Any) -> None:
    """`RowError` unless it is 0 or 1."""
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowError(
            f"{where}: field 'choice' is {choice!r:.40}, expected 0 or 1; mend or remove the row",
            "wrong_value",
            "choice",
        )


def _query_layout(info: Mapping[str, Any], template: str | None, cut_field: str | None) -> Layout:
    if info.get("article") is not None and info.get("post") is None:
        return Layout(("article",), CNNDM_TEMPLATE, "article", "text", ("article",))
    if template is None:
        return Layout(("subreddit", "title", "post"), TLDR_TEMPLATE, "post", "text", ("post",))
    cut = cut_field or "post"
    if cut not in template_fields(template):
        raise InputError(f"data.cut_field={cut!r} is not in the template {template!r}")
    return Layout(template_fields(template), template, cut, "text", (cut,))


def _part(where: str, row: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(row.get(name), kind):
        raise RowError(
            f"{where}: no field {name!r} of OpenAI's comparisons (info, summaries, choice), "
            f"found {sorted(row)}; mend or remove the row",
            "wrong_type" if row.get(name) is not None else "missing_field",
            name,
        )
    return row[name]


def _preference(where: str, row: Mapping[str, Any], split: str) -> RawComparison:
    if {"chosen", "rejected"} <= row.keys() and not {"prompt", "query"} & row.keys():
        row = _explicit_prompt(where, row)
    layout = recognise(PREFERENCES, row, where)
    fields = fields_of(where, row, layout)
    return RawComparison(
        where=where,
        id=identity(row, *fields.values()),
        template=layout.template,
        cut_field=None,
        fields=fields,
        responses=(_prose(where, row, "chosen"), _prose(where, row, "rejected")),
        policies=(
            name_of(where, row, "chosen_policy", "chosen"),
            name_of(where, row, "rejected_policy", "rejected"),
        ),
        choice=0,
        **label_of(where, row, split),
    )


def _explicit_prompt(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The shared prompt of two dialogues that differ in the assistant's last turn (HH-RLHF)."""
    chosen, rejected = _text(where, row, "chosen"), _text(where, row, "rejected")
    turn = "\n\nAssistant:"
    end = chosen.rfind(turn) + len(turn)
    if turn not in chosen or chosen[:end] != rejected[:end]:
        raise RowError(
            f"{where}: 'chosen' and 'rejected' share no prompt that ends in {turn!r}; "
            "give a column 'prompt'",
            "no_shared_prompt",
        )
    return {**row, "prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
