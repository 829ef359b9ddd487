from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nplus.config.data import DataConfig, TokenizerConfig, WorldConfig
from nplus.data.prepare import DataDir, prepare, read_comparisons
from nplus.data.sources import RawDemonstration
from nplus.data.splits import set_aside
from nplus.data.tokens import Codec
from nplus.records import InputError

Row = dict[str, Any]
Write = Callable[..., Path]
TINY = TokenizerConfig(vocab_size=320)
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def files(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="files", data=str(path), **options)


def posts(count: int) -> list[Row]:
    return [
        {
            "id": f"p{n}",
            "post": f"The boat number {n} leaks. " * (1 + n % 9),
            "summary": f"Leak {n}.",
        }
        for n in range(count)
    ]


def test_a_file_becomes_a_folder_that_reads_back(tmp_path: Path, write: Write) -> None:
    rows = posts(60)
    out = tmp_path / "out"
    report = prepare(files(write("posts.jsonl", rows), max_query_tokens=40), TINY, None, out)
    folder = DataDir(out)
    codec = folder.codec()
    assert folder.splits() == ("train", "valid", "test")
    read = {split: folder.demonstrations(split) for split in folder.splits()}
    by_id = {d.id: d for records in read.values() for d in records}
    assert sorted(by_id) == sorted(row["id"] for row in rows)
    for row in rows:
        demo = by_id[row["id"]]
        assert demo.query.startswith("POST: The boat number")
        assert demo.query.endswith("\n\nTL;DR:")
        assert (demo.response, demo.fields) == (row["summary"], {"post": row["post"]})
    for split, records in read.items():
        queries = [len(codec.encode_query(d.query)) for d in records]
        responses = [len(codec.encode_response(d.response)) for d in records]
        cut = [d for d in records if d.query != f"POST: {d.fields['post']}\n\nTL;DR:"]
        assert report["splits"][split] == {
            "rows": len(records),
            "dropped": 0,
            "truncated_share": pytest.approx(len(cut) / len(records)),
            "query_tokens_max": max(queries),
            "query_tokens_mean": pytest.approx(sum(queries) / len(queries)),
            "response_tokens_max": max(responses),
            "response_tokens_mean": pytest.approx(sum(responses) / len(responses)),
            "length_max": max(q + r for q, r in zip(queries, responses, strict=True)),
        }
        assert {d.split for d in records} == {split}
        assert max(queries) <= 40
        assert cut
    assert report["tokenizer"] == {"size": codec.size, "required_rows": codec.size}
    assert report["overlap"] == {"valid": 0, "test": 0}
    assert report["seam_mismatches"] == 0
    assert folder.facts_path is None
    assert folder.comparison_files() == {}


def test_prepared_data_is_the_same_every_time(tmp_path: Path, write: Write) -> None:
    config = files(write("posts.jsonl", posts(40)))
    for name in ("a", "b"):
        prepare(config, TINY, None, tmp_path / name)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.json*"))
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_prepared_data_can_be_prepared_again(tmp_path: Path, write: Write) -> None:
    prepare(files(write("posts.jsonl", posts(40))), TINY, None, tmp_path / "a")
    prepare(files(tmp_path / "a"), TokenizerConfig(), tmp_path / "a" / "tokenizer", tmp_path / "b")
    first, second = DataDir(tmp_path / "a"), DataDir(tmp_path / "b")
    for split in first.splits():
        kept = [(d.id, d.query, d.response) for d in second.demonstrations(split)]
        assert kept == [(d.id, d.query, d.response) for d in first.demonstrations(split)]
    assert first.codec().tokenizer.get_vocab() == second.codec().tokenizer.get_vocab()


@pytest.mark.detail("A3")
def test_the_fixture_rows_fit(tmp_path: Path, sft_rows: list[Row], write: Write) -> None:
    write("d/train.jsonl", sft_rows)
    write("d/valid.jsonl", sft_rows[6:7])
    write("d/test.jsonl", sft_rows[2:3])
    report = prepare(files(tmp_path / "d", max_query_tokens=100), TINY, None, tmp_path / "out")
    train = {d.id: d for d in DataDir(tmp_path / "out").demonstrations("train")}
    # Taken as they are, and what stands on both sides is told.
    assert report["overlap"] == {"valid": 1, "test": 1}
    assert report["splits"]["train"]["truncated_share"] == 2 / 8
    # Detail A3: by paragraph, so a cut may leave one newline before the cue; by character.
    assert train["t3_1"].query.endswith((".\n\n\nTL;DR:", ".\n\nTL;DR:"))
    assert train["t3_2"].query.endswith("\n\nTL;DR:")
    assert train["t3_6"].query.endswith("newline.\n\n\nTL;DR:")
    assert all(d.query.startswith("SUBREDDIT: r/test\n\nTITLE: ") for d in train.values())


def test_max_rows_takes_the_first_training_rows(tmp_path: Path, write: Write) -> None:
    write("d/train.jsonl", posts(30))
    write("d/valid.jsonl", posts(5))
    write("d/test.jsonl", posts(5))
    prepare(files(tmp_path / "d", max_rows=7), TINY, None, tmp_path / "out")
    folder = DataDir(tmp_path / "out")
    assert [d.id for d in folder.demonstrations("train")] == [f"p{n}" for n in range(7)]
    assert len(folder.demonstrations("valid")) == 5


# Splitting a single file.


def raw(id: str, post: str) -> RawDemonstration:
    return RawDemonstration("here", id, "POST: {post}", "post", {"post": post}, "s")


def test_shares_are_about_what_was_asked() -> None:
    parts = set_aside([raw(str(n), f"post {n}") for n in range(2000)], ["test", "valid"], 0.1, "f")
    assert 150 < len(parts["test"]) < 250
    assert 150 < len(parts["valid"]) < 250
    assert sum(map(len, parts.values())) == 2000


def test_more_rows_move_no_row() -> None:
    few = set_aside([raw(str(n), f"post {n}") for n in range(300)], ["test", "valid"], 0.1, "f")
    many = set_aside([raw(str(n), f"post {n}") for n in range(600)], ["test", "valid"], 0.1, "f")
    for split, rows in few.items():
        assert {row.id for row in rows} <= {row.id for row in many[split]}


def test_one_post_or_one_id_is_on_one_side() -> None:
    # Chained: 2k and 2k+1 share a text, 2k+1 and 2k+2 an id, for runs of eight rows.
    rows = []
    for n in range(1600):
        run = n // 8
        rows.append(raw(f"{run}-{(n % 8 + 1) // 2}", f"  post  {run}\n{n % 8 // 2}"))
    parts = set_aside(rows, ["test", "valid"], 0.2, "f")
    sides = {
        id: {s for s, p in parts.items() if any(r.id == id for r in p)} for id in ("0-1", "9-3")
    }
    runs = {name: {row.id.split("-")[0] for row in part} for name, part in parts.items()}
    assert all(len(found) == 1 for found in sides.values())
    assert not runs["train"] & runs["valid"]
    assert not runs["train"] & runs["test"]
    assert not runs["valid"] & runs["test"]


def test_a_tiny_file_still_has_three_splits() -> None:
    parts = set_aside([raw(c, c) for c in "abc"], ["test", "valid"], 0.01, "f")
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [1, 1, 1]


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.1), (50, 0.5), (50, 0.7)])
def test_too_few_rows_or_too_large_a_share_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(InputError, match=rf"{count} different posts cannot be split"):
        set_aside([raw(str(n), str(n)) for n in range(count)], ["test", "valid"], fraction, "f")


# Faults are found before anything is written.


def longest_response(path: Path, tmp_path: Path) -> int:
    """Tokens of the longest response, EOS included, with the tokenizer that `path` trains."""
    prepare(files(path, max_response_tokens=500), TINY, None, tmp_path / "whole")
    folder = DataDir(tmp_path / "whole")
    rows = [d for split in folder.splits() for d in folder.demonstrations(split)]
    return max(len(folder.codec().encode(f" {d.response}")) + 1 for d in rows)


def prepare_badly(config: DataConfig, out: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(config, TINY, None, out)
    assert not out.exists()


@pytest.mark.detail("A8")
def test_an_overlong_response_is_an_error_or_dropped(tmp_path: Path, write: Write) -> None:
    # Detail A8: never cut, which would lose the EOS.
    rows = posts(30)
    rows[4] = {**rows[4], "summary": "long " * 30}
    rows[9] = {**rows[9], "summary": "longer " * 40}
    path = write("posts.jsonl", rows)
    # The longest of all splits is named, with what would do.
    tokens = longest_response(path, tmp_path)
    prepare_badly(
        files(path, max_response_tokens=20),
        tmp_path / "out",
        rf"line 10: the response has {tokens} tokens with EOS, over data\.max_response_tokens=20 "
        rf"and 1 more are over it; set data\.max_response_tokens={tokens} or more, or data\.over",
    )
    report = prepare(
        files(path, max_response_tokens=20, overlong="drop"), TINY, None, tmp_path / "out"
    )
    assert sum(part["dropped"] for part in report["splits"].values()) == 2
    assert sum(part["rows"] for part in report["splits"].values()) == 28


def test_the_limit_counts_eos(tmp_path: Path, write: Write) -> None:
    rows = posts(12)
    path = write("posts.jsonl", rows)
    report = prepare(files(path), TINY, None, tmp_path / "a")
    longest = max(part["response_tokens_max"] for part in report["splits"].values())
    prepare(files(path, max_response_tokens=longest), TINY, None, tmp_path / "b")
    prepare_badly(
        files(path, max_response_tokens=longest - 1),
        tmp_path / "c",
        f"set data.max_response_tokens={longest} or more",
    )


@pytest.mark.detail("A8")
def test_query_and_response_together_have_a_limit(tmp_path: Path, write: Write) -> None:
    path = write("posts.jsonl", posts(30))
    report = prepare(files(path), TINY, None, tmp_path / "a")["splits"].values()
    longest = max(part["length_max"] for part in report)
    assert longest < max(p["query_tokens_max"] for p in report) + 53
    prepare(files(path, max_length=longest), TINY, None, tmp_path / "b")
    prepare_badly(
        files(path, max_length=longest - 1),
        tmp_path / "c",
        rf"the query with its response has {longest} tokens with EOS, over "
        rf"data\.max_length={longest - 1}.*set data\.max_length={longest} or more",
    )


@pytest.mark.detail("A8")
def test_every_limit_that_is_too_small_is_named_at_once(tmp_path: Path, write: Write) -> None:
    path = write("posts.jsonl", posts(30))
    prepare_badly(
        files(path, max_length=12, max_response_tokens=3),
        tmp_path / "out",
        r"set data\.max_response_tokens=\d+ or more.*; .*set data\.max_length=\d+ or more",
    )


@pytest.mark.detail("A3")
def test_long_queries_can_be_cut_hard_or_left_out(tmp_path: Path, write: Write) -> None:
    path = write("posts.jsonl", posts(60))
    by = {}
    for truncation in ("paragraph", "tokens", "filter"):
        config = files(path, max_query_tokens=40, truncation=truncation)
        by[truncation] = prepare(config, TINY, None, tmp_path / truncation)["splits"]["train"]
    folders = {name: DataDir(tmp_path / name) for name in by}
    rows = {name: folder.demonstrations("train") for name, folder in folders.items()}
    codec = folders["tokens"].codec()
    cued = {name: [d.query.endswith("TL;DR:") for d in part] for name, part in rows.items()}
    assert all(cued["paragraph"])
    assert not all(cued["tokens"])
    assert all(cued["filter"])
    assert by["filter"]["truncated_share"] == 0
    assert by["filter"]["dropped"] == cued["tokens"].count(False) > 0
    assert by["paragraph"]["dropped"] == by["tokens"]["dropped"] == 0
    for demonstration, cue in zip(rows["tokens"], cued["tokens"], strict=True):
        whole = f"POST: {demonstration.fields['post']}\n\nTL;DR:"
        if not cue:
            assert demonstration.query == codec.decode(codec.encode(whole)[:40])


@pytest.mark.detail("A8")
def test_cut_keeps_long_responses_for_the_tokenizer_to_cut(tmp_path: Path, write: Write) -> None:
    rows = posts(30)
    rows[4] = {**rows[4], "summary": "long " * 30}
    config = files(write("p.jsonl", rows), max_response_tokens=20, overlong="cut")
    report = prepare(config, TINY, None, tmp_path / "out")["splits"].values()
    assert sum(part["rows"] for part in report) == 30
    assert max(part["response_tokens_max"] for part in report) > 20


def test_a_post_that_cannot_be_cut_is_named(tmp_path: Path, write: Write) -> None:
    rows = [
        {"id": str(n), "subreddit": "a", "title": "t", "post": f"p{n}", "summary": "s"}
        for n in range(9)
    ]
    rows[3]["title"] = "an endless title " * 40
    path = write("posts.jsonl", rows)
    prepare_badly(
        files(path, max_query_tokens=60), tmp_path / "out", r"line 4: \d+ tokens without any 'post'"
    )
    report = prepare(
        files(path, max_query_tokens=60, overlong="drop"), TINY, None, tmp_path / "out"
    )
    assert sum(part["dropped"] for part in report["splits"].values()) == 1


def test_a_ready_made_prompt_is_never_cut(tmp_path: Path, write: Write) -> None:
    rows = [{"prompt": f"q {n} TL;DR:", "completion": "s"} for n in range(9)]
    rows[2]["prompt"] = "too long " * 40
    prepare_badly(
        files(write("p.jsonl", rows), max_query_tokens=60),
        tmp_path / "out",
        "line 3: a ready-made query",
    )


def test_all_rows_dropped_is_an_error(tmp_path: Path, write: Write) -> None:
    rows = [{**row, "summary": "long " * 30} for row in posts(9)]
    path = write("posts.jsonl", rows)
    config = files(path, max_response_tokens=4, overlong="drop")
    prepare_badly(config, tmp_path / "out", "every row of train was dropped")


def test_a_late_bad_row_leaves_nothing_behind(tmp_path: Path, write: Write) -> None:
    write("d/train.jsonl", posts(20))
    write("d/valid.jsonl", posts(5))
    write("d/test.jsonl", [*posts(5), {"id": "x", "post": "p", "summary": None}])
    prepare_badly(
        files(tmp_path / "d"), tmp_path / "out", r"test\.jsonl, line 6: field 'summary' is null"
    )


def test_no_tokenizer_is_explained(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match=r"no tokenizer: set tokenizer\.vocab_size"):
        prepare(files(write("p.jsonl", posts(9))), TokenizerConfig(), None, tmp_path / "out")


def test_a_folder_that_is_not_prepared_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match="not prepared data"):
        DataDir(tmp_path)
    prepare(files(write("p.jsonl", posts(9))), TINY, None, tmp_path / "out")
    with pytest.raises(InputError, match=r"no split 'news'; there are train, valid, test"):
        DataDir(tmp_path / "out").demonstrations("news")


# Comparisons and the world.


def test_comparisons_are_cut_to_length(
    codec: Codec, comparison_rows: list[Row], write: Write
) -> None:
    path = write("comparisons.jsonl", comparison_rows)
    whole, dropped = read_comparisons(path, codec, DataConfig())
    assert dropped == 0
    assert (
        whole[0].query
        == "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat number 0 eats paper.\n\nTL;DR:"
    )
    assert (whole[1].chosen, whole[1].rejected) == ("Second one.", "First one.")
    assert whole[10].query == "Article:\nA storm closed the harbour.\nTwo boats sank.\n\nTL;DR:\n"
    limit = len(codec.encode(whole[10].query)) - 1
    cut, _ = read_comparisons(path, codec, DataConfig(max_query_tokens=limit, overlong="drop"))
    assert cut[-1].query == "Article:\nA storm closed the harbour.\n\nTL;DR:\n"
    assert all(len(codec.encode(c.query)) <= limit for c in cut)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("world") / "data"
    sizes = WorldConfig(pretrain=60, train=40, valid=10, test=10, heldout=5, news=12)
    return out, prepare(DataConfig(world=sizes), TokenizerConfig(vocab_size=600), None, out)


def test_the_world_fills_every_split(world: tuple[Path, dict[str, Any]]) -> None:
    out, report = world
    folder = DataDir(out)
    rows = {split: part["rows"] for split, part in report["splits"].items()}
    news = rows.pop("news")
    expected = {"train": 40, "valid": 10, "test": 10, "valid_heldout": 5, "test_heldout": 5}
    assert rows == expected | {"pretrain": 60}
    assert 0 < news <= 12
    assert set(folder.splits()) == set(report["splits"])
    assert all(d.query.endswith("TL;DR:\n") for d in folder.demonstrations("news"))


def test_the_worlds_facts_cover_every_evaluated_prompt(world: tuple[Path, dict[str, Any]]) -> None:
    from nplus.records import parse_lines

    folder = DataDir(world[0])
    assert folder.facts_path is not None
    known = {row["id"] for _, row in parse_lines(folder.facts_path)}
    for split in set(folder.splits()) - {"pretrain"}:
        assert {d.id for d in folder.demonstrations(split)} <= known


def test_the_worlds_comparisons_can_be_read(world: tuple[Path, dict[str, Any]]) -> None:
    folder = DataDir(world[0])
    paths = folder.comparison_files()
    assert set(paths) == {"valid", "test", "valid_heldout", "test_heldout", "news"}
    rows = {split: len(folder.demonstrations(split)) for split in paths if split != "news"}
    for split, count in rows.items():
        pairs, _ = read_comparisons(paths[split], folder.codec(), DataConfig())
        assert len(pairs) == count


def test_a_worlds_row_at_fault_is_named(tmp_path: Path) -> None:
    sizes = WorldConfig(pretrain=4, train=9, valid=2, test=2, heldout=2, news=0)
    with pytest.raises(InputError, match=r"the world's data/\w+\.jsonl, line \d+: the response"):
        prepare(DataConfig(world=sizes, max_response_tokens=5), TINY, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Real text beside the project.


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the project (shared/data)")
    return SHARED / name


@pytest.mark.slow
def test_real_posts(tmp_path: Path) -> None:
    config = files(shared("reddit_tldr.jsonl"), max_query_tokens=256, overlong="drop")
    report = prepare(config, TokenizerConfig(vocab_size=2048), None, tmp_path / "out")
    parts = report["splits"].values()
    assert sum(part["rows"] + part["dropped"] for part in parts) == 2024
    assert all(part["query_tokens_max"] <= 256 for part in parts)
    assert report["overlap"] == {"valid": 0, "test": 0}
    assert report["seam_mismatches"] == 0


@pytest.mark.slow
def test_real_abstracts(tmp_path: Path, write: Write) -> None:
    from nplus.records import parse_lines

    rows = [
        {"id": row["id"], "abstract": row["abstract"], "summary": row["tldrs"][0]}
        for _, row in parse_lines(shared("scitldr_dev.jsonl"))
    ]
    config = files(
        write("abstracts.jsonl", rows),
        template="{abstract}\n\nTL;DR:",
        max_query_tokens=128,
        max_response_tokens=80,
        overlong="drop",
    )
    report = prepare(config, TokenizerConfig(vocab_size=2048), None, tmp_path / "out")
    assert sum(part["rows"] + part["dropped"] for part in report["splits"].values()) == len(rows)
    assert all(part["truncated_share"] > 0.3 for part in report["splits"].values())
