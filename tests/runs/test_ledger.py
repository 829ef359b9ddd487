"""The ledger: what is written is read, the views count by hand, and a query reads nothing else."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nplus.algorithms.pairing import REASONS
from nplus.cli import app
from nplus.records import InputError
from nplus.runs.ledger import LONG, VIEWS, LedgerRow, query, read_ledger, write_ledger


def row(round, prompt, scores, tokens, reason="", chosen=0, rejected=1, **changed):
    count = len(scores)
    return LedgerRow(
        **{
            "round": round,
            "prompt": prompt,
            "query": "q",
            "policies": ("sft",) * count,
            "policy_hashes": ("h",) * count,
            "temperatures": (1.0,) * count,
            "seeds": tuple(f"{prompt}{i}" for i in range(count)),
            "responses": tuple(f"{prompt} {round} {i}" for i in range(count)),
            "tokens": tokens,
            "characters": tokens,
            "ended": (True,) * count,
            "scorer_hashes": ("s",),
            "member_scores": (scores,),
            "scores": scores,
            "penalised": scores,
            "raw_order": tuple(range(count)),
            "penalised_order": tuple(range(count)),
            "reference_hash": "r",
            "pairing": "best_worst",
            "comparator_hash": "",
            "matches": (),
            "preferences": (),
            "length_penalty": 0.0,
            "length_unit": "characters",
            "chosen": chosen,
            "rejected": rejected,
            "margin": scores[chosen] - scores[rejected],
            "reason": reason,
            **changed,
        }
    )


ROUNDS = {
    1: [row(1, "a", (3.0, 1.0), (10, 20)), row(1, "b", (2.0, 2.0), (5, 5), "tie")],
    2: [row(2, "a", (5.0, 3.0), (30, 10)), row(2, "c", (1.0, 0.0), (4, 8))],
}


@pytest.fixture
def paths(tmp_path):
    found = []
    for number, rows in ROUNDS.items():
        found.append(tmp_path / f"round{number}.parquet")
        write_ledger(found[-1], rows)
    return found


def test_what_is_written_is_read(paths):
    assert [read_ledger(path) for path in paths] == list(ROUNDS.values())


def test_equal_rows_give_equal_bytes(paths, tmp_path):
    write_ledger(tmp_path / "again.parquet", ROUNDS[1])
    assert (tmp_path / "again.parquet").read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("reward_by_round", [(1, 2, 2.0, 2.5, 1.5, 2.0), (2, 2, 2.25, 3.0, 1.5, 1.5)]),
        ("length_by_round", [(1, 10.0, 1.0, 10.0, 20.0, -1.0), (2, 13.0, 1.0, 17.0, 9.0, 0.0)]),
        ("left_out", [(1, 2, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5), (2, 2, *[0.0] * 5, 1.0)]),
        ("reuse", [(1, 2, 1.0), (2, 1, 1.0)]),
    ],
)
def test_views_by_hand(paths, view, expected):
    _, rows = query(paths, f"SELECT * FROM {view}")
    assert len(rows) == len(expected)
    for found, wanted in zip(rows, expected, strict=True):
        assert found == pytest.approx(wanted)


def test_every_reason_has_a_share(tmp_path):
    reasons = ("", *REASONS)
    rows = [row(1, reason, (3.0, 1.0), (10, 20), reason) for reason in reasons]
    write_ledger(tmp_path / "round1.parquet", rows)
    names, ((_, prompts, *shares),) = query([tmp_path / "round1.parquet"], "FROM left_out")
    assert prompts == len(rows)
    assert {*names[2:]} == {*REASONS, "kept"}
    assert shares == pytest.approx([1 / len(rows)] * len(rows))


def test_a_prompt_without_all_its_scores_counts_for_length_alone(tmp_path):
    nan = float("nan")
    rows = [row(1, "a", (3.0, 1.0), (10, 20)), row(1, "b", (nan, 2.0), (5, 6), "nan")]
    write_ledger(tmp_path / "round1.parquet", rows)
    paths = [tmp_path / "round1.parquet"]
    assert query(paths, "SELECT * FROM reward_by_round")[1] == [(1, 2, 2.0, 3.0, 1.0, 2.0)]
    lengths = query(paths, "SELECT * FROM length_by_round")[1]
    assert lengths == [(1, pytest.approx(10.25), 1.0, 10.0, 20.0, pytest.approx(-1.0))]


def test_json_has_null_for_what_is_no_number(run):
    sql = "SELECT 'nan'::DOUBLE AS x, [1.5, 'inf'::DOUBLE] AS y, 'a' AS z"
    found = CliRunner().invoke(app, ["ledger", str(run), sql, "--format", "json"])
    assert json.loads(found.stdout) == {"x": None, "y": [1.5, None], "z": "a"}


def test_samples_say_which_were_paired(paths):
    _, rows = query(
        paths, "SELECT prompt, sample, is_chosen, is_rejected FROM samples ORDER BY ALL"
    )
    assert len(rows) == 8
    assert ("b", 0, False, False) in rows  # a tie: left out
    assert ("a", 1, False, True) in rows


def test_matches_one_by_one(paths, tmp_path):
    played = {"matches": ((0, 1), (1, 0)), "preferences": (0.25, 0.75), "comparator_hash": "c"}
    asked = row(3, "a", (3.0, 1.0), (10, 20), **played)
    write_ledger(tmp_path / "round3.parquet", [asked])
    (again,) = read_ledger(tmp_path / "round3.parquet")
    assert (again.matches, again.preferences) == (((0, 1), (1, 0)), (0.25, 0.75))
    names, rows = query([*paths, tmp_path / "round3.parquet"], "FROM matches ORDER BY number")
    assert names[3:6] == ["response", "opponent", "p"]
    assert rows == [(3, "a", 1, 0, 1, 0.25, "c"), (3, "a", 2, 1, 0, 0.75, "c")]


def test_a_ledger_from_before_a_column_is_queried_without_it(paths):
    older = pq.read_table(paths[0]).drop_columns(["matches", "preferences"])
    pq.write_table(older, paths[0])
    assert query(paths, "FROM matches")[1] == []
    assert query(paths, "SELECT count(*) FROM pairs")[1] == [(3,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY ledger TO '{path}'",
        "COPY ledger TO '{path}.csv'",
        "ATTACH '{path}.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT nothing FROM ledger",
        "not SQL",
    ],
)
def test_a_query_that_reads_or_writes_elsewhere_is_refused(paths, sql, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="the tables are ledger, samples"):
        query(paths, sql.format(path=paths[0]))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"PAR1 not", b"{}"])
def test_a_damaged_ledger_is_told(tmp_path, content):
    (tmp_path / "ledger.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"ledger\.parquet: not a ledger"):
        read_ledger(tmp_path / "ledger.parquet")


@pytest.fixture
def run(tmp_path, paths):
    """A run of two rounds, as far as the command needs one."""
    out = tmp_path / "run"
    stages = {}
    for number, path in enumerate(paths, 1):
        where = out / f"round{number}_pair-0000000{number}"
        where.mkdir(parents=True)
        path.rename(where / "ledger.parquet")
        stages[f"round{number}_pair"] = where.name
    (out / "run.json").write_text(json.dumps({"recipe": "x", "config": {}, "stages": stages}))
    return out


def test_the_command(run):
    def ask(*more):
        return CliRunner().invoke(app, ["ledger", str(run), *more])

    shown = ask().output
    assert all(name in shown for name in VIEWS if name not in LONG)
    assert (
        ask("left_out", "--format", "csv").output.splitlines()[1] == "1,2,0.5,0.0,0.0,0.0,0.0,0.5"
    )
    (line,) = ask("SELECT count(*) AS n FROM pairs", "--format", "json").output.splitlines()
    assert json.loads(line) == {"n": 3}
    wrong = ask("SELECT nothing")
    assert wrong.exit_code == 2
    assert "\n" not in wrong.output.strip()


def test_a_run_without_a_ledger_is_told(run):
    for path in run.rglob("ledger.parquet"):
        path.unlink()
    found = CliRunner().invoke(app, ["ledger", str(run)])
    assert found.exit_code == 2
    assert "nplus iterate" in found.output
