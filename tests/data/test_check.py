"""The data check: faults planted on purpose are named with their rows, clean data names none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nplus.config.data import ComparisonsConfig, DataConfig
from nplus.data.check import Checker, check_source, one_line
from nplus.data.check.bias import LengthBias
from nplus.data.check.count import TokenCounter
from nplus.data.check.kinds import KINDS, SEVERITIES
from nplus.data.check.rows import as_raw
from nplus.data.sources import load_comparisons, load_demonstrations
from nplus.data.tokens import Codec, TextRules
from nplus.records import Comparison, InputError

Row = dict[str, Any]
Write = Callable[..., Path]
SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = "The harbour closed and the boat we never bought sank near the pier, number {}."


def post(n: int, **changed: Any) -> Row:
    base = {"id": f"t3_{n}", "subreddit": "pets", "title": f"Cat {n}", "post": GOOD.format(n)}
    return {**base, "summary": f"Boat {n} sank.", **changed}


def pair(n: int, **changed: Any) -> Row:
    # The longer is preferred in every second row.
    texts = [f"No. {n} is short.", f"No. {n} is a good deal longer."][:: 1 if n % 2 else -1]
    return {"prompt": f"What of boat {n}?", "chosen": texts[0], "rejected": texts[1], **changed}


def rows_of(report: Row, kind: str) -> list[int]:
    """Row numbers of a kind, over all severities."""
    found = [f for f in report["findings"] if f["kind"] == kind]
    return [row["row"] for f in found for row in f["rows"]]


def kinds(report: Row) -> set[str]:
    return {f["kind"] for f in report["findings"]} - {"tokens_skipped"}


def severity(report: Row, kind: str) -> str:
    (found,) = [f for f in report["findings"] if f["kind"] == kind]
    return found["severity"]


# Clean data.


def test_clean_data_gives_nothing(write: Write, codec: Codec) -> None:
    posts = write("posts.jsonl", [post(n) for n in range(40)])
    for report in (check_source(posts, DataConfig(), codec), check_source(posts, DataConfig())):
        assert kinds(report) == set()
        assert (report["ok"], report["rows"], report["faulty_rows"]) == (True, 40, 0)
    pairs = write("pairs.jsonl", [pair(n) for n in range(40)])
    assert check_source(pairs, DataConfig(), codec)["findings"] == []


def test_the_world_is_clean(tmp_path: Path, codec: Codec) -> None:
    from nplus.data.world.export import WorldSpec, export

    sizes = dict.fromkeys(("train", "valid", "test", "valid_heldout", "test_heldout"), 40)
    pairs = {f"comparisons_{name}": 40 for name in sizes}
    paths = export(WorldSpec(pretrain=20, news=5, **sizes, **pairs), tmp_path)
    for name in ("train", "comparisons_train"):
        data = DataConfig(max_query_tokens=2000, max_response_tokens=400)
        assert kinds(check_source(paths[name], data, codec)) == set(), name


# What the loaders refuse: each at its row, and the rows behind it are read.

BROKEN: list[tuple[bytes, str]] = [
    (b"{broken", "broken_json"),
    (b"[1, 2]", "not_an_object"),
    (b'"text"', "not_an_object"),
    (json.dumps(post(7)).encode().replace(b"Boat", b"Caf\xe9"), "not_utf8"),
    (json.dumps(post(7)).encode().replace(b"Boat", b"\\ud83d"), "half_character"),
    (b"[" * 100_000, "broken_json"),
    (b'{"post": ' + b"9" * 5000 + b"}", "broken_json"),
    (json.dumps({k: v for k, v in post(7).items() if k != "title"}).encode(), "missing_field"),
    (json.dumps(post(7, title=None)).encode(), "wrong_type"),
    (json.dumps(post(7, post=["a"])).encode(), "wrong_type"),
    (json.dumps(post(7, post=" \n")).encode(), "empty_field"),
    (json.dumps(post(7, summary="")).encode(), "empty_field"),
]


@pytest.mark.parametrize(("line", "kind"), BROKEN, ids=range(len(BROKEN)))
def test_a_faulty_line_is_named_and_refused_by_the_loader_too(
    tmp_path: Path, line: bytes, kind: str
) -> None:
    good = [json.dumps(post(n)).encode() for n in range(6)]
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b"\n".join([*good[:3], b"", line, *good[3:], line]) + b"\n")
    report = check_source(path, DataConfig())
    assert kinds(report) == {kind}
    assert rows_of(report, kind) == [5, 9]  # the blank line 4 counts as a line
    assert (report["ok"], report["faulty_rows"], report["rows"]) == (False, 2, 8)
    with pytest.raises(InputError, match=r"posts\.jsonl, line 5: "):
        load_demonstrations(path)


def test_every_faulty_row_is_counted_and_some_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text("{\n" * 5_000 + json.dumps(post(1)) + "\n", encoding="utf-8")
    report = check_source(path, DataConfig())
    assert kinds(report) == {"broken_json"}
    found = report["findings"][0]
    assert (found["count"], found["of"], len(found["rows"])) == (5_000, 5_001, 100)
    assert found["share"] == pytest.approx(5_000 / 5_001)


@pytest.mark.parametrize(
    ("changed", "kind", "field"),
    [
        ({"choice": 2}, "wrong_value", "choice"),
        ({"choice": None}, "wrong_value", "choice"),
        ({"summaries": "ab"}, "wrong_type", "summaries"),
        ({"summaries": [{"text": "a"}]}, "wrong_type", "summaries"),
        ({"info": None}, "missing_field", "info"),
        ({"extra": {"confidence": "high"}}, "wrong_value", "extra.confidence"),
        ({"extra": "high"}, "wrong_type", "extra"),
        ({"split": "dev"}, "unknown_split", "split"),
    ],
)
def test_faults_of_the_public_schema(
    write: Write, comparison_rows: list[Row], changed: Row, kind: str, field: str
) -> None:
    rows = [comparison_rows[0], comparison_rows[0] | changed, comparison_rows[1]]
    report = check_source(write("pairs.jsonl", rows), DataConfig())
    assert rows_of(report, kind) == [2]
    (found,) = [f for f in report["findings"] if f["kind"] == kind]
    assert found["rows"][0]["field"] == field
    assert report["rows"] == 3


def test_columns_of_no_known_kind(write: Write) -> None:
    report = check_source(write("x.jsonl", [{"a": "b"}] * 3), DataConfig())
    assert rows_of(report, "unknown_columns") == [1, 2, 3]
    assert report["files"][0]["kind"] == "unknown"
    empty = check_source(write("e.jsonl", []), DataConfig())
    assert kinds(empty) == {"no_rows"}
    dialogues = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c"}
    assert rows_of(check_source(write("d.jsonl", [dialogues]), DataConfig()), "no_shared_prompt")


def test_the_layout_is_that_of_most_rows(write: Write) -> None:
    rows = [{"post": "only this", "summary": "x"}, *[post(n) for n in range(5)]]
    report = check_source(write("posts.jsonl", rows), DataConfig())
    assert rows_of(report, "missing_field") == [1]


def test_what_is_no_source_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("none.jsonl", "no such file"),
        ("notes.txt", "unknown kind of file"),
        ("folder", "no file in it"),
    ):
        with pytest.raises(InputError, match=said):
            check_source(tmp_path / name, DataConfig())


def test_parquet_and_junk_that_says_it_is(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [post(1), post(2, summary=""), post(3)]
    path = tmp_path / "posts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert rows_of(check_source(path, DataConfig()), "empty_field") == [2]
    path.write_bytes(b"PAR1 junk PAR1")
    assert kinds(check_source(path, DataConfig())) == {"unreadable"}


# What a run takes, and may suffer from.


def test_duplicates_and_ids(write: Write) -> None:
    rows = [post(n) for n in range(5)]
    rows += [post(2), post(3, summary="Another."), post(4, post="Other text.", title="New")]
    rows += [post(1, id="t3_9", post=post(1)["post"].upper())]
    report = check_source(write("posts.jsonl", rows), DataConfig())
    assert rows_of(report, "duplicate_row") == [6, 9]  # 9 but for its case, under another id
    assert rows_of(report, "duplicate_prompt") == [7]
    assert rows_of(report, "duplicate_id") == [8]
    assert severity(report, "duplicate_prompt") == "note"
    assert severity(report, "duplicate_id") == "error"  # a run refuses it too
    assert not report["ok"]
    del rows[7]
    assert check_source(write("posts.jsonl", rows), DataConfig())["ok"]


def test_pairs_that_teach_nothing_or_the_contrary(write: Write) -> None:
    rows = [pair(n) for n in range(8)]
    swapped = {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    rows += [pair(9, chosen="Same.", rejected="Same."), rows[3] | swapped, rows[4]]
    rows += [pair(11, score_chosen=4.0, score_rejected=4.0), pair(12, extra={"confidence": 5})]
    rows += [pair(13, score_chosen=4.0, score_rejected=3.0)]
    report = check_source(write("pairs.jsonl", rows), DataConfig())
    assert rows_of(report, "identical_pair") == [9]
    assert rows_of(report, "conflicting_label") == [10]
    assert rows_of(report, "duplicate_row") == [11]
    assert rows_of(report, "tie") == [12, 13]
    (found,) = [f for f in report["findings"] if f["kind"] == "conflicting_label"]
    assert "line 4 prefers the other" in found["rows"][0]["why"]
    assert (found["unit"], found["of"]) == ("pairs", len(rows))
    assert report["ok"]


def test_another_worker_is_another_opinion(write: Write, comparison_rows: list[Row]) -> None:
    one = comparison_rows[0]
    rows = [one, one | {"worker": "other"}, one]
    assert rows_of(check_source(write("p.jsonl", rows), DataConfig()), "duplicate_row") == [3]


def test_an_empty_text_of_a_policy(write: Write, comparison_rows: list[Row]) -> None:
    row = comparison_rows[0] | {"summaries": [{"text": " ", "policy": "a"}, {"text": " b"}]}
    report = check_source(write("p.jsonl", [comparison_rows[1], row]), DataConfig())
    assert rows_of(report, "empty_response") == [2]
    assert report["ok"]


def test_leakage_between_splits_and_against_files(tmp_path: Path, write: Write) -> None:
    train = [post(n) for n in range(20)]
    # The same post: as it is, in other case and spacing, and under another title.
    same = [train[3], post(4, post=post(4)["post"].upper().replace(" ", "  "))]
    held = [post(100), *same, post(5, title="Another", id="x")]
    write("d/train.jsonl", train)
    write("d/test.jsonl", held)
    report = check_source(tmp_path / "d", DataConfig())
    assert rows_of(report, "leakage") == [2, 3, 4]
    (found,) = [f for f in report["findings"] if f["kind"] == "leakage"]
    assert found["rows"][0]["file"].endswith("test.jsonl")
    assert "train.jsonl, line 4" in found["rows"][0]["why"]
    assert (found["count"], found["of"]) == (3, 4)
    # Two files: the second is held out, whatever its name; comparisons hold the same prompts.
    sft, other = write("sft.jsonl", train), write("other.jsonl", held)
    assert rows_of(check_source(sft, DataConfig(), against=[str(other)]), "leakage") == [2, 3, 4]
    queries = [
        pair(n, prompt=f"SUBREDDIT: r/pets\n\nTITLE: Cat {n}\n\nPOST: {GOOD.format(n)}\n\nTL;DR:")
        for n in (50, 3, 51)
    ]
    pairs = write("pairs.jsonl", queries)
    test = write("e/test.jsonl", held)
    assert rows_of(check_source(pairs, DataConfig(), against=[str(test)]), "leakage") == [2]
    # Within comparisons the rows say their split.
    both = [pair(n) for n in range(10)] + [pair(4, split="valid1", chosen="c", rejected="d")]
    assert rows_of(check_source(write("b.jsonl", both), DataConfig()), "leakage") == [11]


def test_a_folder_needs_a_training_split_and_says_what_it_leaves(tmp_path: Path, write: Write):
    write("d/test.jsonl", [post(1)])
    write("d/notes.json", [{"a": "b"}])
    report = check_source(tmp_path / "d", DataConfig())
    assert kinds(report) == {"no_train", "not_read"}
    assert not report["ok"]


# Lengths, EOS and markers.


def test_queries_that_are_cut_or_cannot_be(write: Write, codec: Codec, sft_rows: list[Row]) -> None:
    path = write("posts.jsonl", sft_rows)
    data = DataConfig(max_query_tokens=200, max_response_tokens=400)
    report = check_source(path, data, codec)
    assert rows_of(report, "truncated_query") == [1, 2]
    assert report["lengths"]["truncated"] == {"count": 2, "of": 8, "share": 0.25}
    assert severity(report, "truncated_query") == "warning"  # a quarter
    report = check_source(path, data.model_copy(update={"truncation": "filter"}), codec)
    assert rows_of(report, "filtered_query") == [1, 2]
    ready = [{"query": row["post"], "response": "x"} for row in sft_rows]
    for overlong, expected in (("error", "error"), ("drop", "warning")):
        config = data.model_copy(update={"overlong": overlong})
        report = check_source(write("q.jsonl", ready), config, codec)
        assert rows_of(report, "overlong_query") == [1, 2]
        assert severity(report, "overlong_query") == expected
    head = [post(1), post(2, title="long " * 200)]
    report = check_source(write("h.jsonl", head), data, codec)
    assert rows_of(report, "overlong_query") == [2]


@pytest.mark.parametrize(
    ("overlong", "kind", "how_bad"),
    [
        ("error", "overlong_response", "error"),
        ("drop", "overlong_response", "warning"),
        ("cut", "eos_lost", "warning"),
    ],
)
def test_responses_over_their_limit(
    write: Write, codec: Codec, overlong: str, kind: str, how_bad: str
) -> None:
    rows = [post(n) for n in range(12)]
    rows[4]["summary"] = rows[8]["summary"] = "the boat is gone " * 30
    longest = len(codec.encode_response(rows[4]["summary"]))
    data = DataConfig(max_response_tokens=30, overlong=overlong)
    rules = TextRules(cut_to=30 if overlong == "cut" else None)
    report = check_source(write("p.jsonl", rows), data, codec.with_rules(rules))
    assert rows_of(report, kind) == [5, 9]
    assert severity(report, kind) == how_bad
    (found,) = [f for f in report["findings"] if f["kind"] == kind]
    assert f"{longest} tokens" in found["rows"][0]["why"]
    if overlong != "cut":
        assert f"set data.max_response_tokens={longest}" in found["mend"]
    kept = 10 if overlong == "cut" else 12
    assert report["lengths"]["eos"] == {"kept": kept, "of": 12, "share": kept / 12}


def test_query_and_response_together(write: Write, codec: Codec) -> None:
    rows = [post(n) for n in range(5)]
    rows[2]["summary"] = "the boat is gone " * 10
    lengths = [
        len(
            codec.encode(f"SUBREDDIT: r/pets\n\nTITLE: {r['title']}\n\nPOST: {r['post']}\n\nTL;DR:")
        )
        + len(codec.encode_response(r["summary"]))
        for r in rows
    ]
    data = DataConfig(max_response_tokens=400, max_length=lengths[2] - 1)
    report = check_source(write("p.jsonl", rows), data, codec)
    assert rows_of(report, "overlong_length") == [3]
    ok = data.model_copy(update={"max_length": lengths[2]})
    assert kinds(check_source(write("p.jsonl", rows), ok, codec)) == set()


def test_limits_of_comparisons_are_their_own(write: Write, codec: Codec, comparison_rows) -> None:
    limits = ComparisonsConfig(max_response_tokens=100)
    data = DataConfig(max_response_tokens=3, comparisons=limits)
    report = check_source(write("p.jsonl", comparison_rows), data, codec)
    assert rows_of(report, "overlong_response") == [5]


def test_end_markers_in_texts(write: Write, codec: Codec, sft_rows: list[Row]) -> None:
    report = check_source(write("p.jsonl", sft_rows), DataConfig(), codec)
    assert rows_of(report, "eos_text") == [5]
    fields = [r["field"] for f in report["findings"] if f["kind"] == "eos_text" for r in f["rows"]]
    assert fields == ["response"]


def test_a_seam_that_does_not_hold(write: Write, codec: Codec) -> None:
    rows = write("m.jsonl", [{"query": f"{n} th", "response": "e boat"} for n in range(3)])
    assert len(codec.encode("the")) < len(codec.encode("th")) + len(codec.encode("e"))
    bare = codec.with_rules(TextRules(leading_space=False))
    assert rows_of(check_source(rows, DataConfig(), bare), "seam") == [1, 2, 3]
    assert kinds(check_source(rows, DataConfig(), codec)) == set()  # the one space of Detail A6


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8")), max_size=6))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lengths_are_those_of_the_codec(codec: Codec, texts: list[str]) -> None:
    assert codec.splits_at_spaces
    spaced = [*texts, "  ".join(texts), " \n ".join(texts), " ".join(texts)]
    assert TokenCounter(codec)(spaced) == [len(ids) for ids in codec.encode_batch(spaced)]


def test_the_template_is_shown_with_its_boundaries(write: Write, codec: Codec) -> None:
    (shown,) = check_source(write("p.jsonl", [post(1)]), DataConfig(), codec)["preview"]
    query = f"SUBREDDIT: r/pets\n\nTITLE: Cat 1\n\nPOST: {GOOD.format(1)}\n\nTL;DR:"
    assert (shown["query"], shown["response"]) == (query, " Boat 1 sank.")
    begins, ids = shown["response_begins"], shown["ids"]
    assert codec.decode(ids[:begins]) == query
    assert codec.decode(ids[begins:]) == " Boat 1 sank."
    assert ids[shown["eos"]] == codec.eos_id
    assert shown["eos"] == len(ids) - 1
    assert len(shown["tokens"]) == len(ids)


# Length bias.


def test_length_bias_is_measured_and_told(write: Write) -> None:
    rows = [pair(n, chosen=f"{n} is quite a long answer.", rejected=f"{n}.") for n in range(60)]
    report = check_source(write("p.jsonl", rows), DataConfig())
    assert kinds(report) == {"length_bias"}
    share = report["length_bias"]["longer_preferred"]
    assert share["value"] == 1.0
    assert share["low"] == pytest.approx(60 / (60 + 1.959964**2), abs=1e-6)  # Wilson at 60 of 60
    few = check_source(write("few.jsonl", rows[:3]), DataConfig())
    assert kinds(few) == set()  # three pairs show nothing


def test_the_correlation_is_that_of_both_sides() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(5, 60, 200), rng.integers(3, 50, 200)
    bias = LengthBias()
    for c, r in zip(chosen, rejected, strict=True):
        bias.feed(int(c), int(r))
    found = bias.measure("tokens")
    x = np.log((chosen + 1) / (rejected + 1))
    outcomes = np.r_[np.ones(200), -np.ones(200)]
    expected = np.corrcoef(outcomes, np.r_[x, -x])[0, 1]
    assert found["correlation"]["value"] == pytest.approx(expected)
    assert found["correlation"]["low"] < expected < found["correlation"]["high"]
    half = 1.959964 / math.sqrt(197)
    assert math.atanh(found["correlation"]["high"]) - math.atanh(expected) == pytest.approx(half)


# The report as a whole.


def test_the_report_is_json_of_a_fixed_form(write: Write, codec: Codec) -> None:
    rows = [post(1), post(1), post(2, summary=""), pair(3)]
    report = check_source(write("p.jsonl", rows), DataConfig(), codec)
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {
        *("source", "files", "schema", "ok", "rows", "faulty_rows", "errors", "warnings"),
        *("notes", "splits", "findings", "lengths", "length_bias", "preview"),
    }
    for found in report["findings"]:
        assert set(found) == {
            *("kind", "severity", "count", "of", "unit", "share", "cause", "mend", "rows")
        }
        assert found["kind"] in KINDS
        assert found["severity"] in SEVERITIES
        assert 0 < found["count"] <= found["of"]
        for row in found["rows"]:
            assert set(row) == {"file", "row", "split", "field", "why"}
    severities = [SEVERITIES.index(f["severity"]) for f in report["findings"]]
    assert severities == sorted(severities)
    assert one_line(report).startswith("4 rows checked: 2 errors (")


def test_the_guide_explains_every_kind() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in guide] == []


def test_nothing_is_written(tmp_path: Path, write: Write, codec: Codec) -> None:
    path = write("p.jsonl", [post(1), post(1), {"a": 1}])
    before = path.read_bytes(), path.stat().st_mtime_ns
    check_source(path, DataConfig(), codec)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("id", "post", "title", "subreddit", "summary", "article", "prompt", "query", "chosen"),
        *("rejected", "completion", "response", "text", "info", "summaries", "choice", "extra"),
        *("split", "responses", "policies", "worker", "batch", "confidence"),
    ]
)
LINES = st.one_of(
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"")),
    st.dictionaries(NAMES, VALUES, max_size=6).map(lambda row: json.dumps(row).encode()),
    st.builds(lambda row: json.dumps(row).encode(), st.dictionaries(NAMES, st.text(max_size=9))),
)


@given(lines=st.lists(LINES, max_size=8), suffix=st.sampled_from([".jsonl", ".json", ".parquet"]))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_junk_raises_nothing_but_input_errors(
    tmp_path: Path, codec: Codec, lines: list[bytes], suffix: str
) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(b"\n".join(lines))
    for tokens in (codec, None):
        try:
            report = check_source(path, DataConfig(), tokens)
        except InputError:
            continue
        json.dumps(report, ensure_ascii=False).encode()
        assert report["rows"] == sum(bool(line.strip()) for line in lines) or suffix == ".parquet"


@given(lines=st.lists(LINES, min_size=1, max_size=4))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_loaders_refuse_junk_with_input_errors(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "junk.jsonl"
    path.write_bytes(b"\n".join(lines))
    for load in (load_demonstrations, load_comparisons):
        try:
            load(path)
        except InputError:
            continue
        assert check_source(path, DataConfig())["faulty_rows"] in range(len(lines) + 1)


def test_records_of_a_run_are_known(write: Write) -> None:
    rows = [
        {"id": "a", "query": f"Q{n}", "responses": [f"x{n}", "a y"], "policies": ["p", "q"]}
        | {"choice": n % 2, "split": "train"}
        for n in range(4)
    ]
    rows += [rows[0] | {"responses": ["z", "z"]}, rows[1] | {"responses": ["z"]}, {"id": "b"}]
    report = check_source(write("comparisons.jsonl", rows), DataConfig())
    assert rows_of(report, "identical_pair") == [5]
    assert rows_of(report, "wrong_type") == [6]
    assert rows_of(report, "missing_field") == [7]
    assert report["files"][0]["kind"] == "records"


def test_prompts_alone(write: Write, codec: Codec) -> None:
    rows = [{"prompt": f"Say {n} to me."} for n in range(4)] + [{"prompt": "Say 2 to me."}]
    rows += [{"prompt": " "}]
    report = check_source(write("prompts.jsonl", rows), DataConfig(), codec)
    assert report["files"][0]["kind"] == "prompts"
    assert rows_of(report, "duplicate_row") == [5]
    assert rows_of(report, "empty_field") == [6]
    assert report["lengths"]["response"] is None


def test_rows_that_are_fitted_are_not_measured_again(codec: Codec) -> None:
    row = Comparison("a", "word " * 300, ("x", "y"), ("p", "q"), 0)
    for fitted in (True, False):
        checker = Checker(DataConfig(max_query_tokens=20), codec, fitted=fitted)
        checker.feed("comparisons", "train", [as_raw(row, "c.jsonl, line 1")])
        assert checker.report()["ok"] is fitted


@pytest.mark.parametrize(
    ("name", "rows"), [("reddit_tldr.jsonl", 2024), ("hh_harmless.jsonl", 1733)]
)
def test_real_text_is_checked_whole(name: str, rows: int, codec: Codec) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the project (shared/data)")
    report = check_source(SHARED / name, DataConfig(overlong="drop"), codec)
    assert report["rows"] == rows
    assert report["rows"] == report["faulty_rows"] + sum(
        s["rows"] for s in report["splits"].values()
    )
    if name == "hh_harmless.jsonl":
        # Blank answers, and pairs of dialogues that part early, are in the published data.
        assert (len(rows_of(report, "empty_field")), len(rows_of(report, "no_shared_prompt"))) == (
            3,
            4,
        )
