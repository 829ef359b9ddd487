"""Rows with the schemas of the public data (section 7.4 of the details), written here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nplus.data.tokens import Codec, train_bpe

Row = dict[str, Any]
Write = Callable[[str, Sequence[Mapping[str, Any]]], Path]

PARAGRAPH = "We walked to the harbour and talked about the boat we never bought, as every year."
WORDS = " ".join(f"On day {n} the old lamp broke again and nobody said why." for n in range(90))


def sft_row(id: str, post: str, summary: str, title: str = "Lamp", subreddit: str = "test") -> Row:
    return {"id": id, "subreddit": subreddit, "title": title, "post": post, "summary": summary}


def comparison_row(n: int, texts: tuple[str, str], **changed: Any) -> Row:
    info = {"id": f"t3_c{n}", "post": f"My cat number {n} eats paper.", "title": "Cat"}
    row: Row = {
        "info": {**info, "subreddit": "pets", "site": None, "article": None},
        "summaries": [
            {"text": texts[0], "policy": "ref", "note": None},
            {"text": texts[1], "policy": "sup1", "note": None},
        ],
        "choice": n % 2,
        "worker": f"w{n % 3}",
        "batch": "batch9",
        "split": "train",
        "extra": {"confidence": 8},
    }
    return {**row, **changed}


def news_row(n: int, texts: tuple[str, str], **changed: Any) -> Row:
    info = {
        "id": f"news{n}",
        "post": None,
        "title": "Storm",
        "subreddit": None,
        "site": "dailymail",
    }
    article = {"article": "A storm closed the harbour.\nTwo boats sank."}
    return comparison_row(n, texts, **{"info": {**info, **article}, "batch": "cnndm0", **changed})


@pytest.fixture(scope="session")
def sft_rows() -> list[Row]:
    return [
        sft_row("t3_1", "\n\n".join([PARAGRAPH] * 60), "We did not buy a boat."),
        sft_row("t3_2", WORDS, "The lamp breaks daily."),
        sft_row("t3_3", "My sister left.", "Sister left.", title=""),
        sft_row("t3_4", "Mein Café schließt, 日本へ行く — {sad}.", "Café zu, 日本 jetzt."),
        sft_row("t3_5", "I pasted <|endoftext|> into a form.", "Pasted a marker: <|endoftext|>!"),
        sft_row("t3_6", "This one ends in a newline.\n", "  Newline at the end. "),
        sft_row("t3_7", "Short.", "Very short"),
        sft_row("t3_8", "Short too [PAD] see.", "Also short."),
    ]


@pytest.fixture(scope="session")
def comparison_rows() -> list[Row]:
    long = " " + " ".join(["the boat is gone"] * 60)
    return [
        comparison_row(0, (" First.", " Second."), batch="batch3"),
        comparison_row(1, (" First one.", " Second one."), extra={"confidence": 1}),
        comparison_row(2, (" Same text.", " Same text."), batch="batch11", split="valid1"),
        comparison_row(3, (" No full stop", " Stop."), batch="batch13", split="valid2"),
        comparison_row(4, (long, " Brief."), extra={"confidence": 9}),
        comparison_row(5, (" A cat.", " Paper."), batch="edit_b2_eval_test", split="valid1"),
        comparison_row(6, (" A cat eats.", " Paper eaten."), extra={"confidence": 5}),
        comparison_row(7, (" Cats.", " More cats."), extra={"confidence": 6}, split="valid2"),
        comparison_row(8, (" Cats?", " No cats."), extra={"confidence": None}),
        comparison_row(9, (" Paper is food.", " Food."), extra={}),
        news_row(10, ("Two boats sank.", "Storm."), split="valid1", extra={"confidence": None}),
        news_row(11, ("Harbour closed.", "Closed."), split="valid2"),
    ]


@pytest.fixture(scope="session")
def codec(sft_rows: list[Row]) -> Codec:
    """A tiny byte-level BPE in the manner of Pythia's tokenizer."""
    return train_bpe(
        [f"{row['title']} {row['post']} {row['summary']} TL;DR:" for row in sft_rows], 400
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, rows)`: a JSONL file in the test's folder."""

    def to_file(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to_file
