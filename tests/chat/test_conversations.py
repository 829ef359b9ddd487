"""Rows of messages: what is taken, and each reason for which one is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from talk import turns

from nplus.data.conversations import (
    Message,
    dialogue,
    dialogue_prompt,
    load_dialogues,
    load_preferences,
    preference,
)
from nplus.records import InputError, RowError

HH = "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: Why?\n\nAssistant:"
HH_FILE = Path(__file__).parents[3] / "shared/data/hh_harmless.jsonl"


def test_a_conversation_is_its_turns_and_the_last_answer() -> None:
    row = dialogue("f, line 1", {"messages": turns("a", "b", "c", " d \n", system="s")})
    assert [m.role for m in row.messages] == ["system", "user", "assistant", "user"]
    assert (row.messages[-1].content, row.response) == ("c", "d")
    assert row.fields["conversation"] == "system: s\n\nuser: a\n\nassistant: b\n\nuser: c"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": " So."},
        {"query": "Why?", "response": "So. "},
        {"prompt": turns("Why?"), "completion": turns("Why?", "So.")[1:]},
    ],
)
def test_prompts_with_an_answer_are_conversations(row: dict[str, object]) -> None:
    made = dialogue("f", row)
    assert (made.messages, made.response) == ((Message("user", "Why?"),), "So.")


@pytest.mark.parametrize(
    "row",
    [{"prompt": "Why?"}, {"prompt": turns("Why?")}, {"messages": turns("Why?")}],
)
def test_prompts_alone(row: dict[str, object]) -> None:
    made = dialogue_prompt("f", row)
    assert (made.messages, made.response) == ((Message("user", "Why?"),), "")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": turns("a", "b", "c", "x"), "rejected": turns("a", "b", "c", "y")},
        # the prompt again beside whole conversations, as in UltraFeedback's binarised form
        {"prompt": "c", "chosen": turns("a", "b", "c", "x"), "rejected": turns("a", "b", "c", "y")},
        {
            "prompt": turns("a", "b", "c"),
            "chosen": turns("", "x")[1:],
            "rejected": turns("", "y")[1:],
        },
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: y",
        },
        {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": "x"}
        | {"rejected": "y"},
    ],
)
def test_pairs_share_all_but_the_last_turn(row: dict[str, object]) -> None:
    made = preference("f", row)
    assert [m.content for m in made.messages] == ["a", "b", "c"]
    assert (made.responses, made.choice, made.split) == (("x", "y"), 0, "train")


A = {"role": "assistant", "content": "b"}
U = {"role": "user", "content": "a"}

FAULTS = [
    ({"messages": "hello"}, "wrong_type", "'messages' is str, expected a list"),
    ({"messages": [U, "b"]}, "wrong_type", r"'messages\[1\]' is str, expected an object"),
    ({"messages": [U, {"role": "assistant"}]}, "missing_field", r"no field 'messages\[1\].content"),
    ({"messages": [U, {**A, "content": None}]}, "wrong_type", "content' is null, expected text"),
    ({"messages": [U, {**A, "role": "bot"}]}, "unknown_role", "'bot', expected one of system"),
    ({"messages": [U, {**A, "content": " \n"}]}, "empty_turn", r"turn 2 \(assistant\) is empty"),
    ({"messages": [U, U, A, A]}, "roles_alternate", "user after user"),
    ({"messages": [U, A, {**U, "role": "system"}, A]}, "roles_alternate", "system after assistant"),
    ({"messages": [U, A, U]}, "odd_turns", "3 turns"),
    ({"messages": [A, U]}, "no_assistant_turn", "last turn is the user's"),
    ({"messages": []}, "no_assistant_turn", "no turn of a user"),
    ({"posts": "x"}, "unknown_columns", r"found columns \['posts'\]"),
]


@pytest.mark.parametrize(
    ("row", "kind", "says"), FAULTS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_each_fault_has_its_reason(row: dict[str, object], kind: str, says: str) -> None:
    with pytest.raises(RowError, match=says) as found:
        dialogue("rows.jsonl, line 7", row)
    assert found.value.kind == kind
    assert str(found.value).startswith("rows.jsonl, line 7: ")
    assert "mend" in str(found.value) or "Rename" in str(found.value)


PAIR_FAULTS = [
    (turns("a", "b", "c"), turns("a", "b", "c", "d"), "odd_turns"),
    (turns("a", "b"), turns("a", "b", "c", "d"), "unequal_turns"),
    ([U, U, A, A], turns("a", "b", "c", "d"), "roles_alternate"),
    (turns("a", "b"), turns("a", ""), "empty_turn"),
    (turns("a", "b", "c", "x"), turns("a", "B", "c", "y"), "history_differs"),
    ([A, U], [A, U], "no_assistant_turn"),
    (turns("a", "b", system="s"), turns("a", "b", system="t"), "history_differs"),
    (turns("a", "b", system="s"), turns("a", "b"), "unequal_turns"),
    ([A], [A], "odd_turns"),
]


@pytest.mark.parametrize(("chosen", "rejected", "kind"), PAIR_FAULTS)
def test_each_fault_of_a_pair_has_its_reason(chosen: object, rejected: object, kind: str) -> None:
    with pytest.raises(RowError) as found:
        preference("f, line 1", {"chosen": chosen, "rejected": rejected})
    assert found.value.kind == kind


def test_a_pair_without_one_side_is_refused() -> None:
    with pytest.raises(RowError, match="chosen and rejected"):
        preference("f", {"chosen": turns("a", "b")})


def test_faulty_rows_stop_a_run_or_are_counted(write: Any) -> None:
    rows = [{"messages": turns("a", "b")}, {"messages": turns("a")}, {"messages": [U, U]}]
    path = write("rows.jsonl", rows)
    with pytest.raises(RowError, match=r"rows.jsonl, line 2.*odd"):
        load_dialogues(path)
    dropped: Counter[str] = Counter()
    assert len(load_dialogues(path, faulty="drop", dropped=dropped)[""]) == 1
    assert dropped == {"odd_turns": 1, "roles_alternate": 1}


def test_a_file_of_faults_alone_is_refused(write: Any) -> None:
    with pytest.raises(InputError, match="no conversation of the file is without a fault"):
        load_dialogues(write("rows.jsonl", [{"messages": turns("a")}]), faulty="drop")


def test_conversations_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": turns("a", "b"), "id": "1"}, {"messages": turns("c", "d"), "id": "2"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = load_dialogues(tmp_path / "rows.parquet")[""]
    assert [(row.id, row.response) for row in found] == [("1", "b"), ("2", "d")]


@pytest.mark.skipif(not HH_FILE.is_file(), reason="HH-RLHF is not beside the project (shared/data)")
def test_dialogues_of_hh_are_conversations() -> None:
    """Blank turns, and speakers that speak twice, are in the published data."""
    dropped: Counter[str] = Counter()
    rows = load_preferences(HH_FILE, faulty="drop", dropped=dropped)
    assert (len(rows), dropped) == (1722, {"empty_turn": 3, "roles_alternate": 8})
    assert rows[0].messages[0] == Message("user", "what are some pranks with a pen i can do?")
