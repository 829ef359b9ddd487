from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nplus.config.data import CNNDM_TEMPLATE, POST_TEMPLATE, TLDR_TEMPLATE
from nplus.data.sources import load_comparisons, load_demonstrations, open_source
from nplus.records import InputError

Row = dict[str, Any]
Write = Callable[..., Path]
GOOD = {"id": "1", "subreddit": "a", "title": "t", "post": "p", "summary": "s"}


def single(path: Path, **options: Any) -> list[Any]:
    return load_demonstrations(path, **options)[""]


# Recognition by columns.


@pytest.mark.detail("A1", "A6")
def test_openais_rows(sft_rows: list[Row], write: Write) -> None:
    # Detail A1.
    rows = single(write("posts.jsonl", sft_rows))
    assert [row.id for row in rows] == [row["id"] for row in sft_rows]
    assert {(row.template, row.cut_field) for row in rows} == {(TLDR_TEMPLATE, "post")}
    assert rows[2].fields["title"] == ""
    assert rows[5].fields["post"] == "This one ends in a newline.\n"
    # Detail A6: stored without a space around.
    assert rows[5].response == "Newline at the end."
    assert rows[4].response == "Pasted a marker: <|endoftext|>!"


@pytest.mark.parametrize(
    ("row", "template", "cut_field", "fields", "response"),
    [
        ({"post": "p", "summary": " s"}, POST_TEMPLATE, "post", {"post": "p"}, "s"),
        ({"article": "a", "highlights": "h"}, CNNDM_TEMPLATE, "article", {"article": "a"}, "h"),
        ({"article": "a", "summary": "h"}, CNNDM_TEMPLATE, "article", {"article": "a"}, "h"),
        (
            {"query": "q TL;DR:", "reference_response": " r<|endoftext|>", "query_token": [1]},
            "{query}",
            None,
            {"query": "q TL;DR:"},
            "r",
        ),
        ({"query": "q", "response": "r", "fields": {}}, "{query}", None, {"query": "q"}, "r"),
        ({"prompt": "q", "completion": " r"}, "{prompt}", None, {"prompt": "q"}, "r"),
        ({"text": "a document"}, "", None, {}, "a document"),
    ],
)
def test_layouts(
    write: Write, row: Row, template: str, cut_field: str | None, fields: Row, response: str
) -> None:
    (found,) = single(write("rows.jsonl", [row]))
    assert (found.template, found.cut_field) == (template, cut_field)
    assert (dict(found.fields), found.response) == (fields, response)


def test_an_explicit_template_names_its_columns(write: Write) -> None:
    path = write("papers.jsonl", [{"abstract": "We prove it.", "venue": "X", "summary": "Proof."}])
    (row,) = single(path, template="{abstract}\n\nTL;DR:")
    assert (row.cut_field, dict(row.fields)) == ("abstract", {"abstract": "We prove it."})
    (row,) = single(path, template="{venue}: {abstract}", cut_field="abstract")
    assert row.cut_field == "abstract"


@pytest.mark.parametrize(
    ("template", "cut_field", "message"),
    [
        ("{abstract} {venue}", None, "data.cut_field=None is not in the template"),
        ("{abstract}", "post", "data.cut_field='post' is not in the template"),
        ("{body}", None, "no field 'body', found"),
        ("TL;DR:", None, "names no column"),
    ],
)
def test_a_wrong_template_is_explained(
    write: Write, template: str, cut_field: str | None, message: str
) -> None:
    path = write("papers.jsonl", [{"abstract": "a", "venue": "X", "summary": "s"}])
    with pytest.raises(InputError, match=message):
        single(path, template=template, cut_field=cut_field)


def test_a_template_without_reference_column_is_explained(write: Write) -> None:
    path = write("papers.jsonl", [{"abstract": "a", "tldrs": ["s"]}])
    with pytest.raises(InputError, match=r"line 1: no column with the reference text.*summary"):
        single(path, template="{abstract}")


def test_an_id_is_made_of_the_text_where_there_is_none(write: Write) -> None:
    rows = [
        {"post": "p", "summary": "s"},
        {"post": "q", "summary": "s"},
        {"post": "p", "summary": "t"},
    ]
    first, second, third = single(write("rows.jsonl", rows))
    assert first.id == third.id != second.id
    (numbered,) = single(write("ids.jsonl", [{"id": 7, "post": "p", "summary": "s"}]))
    assert numbered.id == "7"


# Files.


def test_parquet_reads_like_jsonl(tmp_path: Path, sft_rows: list[Row], write: Write) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(sft_rows), tmp_path / "posts.parquet")
    parquet = single(tmp_path / "posts.parquet")
    lines = single(write("posts.jsonl", sft_rows))
    assert [(r.id, r.fields, r.response) for r in parquet] == [
        (r.id, r.fields, r.response) for r in lines
    ]
    assert parquet[3].where.endswith("posts.parquet, row 4")


def test_comparisons_from_parquet(tmp_path: Path, comparison_rows: list[Row], write: Write) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(comparison_rows), tmp_path / "c.parquet")
    parquet = load_comparisons(tmp_path / "c.parquet")
    lines = load_comparisons(write("c.jsonl", comparison_rows))
    assert [(r.id, r.responses, r.confidence) for r in parquet] == [
        (r.id, r.responses, r.confidence) for r in lines
    ]


def test_a_folder_holds_a_file_a_split(tmp_path: Path, write: Write) -> None:
    write("d/train.jsonl", [GOOD, GOOD])
    write("d/validation.json", [GOOD])
    write("d/data/test-00000-of-00002.jsonl", [GOOD])
    write("d/data/test-00001-of-00002.jsonl", [GOOD])
    write("d/notes.jsonl", [{"other": 1}])
    sizes = {name: len(rows) for name, rows in load_demonstrations(tmp_path / "d").items()}
    assert sizes == {"train": 2, "valid": 1, "test": 2}


def test_a_folder_without_training_split_is_refused(tmp_path: Path, write: Write) -> None:
    write("d/valid.jsonl", [GOOD])
    with pytest.raises(InputError, match="no file of the training split"):
        load_demonstrations(tmp_path / "d")


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.parquet", "./absent", "/absent/posts"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"absent.*: no such file"):
        open_source(name)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"posts\.csv: unknown kind of file"):
        open_source(tmp_path / "posts.csv")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "posts.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match=r"posts\.jsonl: the file is empty"):
        open_source(tmp_path / "posts.jsonl")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "posts.parquet").write_bytes(b"PAR0")
    with pytest.raises(InputError, match=r"posts\.parquet: not a readable Parquet file"):
        open_source(tmp_path / "posts.parquet")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "posts.jsonl").write_bytes(b'{"post": "\xff"}\n')
    with pytest.raises(InputError, match=r"posts\.jsonl.*not UTF-8"):
        open_source(tmp_path / "posts.jsonl")


def test_an_unreachable_hub_dataset_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(name: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"org/posts: neither a file.*Couldn't reach"):
        load_demonstrations("org/posts")


def test_a_hub_dataset_reads_like_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list([GOOD, {**GOOD, "summary": None}])
    loaded = datasets.DatasetDict({"train": table.select([0]), "validation": table})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    assert [len(rows) for rows in open_source("org/posts").values()] == [1, 2]
    with pytest.raises(
        InputError, match="org/posts, split validation, row 2: field 'summary' is null"
    ):
        load_demonstrations("org/posts")


# Rows at fault: file, line, field and mend are named.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**GOOD, "title": None}, "line 2: field 'title' is null, expected text"),
        ({**GOOD, "post": 3}, "line 2: field 'post' is int, expected text"),
        ({**GOOD, "summary": ["s"]}, "line 2: field 'summary' is list, expected text"),
        ({**GOOD, "summary": "  "}, "line 2: field 'summary' is empty"),
        ({**GOOD, "post": "\n"}, "line 2: field 'post' is empty"),
        ({k: v for k, v in GOOD.items() if k != "title"}, "line 2: no field 'title', found"),
    ],
)
def test_a_row_at_fault_is_named(write: Write, bad: Row, message: str) -> None:
    with pytest.raises(InputError, match=rf"posts\.jsonl, {message}"):
        load_demonstrations(write("posts.jsonl", [GOOD, bad]))


@pytest.mark.parametrize("line", ['{"post": "p", ', "[1, 2]", "post"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(InputError, match=r"posts\.jsonl, line 3: "):
        load_demonstrations(path)


def test_unknown_columns_are_listed_with_what_is_accepted(write: Write) -> None:
    with pytest.raises(
        InputError,
        match=r"line 1: found columns \['a', 'summary'\].*post, summary;.*data\.template",
    ):
        load_demonstrations(write("posts.jsonl", [{"a": "x", "summary": "s"}]))


# Comparisons.


@pytest.mark.detail("A1", "A11", "A6")
def test_openais_comparisons(comparison_rows: list[Row], write: Write) -> None:
    # Details A1, A6 and A11.
    rows = load_comparisons(write("comparisons.jsonl", comparison_rows))
    assert [row.batch for row in rows[:4]] == ["batch3", "batch9", "batch11", "batch13"]
    assert {row.split for row in rows} == {"train", "valid1", "valid2"}
    assert [row.confidence for row in rows] == [8, 1, 8, 8, 9, 8, 5, 6, None, None, None, 8]
    assert [row.choice for row in rows] == [n % 2 for n in range(12)]
    assert rows[0].responses == ("First.", "Second.")
    assert not any(text[0].isspace() for row in rows for text in row.responses)
    assert {row.template for row in rows[:10]} == {TLDR_TEMPLATE}
    assert {(row.template, row.cut_field) for row in rows[10:]} == {(CNNDM_TEMPLATE, "article")}
    assert rows[0].policies == ("ref", "sup1")


def test_a_folder_of_batches_is_read_whole(
    tmp_path: Path, comparison_rows: list[Row], write: Write
) -> None:
    write("c/batch3.json", comparison_rows[:1])
    write("c/cnndm0.json", comparison_rows[10:])
    assert [row.id for row in load_comparisons(tmp_path / "c")] == ["t3_c0", "news10", "news11"]


def test_prompt_chosen_rejected(write: Write) -> None:
    row = {"prompt": "Q:", "chosen": " good", "rejected": " bad"}
    (found,) = load_comparisons(write("pairs.jsonl", [row]))
    assert (found.fields, found.responses, found.choice) == ({"prompt": "Q:"}, ("good", "bad"), 0)
    assert found.split == "train"


def test_prebuilt_comparisons_lose_their_end_marker(write: Write) -> None:
    row = {"query": "Q:", "chosen": " good<|endoftext|>", "rejected": " bad<|endoftext|>"}
    (found,) = load_comparisons(write("pairs.jsonl", [row]))
    assert found.responses == ("good", "bad")


def test_dialogues_share_a_prompt(write: Write) -> None:
    start = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: more\n\nAssistant:"
    row = {"chosen": f"{start} Sure.", "rejected": f"{start} Sure not."}
    (found,) = load_comparisons(write("pairs.jsonl", [row]))
    assert (found.fields["prompt"], found.responses) == (start, ("Sure.", "Sure not."))
    with pytest.raises(InputError, match="line 1: 'chosen' and 'rejected' share no prompt"):
        load_comparisons(write("odd.jsonl", [{"chosen": "a", "rejected": "b"}]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"choice": 2}, "line 2: field 'choice' is 2, expected 0 or 1"),
        ({"choice": True}, "line 2: field 'choice' is True"),
        ({"choice": None}, "line 2: field 'choice' is None"),
        ({"summaries": [{"text": "a"}]}, "line 2: field 'summaries' must hold two"),
        (
            {"summaries": [{"text": "a"}, {"text": None}]},
            r"line 2, summaries\[1\]: field 'text' is null",
        ),
        ({"summaries": None}, "line 2: no field 'summaries'"),
        (
            {"info": {"title": "t", "subreddit": "s", "post": None}},
            "line 2, info: field 'post' is null",
        ),
        ({"extra": {"confidence": "high"}}, "line 2: field 'extra.confidence' is 'high'"),
    ],
)
def test_a_comparison_at_fault_is_named(
    comparison_rows: list[Row], write: Write, changed: Row, message: str
) -> None:
    path = write("comparisons.jsonl", [comparison_rows[0], {**comparison_rows[0], **changed}])
    with pytest.raises(InputError, match=rf"comparisons\.jsonl, {message}"):
        load_comparisons(path)


def test_a_preference_row_without_columns_lists_what_is_accepted(write: Write) -> None:
    with pytest.raises(InputError, match=r"found columns \['chosen', 'prompt'\].*prompt, chosen"):
        load_comparisons(write("pairs.jsonl", [{"prompt": "a", "chosen": "b"}]))
