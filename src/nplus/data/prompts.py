"""Prompts without responses: read, known by their columns, cut to length, each kept once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplus.config.data import CNNDM_TEMPLATE, POST_TEMPLATE, TLDR_TEMPLATE, DataConfig
from nplus.data.conversations import dialogue_prompt, without_faulty
from nplus.data.files import every_file, open_source
from nplus.data.fit import Limits, fit, kept, refuse, require_rows, summary
from nplus.data.sources import (
    Layout,
    RawDemonstration,
    fields_of,
    identity,
    recognise,
    require_one_post_an_id,
)
from nplus.data.tldr import template_fields
from nplus.records import Demonstration, InputError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

QUERY = Layout(("query",), "{query}", None, "", ("query",))
PROMPTS = (
    Layout(("subreddit", "title", "post"), TLDR_TEMPLATE, "post", "", ("post",)),
    Layout(("post",), POST_TEMPLATE, "post", "", ("post",)),
    Layout(("article",), CNNDM_TEMPLATE, "article", "", ("article",)),
    QUERY,
    Layout(("prompt",), "{prompt}", None, "", ("prompt",)),
)
SPLIT = "prompts"
UNBOUNDED = Limits(None, "", None, "")
"""Only the query of a prompt has a limit."""


def prompt_layout(
    row: Mapping[str, Any], where: str, *, template: str | None = None, cut_field: str | None = None
) -> Layout:
    """The layout of a prompt, by the given template or else by its columns."""
    if template is None:
        return recognise(PROMPTS, row, where)
    names = template_fields(template)
    cut = cut_field or (names[0] if len(names) == 1 else None)
    return Layout(names, template, cut, "", (cut,) if cut else ())


def prompt(where: str, row: Mapping[str, Any], layout: Layout) -> RawDemonstration:
    """One row without a response, checked like a demonstration."""
    fields = fields_of(where, row, layout)
    name = identity(row, *fields.values())
    return RawDemonstration(where, name, layout.template, layout.cut_field, fields, "")


def load_prompts(source: str, data: DataConfig, dropped: Counter[str]) -> list[RawDemonstration]:
    """Checked prompts of a file, of every file of a folder or of every split of a hub dataset.

    The first row's columns tell the layout of all. A fault is a RowError naming its row; of
    conversations it is counted in `dropped` where `data.faulty` says so.
    """
    path = Path(source).expanduser()
    splits = (every_file(path) if path.is_dir() else {}) or open_source(source)
    rows = [row for part in splits.values() for row in part]
    found: list[RawDemonstration] = []
    if data.format == "chat":
        found += without_faulty(rows, dialogue_prompt, data.faulty, dropped)
    elif rows:
        where, first = rows[0]
        layout = prompt_layout(first, where, template=data.template, cut_field=data.cut_field)
        found += [prompt(where, row, layout) for where, row in rows]
    if not found:
        raise InputError(f"{source}: no prompt in it; expected one row a line, without a fault")
    require_one_post_an_id(found)
    return found


def fit_prompts(
    rows: Sequence[RawDemonstration], codec: Codec, data: DataConfig
) -> tuple[list[Demonstration], dict[str, Any]]:
    """Prompts as a model reads them, in at most `data.max_query_tokens`, and what to tell of them.

    A prompt that stands there again, before or after it was cut, is left out: rounds that draw
    from different rows draw different prompts. One that does not fit is an InputError, or dropped.
    """
    fitted = fit(rows, codec, data, query_limit=data.max_query_tokens, limits=UNBOUNDED)
    refuse([fitted], data.overlong)
    stays = kept(fitted, data.overlong)
    require_rows(fitted, stays, "the prompts")
    found = {}
    for row, place, stay in zip(rows, fitted, stays, strict=True):
        if stay and place.query not in found:
            record = Demonstration(row.id, place.query, "", dict(row.fields), SPLIT)
            found[place.query] = record, place
    told = summary([place for _, place in found.values()], len(rows))
    return [record for record, _ in found.values()], told
