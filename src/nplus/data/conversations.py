"""Conversations: rows of messages, checked turn by turn; their text is left to a chat template.

A conversation is an optional system turn, then user and assistant in turn, the assistant last. Of
two that are compared only the last turn may differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nplus.data.files import Place, every_file, open_source
from nplus.data.labels import label_of, name_of
from nplus.data.sources import (
    RESPONSE_COLUMNS,
    RawComparison,
    RawDemonstration,
    identity,
    require_one_post_an_id,
)
from nplus.records import InputError, RowError

ROLES = ("system", "user", "assistant")
TEMPLATE, FIELD = "{conversation}", "conversation"
"""How a conversation is compared with others and shown; a model reads what its template makes."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""Whole dialogues as one text, in the manner of HH-RLHF."""
PROMPT_COLUMNS = ("prompt", "query")
CONTEXT = "context_messages"
"""A conversation without its last turn, as public collections of prompts name the column."""
MEND = "mend or remove the row, or set data.faulty=drop"


class Message(NamedTuple):
    """One turn: who speaks (`ROLES`), and what."""

    role: str
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RawDialogue(RawDemonstration):
    """A checked conversation: `messages` without the assistant's last turn, which is `response`."""

    messages: Messages = ()


@dataclass(frozen=True, slots=True)
class RawPreference(RawComparison):
    """Two checked conversations: `messages` are those they share."""

    messages: Messages = ()


Conversation = RawDialogue | RawPreference
Raw = TypeVar("Raw", RawDialogue, RawPreference)


def load_dialogues(
    source: str | Path, *, faulty: str = "error", dropped: Counter[str] | None = None
) -> dict[str, list[RawDemonstration]]:
    """Checked conversations by split, as `load_demonstrations` has them.

    A fault is a RowError naming its row; under `faulty="drop"` the row is left out and its kind
    counted in `dropped`.
    """
    found: dict[str, list[RawDemonstration]] = {}
    for split, rows in open_source(source).items():
        made = without_faulty(rows, dialogue, faulty, dropped)
        if not made:
            raise InputError(
                f"{source}: no conversation of {split or 'the file'} is without a fault; "
                "`nplus data check` names them"
            )
        require_one_post_an_id(made)
        found[split] = [*made]
    return found


def load_preferences(
    source: str | Path, *, faulty: str = "error", dropped: Counter[str] | None = None
) -> list[RawComparison]:
    """All compared conversations of a source; faults as in `load_dialogues`."""
    path = Path(source).expanduser()
    splits = (every_file(path) if path.is_dir() else {}) or open_source(source)
    return [
        row
        for split, rows in splits.items()
        for row in without_faulty(
            rows, lambda where, row, name=split: preference(where, row, name), faulty, dropped
        )
    ]


def without_faulty(
    rows: list[Place],
    make: Callable[[str, Mapping[str, Any]], Raw],
    faulty: str,
    dropped: Counter[str] | None,
) -> list[Raw]:
    """What `make` makes of the rows; the RowError of the first it refuses, unless they are dropped
    and counted by kind."""
    found = []
    for where, row in rows:
        try:
            found.append(make(where, row))
        except RowError as error:
            if faulty != "drop":
                raise
            if dropped is not None:
                dropped[error.kind] += 1
    return found


# --- rows ---------------------------------------------------------------------------------------


def dialogue(where: str, row: Mapping[str, Any]) -> RawDialogue:
    """One row of `messages`, or of a prompt and the assistant's turn; RowError says what is
    wrong."""
    if "messages" in row:
        turns = read_turns(where, "messages", row["messages"])
    else:
        name = next((name for name in RESPONSE_COLUMNS if name in row), None)
        if name is None or not any(column in row for column in PROMPT_COLUMNS):
            raise _unknown(where, row, "messages; prompt and completion; query and response")
        turns = _whole(where, row, name)
    check_turns(where, "messages" if "messages" in row else name or "", turns)
    text = plain(turns[:-1])
    return RawDialogue(
        where=where,
        id=identity(row, text),
        template=TEMPLATE,
        cut_field=None,
        fields={FIELD: text},
        response=turns[-1].content,
        messages=turns[:-1],
    )


def dialogue_prompt(where: str, row: Mapping[str, Any]) -> RawDialogue:
    """One row without a response: a conversation whose last turn is the user's."""
    names = ("messages", CONTEXT, *PROMPT_COLUMNS)
    name = next((name for name in names if name in row), None)
    if name is None:
        raise _unknown(where, row, "; ".join(names))
    turns = _prompt_turns(where, row[name], name)
    # What an assistant would add makes it whole.
    check_turns(where, name, (*turns, Message("assistant", "...")))
    text = plain(turns)
    return RawDialogue(
        where, identity(row, text), TEMPLATE, None, {FIELD: text}, "", messages=turns
    )


def preference(where: str, row: Mapping[str, Any], split: str = "") -> RawPreference:
    """One row of `chosen` and `rejected`: conversations, dialogues as text, or responses to a
    `prompt`; RowError says what is wrong."""
    for name in ("chosen", "rejected"):
        if name not in row:
            raise _unknown(where, row, "chosen and rejected, and prompt where these lack it")
    chosen, rejected = (_whole(where, row, name) for name in ("chosen", "rejected"))
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        check_turns(where, name, turns)
    if len(chosen) != len(rejected):
        raise RowError(
            f"{where}: 'chosen' has {len(chosen)} turns, 'rejected' {len(rejected)}; they may "
            f"differ in the last turn alone: {MEND}",
            "unequal_turns",
        )
    for at, (ours, theirs) in enumerate(zip(chosen[:-1], rejected[:-1], strict=True)):
        if ours != theirs:
            raise RowError(
                f"{where}: 'chosen' and 'rejected' differ in turn {at + 1} of {len(chosen)}, and "
                f"may in the last alone: {MEND}",
                "history_differs",
            )
    text = plain(chosen[:-1])
    return RawPreference(
        where=where,
        id=identity(row, text),
        template=TEMPLATE,
        cut_field=None,
        fields={FIELD: text},
        responses=(chosen[-1].content, rejected[-1].content),
        policies=(
            name_of(where, row, "chosen_policy", "chosen"),
            name_of(where, row, "rejected_policy", "rejected"),
        ),
        choice=0,
        **label_of(where, row, split or "train"),
        messages=chosen[:-1],
    )


def conversation_kind(row: Mapping[str, Any]) -> str:
    """`comparisons`, `demonstrations` or `prompts`, by the columns; "" for no known."""
    if {"chosen", "rejected"} <= row.keys():
        return "comparisons"
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        spoken = isinstance(last, Mapping) and last.get("role") == "user"
        return "prompts" if spoken else "demonstrations"
    if "messages" in row:
        return "demonstrations"
    if CONTEXT in row:
        return "prompts"
    if not any(name in row for name in PROMPT_COLUMNS):
        return ""
    answered = any(name in row for name in RESPONSE_COLUMNS)
    return "demonstrations" if answered else "prompts"


# --- turns --------------------------------------------------------------------------------------


def read_turns(where: str, name: str, value: Any) -> Messages:
    """The turns of a column: a list of objects with role and content, or a dialogue as text."""
    if isinstance(value, str) and SPEAKER.match(value):
        _, *parts = SPEAKER.split(value)
        return tuple(
            Message(SPEAKERS[speaker], text.strip())
            for speaker, text in zip(parts[::2], parts[1::2], strict=True)
        )
    if not isinstance(value, list):
        raise RowError(
            f"{where}: field {name!r} is {_kind(value)}, expected a list of "
            f"{{role, content}} or a dialogue that begins '\\n\\nHuman:'; {MEND}",
            "wrong_type",
            name,
        )
    return tuple(_message(where, f"{name}[{at}]", turn) for at, turn in enumerate(value))


def _message(where: str, name: str, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(
            f"{where}: field {name!r} is {_kind(turn)}, expected an object with role and "
            f"content; {MEND}",
            "wrong_type",
            name,
        )
    for key in ("role", "content"):
        if key not in turn:
            raise RowError(
                f"{where}: no field '{name}.{key}', found {sorted(turn)}; {MEND}",
                "missing_field",
                f"{name}.{key}",
            )
        if not isinstance(turn[key], str):
            raise RowError(
                f"{where}: field '{name}.{key}' is {_kind(turn[key])}, expected text; {MEND}",
                "wrong_type",
                f"{name}.{key}",
            )
    if turn["role"] not in ROLES:
        raise RowError(
            f"{where}: field '{name}.role' is {turn['role']!r:.40}, expected one of "
            f"{', '.join(ROLES)}; {MEND}",
            "unknown_role",
            f"{name}.role",
        )
    # Detail A6: an assistant's text has no spaces around it.
    text = turn["content"].strip() if turn["role"] == "assistant" else turn["content"]
    return Message(turn["role"], text)


def check_turns(where: str, name: str, turns: Messages) -> None:
    """RowError unless `turns` are a conversation that the assistant ends."""
    for at, turn in enumerate(turns):
        if not turn.content.strip():
            raise _fault(where, name, f"turn {at + 1} ({turn.role}) is empty", "empty_turn")
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for before, after in pairwise(spoken):
        if before.role == after.role or "system" in (before.role, after.role):
            why = f"{after.role} after {before.role}: user and assistant have to alternate"
            raise _fault(where, name, why, "roles_alternate")
    if not spoken:
        raise _fault(where, name, "no turn of a user", "no_assistant_turn")
    if len(spoken) % 2:
        why = f"{len(spoken)} turns of user and assistant, an odd number"
        raise _fault(where, name, why, "odd_turns")
    if spoken[-1].role != "assistant":
        raise _fault(where, name, "the last turn is the user's", "no_assistant_turn")


def plain(turns: Messages) -> str:
    """A conversation as text to compare and to show, of no template."""
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _whole(where: str, row: Mapping[str, Any], name: str) -> Messages:
    """A column's conversation, with that of the prompt before it where it begins with none."""
    value = row[name]
    if isinstance(value, str) and not SPEAKER.match(value):
        turns: Messages = (Message("assistant", value.strip()),)
    else:
        turns = read_turns(where, name, value)
    if turns and turns[0].role != "assistant":
        return turns
    column = next((column for column in PROMPT_COLUMNS if row.get(column) is not None), None)
    if column is None:
        return turns
    return _prompt_turns(where, row[column], column) + turns


def _prompt_turns(where: str, value: Any, name: str) -> Messages:
    if isinstance(value, str) and not SPEAKER.match(value):
        return (Message("user", value),)
    turns = read_turns(where, name, value)
    # A dialogue as text ends with the cue for the turn that follows.
    open_cue = isinstance(value, str) and turns[-1] == Message("assistant", "")
    return turns[:-1] if open_cue else turns


def _fault(where: str, name: str, why: str, kind: str) -> RowError:
    return RowError(f"{where}: field {name!r}: {why}; {MEND}", kind, name)


def _unknown(where: str, row: Mapping[str, Any], accepted: str) -> RowError:
    return RowError(
        f"{where}: found columns {sorted(row)}, which are no conversation; accepted are: "
        f"{accepted}. Rename columns, or set data.format=text",
        "unknown_columns",
    )


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
