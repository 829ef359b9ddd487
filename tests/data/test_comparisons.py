"""People's comparisons: public schemas, the rows each should have, splits, and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nplus.config.data import ComparisonsConfig, DataConfig, TokenizerConfig
from nplus.data.comparisons import by_split, fit_comparisons, is_news, split_of
from nplus.data.files import check_rows, open_source
from nplus.data.prepare import DataDir, prepare
from nplus.data.sources import RawComparison, load_comparisons, load_demonstrations
from nplus.data.tokens import Codec
from nplus.records import Comparison, InputError

Row = dict[str, Any]
Write = Callable[..., Path]
PAIRS = "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"
POSTS = "vwxyzjn/summarize_from_feedback_tldr_3_filtered"
PREBUILT_POST: Row = {
    "query_token": [7] * 4,
    "query": "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: It eats.\n\nTL;DR:",
    "reference_response": " Cat eats.<|endoftext|>",
    "reference_response_token": [7] * 3,
    "reference_response_token_len": 3,
    "query_reference_response_token_response_label": [7] * 7,
}
PREBUILT_PAIR: Row = {
    "query": "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: It eats.\n\nTL;DR:",
    "query_token": [7] * 4,
    "chosen": " Eats.<|endoftext|>",
    "rejected": " Sleeps.<|endoftext|>",
    "chosen_token": [7] * 2,
    "chosen_policy": "sup1",
    "rejected_policy": "ref",
    "policies": "ref--sup1",
    "batch": "batch9",
    "split": "valid2",
    "worker": "w",
    "extra": {"confidence": None},
}


def data_config(path: Path | str, **options: Any) -> DataConfig:
    return DataConfig(comparisons=ComparisonsConfig(data=str(path), **options))


def raw(split: str, batch: str = "batch9", template: str = "{post}", n: int = 0) -> RawComparison:
    return RawComparison(
        where=f"line {n}",
        id=f"post {n}",
        template=template,
        cut_field="post",
        fields={"post": f"text {n}", "article": "a"},
        responses=("a", "b"),
        policies=("p", "q"),
        choice=0,
        batch=batch,
        split=split,
    )


# The prebuilt sets (sections 7.1 and 7.2).


@pytest.mark.detail("A1")
def test_prebuilt_posts_read_by_text_and_never_by_ids(write: Write, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([PREBUILT_POST]), tmp_path / "posts.parquet"
    )
    ((_, read),) = open_source(tmp_path / "posts.parquet")[""]
    assert set(read) == {"query", "reference_response"}
    for path in (tmp_path / "posts.parquet", write("posts.jsonl", [PREBUILT_POST])):
        (row,) = load_demonstrations(path)[""]
        assert (row.fields["query"], row.response) == (PREBUILT_POST["query"], "Cat eats.")
        assert row.cut_field is None


@pytest.mark.detail("A1")
def test_prebuilt_rows_with_the_raw_columns_are_read_from_those(write: Write) -> None:
    # Ready-made queries were cut for one tokenizer; the columns can be cut for any.
    row = {"id": "t3", "subreddit": "pets", "title": "Cat", "post": "It eats.", "summary": "Cat."}
    (read,) = load_demonstrations(write("posts.jsonl", [PREBUILT_POST | row]))[""]
    assert (read.cut_field, read.id, read.response) == ("post", "t3", "Cat.")


@pytest.mark.detail("A1")
def test_prebuilt_pairs(write: Write, comparison_rows: list[Row]) -> None:
    (row,) = load_comparisons(write("pairs.jsonl", [PREBUILT_PAIR]))
    assert (row.responses, row.choice, row.policies) == (("Eats.", "Sleeps."), 0, ("sup1", "ref"))
    assert (row.batch, row.split, row.worker, row.confidence) == ("batch9", "valid2", "w", None)
    whole = PREBUILT_PAIR | comparison_rows[7] | {"chosen": " Wrong.", "rejected": " Wrong."}
    (row,) = load_comparisons(write("both.jsonl", [whole]))
    assert (row.responses, row.choice, row.cut_field) == (("Cats.", "More cats."), 1, "post")
    rated = PREBUILT_PAIR | {"extra": {"confidence": 6}}
    assert load_comparisons(write("rated.jsonl", [rated]))[0].confidence == 6


def test_a_downloaded_folder_keeps_its_news(tmp_path: Path, write: Write) -> None:
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "validation_cnndm"):
        write(f"d/data/{name}.jsonl", [{k: v for k, v in PREBUILT_PAIR.items() if k != "split"}])
    assert [row.split for row in load_comparisons(tmp_path / "d")] == [
        "train",
        "valid",
        "validation_cnndm",
    ]


def test_an_empty_text_of_a_policy_is_a_text(write: Write, comparison_rows: list[Row]) -> None:
    row = comparison_rows[0] | {"summaries": [{"text": " ", "policy": "a"}, {"text": " b"}]}
    assert load_comparisons(write("c.jsonl", [row]))[0].responses == ("", "b")


# Rows of the public data (Detail A1), as published.


@pytest.mark.detail("A1")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (POSTS, {"train": 116_722, "valid": 6_447, "test": 6_553}),
        (
            f"{POSTS}_oai_preprocessing_1706381144",
            {"train": 116_722, "valid": 6_447, "test": 6_553},
        ),
        (PAIRS, {"train": 92_858, "valid": 83_802, "validation_cnndm": 2_284}),
        ("openai/summarize_from_feedback:comparisons", {"train": 92_858, "valid": 86_086}),
    ],
)
def test_known_data_must_have_its_rows(name: str, rows: dict[str, int]) -> None:
    check_rows(name, rows)
    for split in rows:
        with pytest.raises(InputError, match=rf"^{name}: has .*published were .*Detail A1"):
            check_rows(name, rows | {split: rows[split] - 1})
        with pytest.raises(InputError, match="incomplete"):
            check_rows(name, {key: count for key, count in rows.items() if key != split})


def test_other_data_may_have_any_rows() -> None:
    check_rows("org/posts", {"train": 3})
    check_rows("posts.jsonl", {"": 3})


@pytest.mark.detail("A1")
def test_the_rows_of_a_hub_dataset_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load(name: str, *configuration: str) -> datasets.DatasetDict:
        calls.append((name, *configuration))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([PREBUILT_PAIR] * 2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match="has 2 train rows, published were 92,858 train, 83,802"):
        load_comparisons(PAIRS)
    (row, _) = open_source("org/pairs:clean")["train"]
    assert row[0] == "org/pairs:clean, split train, row 1"
    assert not any("_token" in name for name in row[1])
    assert calls == [(PAIRS,), ("org/pairs", "clean")]


# Splits (Detail A11).


@pytest.mark.detail("A11")
@pytest.mark.parametrize(
    ("split", "batch", "expected"),
    [
        ("train", "batch3", "train"),
        ("valid1", "batch11", "valid1"),
        ("valid2", "edit_b2_eval_test", "valid2"),
        ("valid1", "batch0_cnndm", "validation_cnndm"),
        ("valid2", "cnndm0", "validation_cnndm"),
        ("valid2", "cnndm2", "validation_cnndm"),
        ("validation_cnndm", "", "validation_cnndm"),
        ("train", "cnndm0", "train"),
        ("valid", "", "valid1"),
        ("test", "", "valid2"),
    ],
)
def test_where_a_row_belongs(split: str, batch: str, expected: str) -> None:
    assert split_of(raw(split, batch)) == expected


def test_an_article_is_news_whatever_its_batch() -> None:
    article = raw("valid1", "batch9", "Article:\n{article}\n\nTL;DR:\n")
    assert is_news(article)
    assert split_of(article) == "validation_cnndm"


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(InputError, match=r"line 0: split 'eval' is unknown; expected one of train"):
        split_of(raw("eval"))


@pytest.mark.detail("A11")
def test_the_fixture_rows_land_where_they_belong(comparison_rows: list[Row], write: Write) -> None:
    path = write("c.jsonl", comparison_rows)
    splits = by_split(load_comparisons(path), data_config(path))
    assert {name: [row.batch for row in rows] for name, rows in splits.items()} == {
        "train": ["batch3", *["batch9"] * 5],
        "valid1": ["batch11", "edit_b2_eval_test"],
        "valid2": ["batch13", "batch9"],
        "validation_cnndm": ["cnndm0", "cnndm0"],
    }


def test_without_a_held_out_row_some_queries_are_set_aside() -> None:
    # Three comparisons of each query stay together.
    rows = [raw("train", n=n // 3) for n in range(300)]
    splits = by_split(rows, data_config("pairs.jsonl"))
    assert set(splits) == {"train", "valid1"}
    ids = {name: {row.id for row in part} for name, part in splits.items()}
    assert 3 * len(ids["valid1"]) == len(splits["valid1"])
    assert 2 <= len(ids["valid1"]) <= 25
    assert not ids["train"] & ids["valid1"]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match=r"pairs\.jsonl: no comparison is of the training split"):
        by_split([raw("valid1")], data_config("pairs.jsonl"))


# Lengths (Detail A8).


def fitted(
    path: Path, codec: Codec, **options: Any
) -> tuple[list[Comparison], dict[str, dict[str, Any]]]:
    data = data_config(path, **options)
    return fit_comparisons(by_split(load_comparisons(path), data), codec, data)


@pytest.mark.detail("A8")
@pytest.mark.parametrize("step", [1, -1], ids=["as they are", "the other way round"])
def test_lengths_are_those_of_the_rows(
    codec: Codec, comparison_rows: list[Row], write: Write, step: int
) -> None:
    rows = [row | {"summaries": row["summaries"][::step]} for row in comparison_rows]
    records, report = fitted(write("c.jsonl", rows), codec)
    assert Counter(record.split for record in records) == {
        "train": 6,
        "valid1": 2,
        "valid2": 2,
        "validation_cnndm": 2,
    }
    for split, found in report.items():
        part = [record for record in records if record.split == split]
        queries = [len(codec.encode(record.query)) for record in part]
        # EOS is counted.
        texts = [[len(codec.encode(f" {t}")) + 1 for t in record.responses] for record in part]
        assert found["rows"] == len(part)
        assert found["query_tokens_max"] == max(queries)
        assert found["response_tokens_max"] == max(map(max, texts))
        assert found["length_max"] == max(
            query + max(pair) for query, pair in zip(queries, texts, strict=True)
        )
    assert {split: found["ties"] for split, found in report.items()} == {
        "train": 0,
        "valid1": 1,
        "valid2": 0,
        "validation_cnndm": 0,
    }


@pytest.mark.detail("A8")
@pytest.mark.parametrize(
    ("key", "what", "split", "figure"),
    [
        ("max_response_tokens", "response", "train", "response_tokens_max"),
        ("max_length", "query with its response", "train", "length_max"),
        ("max_news_response_tokens", "response", "validation_cnndm", "response_tokens_max"),
        ("max_news_length", "query with its response", "validation_cnndm", "length_max"),
    ],
)
def test_a_length_smaller_than_the_data_is_an_error(
    codec: Codec,
    comparison_rows: list[Row],
    write: Write,
    key: str,
    what: str,
    split: str,
    figure: str,
) -> None:
    path = write("c.jsonl", comparison_rows)
    longest = fitted(path, codec)[1][split][figure]
    records, _ = fitted(path, codec, **{key: longest})
    assert len(records) == 12
    name = f"data.comparisons.{key}"
    line = 5 if split == "train" else "1[12]"
    with pytest.raises(
        InputError,
        match=rf"c\.jsonl, line {line}: the {what} has {longest} tokens with EOS, over "
        rf"{name}={longest - 1}.*; set {name}={longest} or more",
    ):
        fitted(path, codec, **{key: longest - 1})


@pytest.mark.detail("A3")
def test_news_is_cut_to_a_length_of_its_own(
    codec: Codec, comparison_rows: list[Row], write: Write
) -> None:
    path = write("c.jsonl", comparison_rows)
    whole = {record.id: record for record in fitted(path, codec)[0]}
    limit = len(codec.encode(whole["news10"].query)) - 1
    cut = {record.id: record for record in fitted(path, codec, max_news_query_tokens=limit)[0]}
    assert cut["news10"].query == "Article:\nA storm closed the harbour.\n\nTL;DR:\n"
    assert cut["t3_c0"].query == whole["t3_c0"].query
    assert len(codec.encode(whole["t3_c0"].query)) > limit


# Through the data stage.


def test_comparisons_are_prepared_with_the_posts(
    tmp_path: Path, comparison_rows: list[Row], sft_rows: list[Row], write: Write
) -> None:
    for split in ("train", "valid", "test"):
        write(f"d/{split}.jsonl", sft_rows)
    pairs = write("c.jsonl", comparison_rows)
    tiny = TokenizerConfig(vocab_size=320)

    def config(**options: Any) -> DataConfig:
        own = ComparisonsConfig(data=str(pairs), **options)
        return DataConfig(source="files", data=str(tmp_path / "d"), comparisons=own)

    with pytest.raises(InputError, match=r"line 5: .*data\.comparisons\.max_response_tokens=100"):
        prepare(config(max_response_tokens=100), tiny, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = prepare(config(), tiny, None, tmp_path / "out")
    folder = DataDir(tmp_path / "out")
    labelled = folder.labelled()
    assert [record.confidence for record in labelled[:3]] == [8, 1, 9]
    assert Counter(record.split for record in labelled) == {
        split: found["rows"] for split, found in report["comparisons"].items()
    }
    assert folder.splits() == ("train", "valid", "test")
    assert folder.comparison_files() == {}


def test_data_without_comparisons_says_so(
    tmp_path: Path, sft_rows: list[Row], write: Write
) -> None:
    write("d/train.jsonl", sft_rows)
    config = DataConfig(source="files", data=str(write("p.jsonl", sft_rows)), valid_fraction=0.2)
    report = prepare(config, TokenizerConfig(vocab_size=320), None, tmp_path / "out")
    assert report["comparisons"] == {}
    with pytest.raises(InputError, match=r"no comparisons; name some in data\.comparisons\.data"):
        DataDir(tmp_path / "out").labelled()
