"""Records survive the disk unchanged, and a reader's error names file, line and field."""

import json

import pytest

from nplus.records import (
    Comparison,
    Completion,
    Demonstration,
    InputError,
    Judgement,
    Prompt,
    parse_lines,
    read_records,
    write_records,
)

ODD = 'café \u2028 "quoted" \\ \t TL;DR:\n\n\x85 😀'
EXAMPLES = [
    Prompt("p1", ODD, {"title": ODD}, "train"),
    Demonstration("d1", ODD, "short", {"post": "x"}, "valid"),
    Completion("c1", "query", ODD, "sft", sample=2, temperature=0.7, tokens=9, has_eos=False),
    Comparison("k1", "query", ("left", ODD), ("sft", "ref"), 1, "w", "b", "valid1", 7),
    Comparison("k2", "query", ("left", ODD), ("sft", "ref"), 0, margin=0.75),
    Judgement("j1", "test", "ppo", "reference", ODD, "b", 1.5, -0.25, 30, 28),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_round_trip(record, tmp_path):
    file = tmp_path / "deep" / "records.jsonl"
    assert write_records(file, [record, record]) == 2
    assert read_records(file, type(record)) == [record, record]
    assert len(file.read_bytes().splitlines()) == 2


def test_chosen_and_rejected_follow_the_choice():
    pair = Comparison("k", "q", ("a", "b"), ("x", "y"), 1)
    assert (pair.chosen, pair.rejected) == ("b", "a")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "records.jsonl"
    write_records(file, [Prompt("old", "q")])

    def broken():
        yield Prompt("new", "q")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write_records(file, broken())
    assert [r.id for r in read_records(file, Prompt)] == ["old"]


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (b'{"id": "a", "query": "q"}\n{"id": \n', ("line 2", "not valid JSON", "column")),
        (b'\n{"id": "a"}\n', ("line 2", "Prompt lacks ['query']")),
        (b"[1]\n", ("line 1", "found list")),
        (b'{"id": "a", "query": "caf\xe9"}\n', ("line 1", "byte 26", "not UTF-8")),
    ],
)
def test_an_error_names_file_line_and_mend(lines, parts, tmp_path):
    file = tmp_path / "broken.jsonl"
    file.write_bytes(lines)
    with pytest.raises(InputError) as caught:
        read_records(file, Prompt)
    text = str(caught.value)
    assert text.startswith(f"{file}, line")
    assert all(part in text for part in parts), text


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.jsonl", Prompt)


def test_byte_order_mark_blank_lines_and_unknown_fields_are_read_over(tmp_path):
    file = tmp_path / "records.jsonl"
    row = json.dumps({"id": "a", "query": "q", "extra": 1})
    file.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n\n")
    assert read_records(file, Prompt) == [Prompt("a", "q")]
    assert [number for number, _ in parse_lines(file)] == [1]
