"""Query templates and their truncation, as OpenAI prepared TL;DR (Details A2 and A3)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from string import Formatter

from nplus.records import InputError

Encode = Callable[[str], Sequence[int]]


@lru_cache(maxsize=64)
def template_fields(template: str) -> tuple[str, ...]:
    """Names in braces, in order of appearance; InputError for a template that cannot be filled."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"data.template {template!r} is broken ({error}); a literal brace is written twice"
        ) from error
    names = [(name, spec, conversion) for _, name, spec, conversion in parsed if name is not None]
    for name, spec, conversion in names:
        if not name.isidentifier() or spec or conversion:
            raise InputError(
                f"data.template: {{{name}}} is not a column name; write names only, as in {{post}}"
            )
    return tuple(dict.fromkeys(name for name, _, _ in names))


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The template with its columns put in; braces inside a column are left alone (Detail A2)."""
    names = template_fields(template)
    if missing := [name for name in names if name not in fields]:
        raise InputError(
            f"the template needs {missing}, found columns {sorted(fields)}; change data.template"
        )
    return template.format_map({name: fields[name] for name in names})


def _longest_possible(text: str, field: str, is_over: Callable[[str], bool]) -> int:
    """A length of the field above which every prefix is over the limit.

    Where each space after a non-space starts a token, the tokens of the head up to such a space do
    not depend on what follows. So once a head alone fills the limit, everything longer is over:
    bisection finds that head. Nothing is assumed of the prefixes below.
    """
    boundaries = [m.end() - 1 for m in re.finditer(r"\S ", field)]
    found = bisect_left(boundaries, True, key=lambda end: is_over(text + field[:end]))
    return boundaries[found] if found < len(boundaries) else len(field)


def truncate_query(
    template: str,
    fields: Mapping[str, str],
    cut_field: str,
    limit: int,
    encode: Encode,
    *,
    where: str = "query",
    splits_at_spaces: bool = False,
) -> str:
    """The filled template in at most `limit` tokens, only `cut_field` being shortened (Detail A3).

    While it is too long: cut the field at its last newline, that newline included; without a
    newline drop one character; tokenise the whole again. `splits_at_spaces` (as
    `Codec.splits_at_spaces` tells) skips characters that cannot fit, with the same result. Raises
    InputError naming `where` when even an empty field leaves too many tokens.
    """

    def whole(text: str) -> str:
        return fill(template, {**fields, cut_field: text})

    field, query = fields[cut_field], whole(fields[cut_field])
    skipped = False
    while len(encode(query)) > limit:
        if not field:
            raise InputError(
                f"{where}: {len(encode(query))} tokens without any {cut_field!r}, over "
                f"data.max_query_tokens={limit}; shorten the other columns or raise the limit"
            )
        newline = field.rfind("\n")
        if newline >= 0:
            field = field[:newline]
        elif splits_at_spaces and not skipped:
            skipped = True
            # The head must be exactly what stands before the field, and the field must occur once.
            head = _head(template, fields, cut_field)
            longest = len(field)
            if head is not None:
                longest = _longest_possible(head, field, lambda text: len(encode(text)) >= limit)
            field = field[: min(longest, len(field) - 1)]
        else:
            field = field[:-1]
        query = whole(field)
    return query


def _head(template: str, fields: Mapping[str, str], cut_field: str) -> str | None:
    """What the template puts before the field; None when the field stands in it more than once."""
    before, found = "", False
    for literal, name, _, _ in Formatter().parse(template):
        if not found:
            before += literal + (fields[name] if name and name != cut_field else "")
        if name == cut_field:
            if found:
                return None
            found = True
    return before if found else None
