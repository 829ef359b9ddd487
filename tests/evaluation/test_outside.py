"""Completions from elsewhere: what is read, what is refused, and which post each is of."""

import json

import pytest

from nplus.evaluation.outside import Outside, match_rows, read_outside
from nplus.records import InputError


def write(tmp_path, *rows):
    path = tmp_path / "theirs.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(id=None, query=None, text="t", line=1):
    return Outside(line, id, query, text)


POSTS = [("a", "POST: one\n\nTL;DR:"), ("b", "POST: two\n\nTL;DR:"), ("c", "POST: one\n\nTL;DR:")]


@pytest.mark.parametrize("key", ["completion", "response", "summary"])
def test_a_row_is_cut_at_eos_and_stripped(tmp_path, key):
    path = write(tmp_path, {"id": 7, key: "  a b <|endoftext|> junk", "extra": 1})
    assert read_outside(path) == [Outside(1, "7", None, "a b")]


def test_blank_lines_are_passed_over_and_lines_numbered_as_in_the_file(tmp_path):
    path = write(tmp_path, "", {"query": "Q", "summary": "x"})
    assert read_outside(path) == [Outside(2, None, "Q", "x")]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"id": "a"}], ("line 1", "`completion`, `response`, `summary`", "found id")),
        ([{"id": "a", "summary": "x"}, {"summary": "x"}], ("line 2", "neither `id` nor `query`")),
        ([{"id": "a", "summary": 3}], ("line 1", "`summary` is text, not int")),
        ([{"id": ["a"], "summary": "x"}], ("line 1", "`id` is text, not list")),
        ([{"query": 3, "summary": "x"}], ("line 1", "`query` is text, not int")),
        ([{"id": "a", "summary": "x"}, "{broken"], ("line 2", "not valid JSON")),
        ([], ("holds no rows",)),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, rows, parts):
    path = write(tmp_path, *rows)
    with pytest.raises(InputError) as error:
        read_outside(path)
    for part in (path.name, *parts):
        assert part in str(error.value), part


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_outside(tmp_path / "none.jsonl")


@pytest.mark.detail("H4")
def test_rows_go_by_id_or_else_by_query():
    rows = [
        row("b", text="by id"),
        row(None, "  POST: one\n\nTL;DR:\n", text="by query"),
        row("zz", "POST: two\n\nTL;DR:", text="its post has one"),
        row("zz", "POST: six", text="nowhere"),
        row("zz", text="nowhere either"),
    ]
    found = match_rows(rows, POSTS)
    assert {at: r.text for at, r in found.rows.items()} == {0: "by query", 1: "by id"}
    assert (found.read, found.unmatched, found.duplicates, found.other_query) == (5, 2, 1, 0)


@pytest.mark.detail("H4")
def test_of_posts_and_rows_that_share_a_query_the_first_counts():
    rows = [row(None, POSTS[2][1], text="first"), row(None, POSTS[0][1], text="second")]
    found = match_rows(rows, POSTS)
    assert {at: r.text for at, r in found.rows.items()} == {0: "first"}
    assert found.duplicates == 1
    twice = [("a", "one"), ("a", "two")]
    assert list(match_rows([row("a")], twice).rows) == [0]


def test_an_id_whose_query_reads_otherwise_is_told():
    found = match_rows([row("a", "another post"), row("b", POSTS[1][1])], POSTS)
    assert (sorted(found.rows), found.other_query) == ([0, 1], 1)
