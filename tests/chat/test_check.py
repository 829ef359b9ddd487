"""`nplus data check` on conversations: every fault named, and a row as the model reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from talk import chat_config, make_tokenizer, turns
from typer.testing import CliRunner

from nplus.cli import app
from nplus.data.check import check_source
from nplus.data.tokens import Codec

GOOD = {"messages": turns("Hi", "Ho", "Why?", "So.")}


def found(report: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {f["kind"]: (f["severity"], f["count"]) for f in report["findings"]}


def test_every_fault_is_named_with_its_row(write: Any, codec: Codec) -> None:
    rows = [
        GOOD,
        {"messages": turns("a")},
        {"messages": [{"role": "bot", "content": "x"}]},
        {"messages": turns("a", "")},
        {"messages": turns("a<|im_start|>", "b")},
        {"messages": turns("x" * 400, "b")},
    ]
    data = chat_config(max_query_tokens=120)
    report = check_source(write("rows.jsonl", rows), data, codec)
    assert not report["ok"]
    assert found(report) == {
        "odd_turns": ("error", 1),
        "unknown_role": ("error", 1),
        "empty_turn": ("error", 1),
        "special_in_turn": ("error", 1),
        "overlong_query": ("error", 1),
    }
    places = {f["kind"]: f["rows"][0]["row"] for f in report["findings"]}
    assert places["odd_turns"] == 2
    assert places["special_in_turn"] == 5
    dropping = chat_config(max_query_tokens=120, faulty="drop", overlong="drop")
    report = check_source(write("rows.jsonl", rows), dropping, codec)
    assert report["ok"]
    assert {severity for severity, _ in found(report).values()} == {"warning"}


def test_pairs_and_prompts_are_known(write: Any, codec: Codec) -> None:
    pairs = [
        {"chosen": turns("a", "b"), "rejected": turns("a", "c")},
        {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "c", "c", "e")},
        {"chosen": turns("a", "b"), "rejected": turns("a", "b", "c", "d")},
    ]
    report = check_source(write("pairs.jsonl", pairs), chat_config(), codec)
    assert report["files"][0]["kind"] == "comparisons"
    named = found(report)
    assert named["history_differs"] == named["unequal_turns"] == ("error", 1)
    prompts = [{"prompt": turns("a", "b", "c")}, {"prompt": turns("d")}]
    report = check_source(write("prompts.jsonl", prompts), chat_config(), codec)
    assert (report["files"][0]["kind"], report["ok"]) == ("prompts", True)


def test_a_history_that_is_cut_is_a_note(write: Any, codec: Codec) -> None:
    long = {"messages": turns("y" * 60, "z" * 60, "Why?", "So.")}
    data = chat_config(max_query_tokens=120)
    report = check_source(write("rows.jsonl", [GOOD] * 1 + [long]), data, codec)
    assert report["ok"]
    assert report["lengths"]["truncated"]["count"] == 1


def test_the_preview_is_the_rendered_row(write: Any, codec: Codec) -> None:
    report = check_source(write("rows.jsonl", [GOOD]), chat_config(), codec)
    (row,) = report["preview"]
    assert row["query"].endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert row["response"] == "So."
    begins = row["response_begins"]
    assert row["tokens"][begins - 1] == "\n"
    assert row["ids"][begins:] == codec.encode_response("So.")
    assert row["eos"] == len(row["ids"]) - 1
    assert row["ids"].count(codec.eos_id) == 5  # system, user, assistant, user, response


def test_without_a_tokenizer_lengths_are_in_characters(write: Any) -> None:
    report = check_source(write("rows.jsonl", [GOOD]), chat_config())
    assert report["lengths"]["unit"] == "characters"
    assert "tokens_skipped" in found(report)


@pytest.mark.parametrize("row", [GOOD, {"chosen": turns("a", "b"), "rejected": turns("a", "c")}])
def test_the_command(write: Any, tmp_path: Path, row: dict[str, Any]) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    path = write("rows.jsonl", [row])
    given = ["data", "check", str(path), "--recipe", "chat", "--json"]
    ran = CliRunner().invoke(app, [*given, "--tokenizer", str(tmp_path / "tokenizer")])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report["rows"] == 1
    assert report["preview"][0]["query"].startswith("<|im_start|>system")


def test_text_settings_say_what_to_set(write: Any) -> None:
    ran = CliRunner().invoke(app, ["data", "check", str(write("rows.jsonl", [GOOD])), "--json"])
    assert ran.exit_code == 2
    assert "data.format=chat" in ran.stdout
