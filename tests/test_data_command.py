"""`nplus data check`: its options, what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nplus.cli import app
from nplus.data.tokens import train_bpe

POST = "The harbour closed and the boat we never bought sank near the pier, number {}."


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments):
    return CliRunner().invoke(app, ["data", "check", *arguments], env={"COLUMNS": "120"})


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def posts(count=20, start=0):
    return [
        {"post": POST.format(n), "summary": f"Boat {n} sank."} for n in range(start, start + count)
    ]


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    train_bpe([row["post"] for row in posts()], 300).save(folder)
    return str(folder)


def test_clean_data_ends_with_zero(tokenizer):
    write("p.jsonl", posts())
    result = call("p.jsonl", "--tokenizer", tokenizer)
    assert result.exit_code == 0, result.output
    assert "p.jsonl: 20 demonstrations" in result.stdout
    assert "20 rows checked: 0 errors, 0 warnings" in result.stdout
    assert "'TL;DR:|" in result.stdout or "TL;DR:| Boat 0 sank." in result.stdout
    assert "EOS is id" in result.stdout


def test_errors_end_with_two_and_warnings_with_zero():
    write("p.jsonl", [*posts(), posts()[3]])
    assert call("p.jsonl", "--recipe", "toy").exit_code == 0
    write("p.jsonl", [*posts(), {"post": "x", "summary": ""}])
    result = call("p.jsonl", "--recipe", "toy")
    assert result.exit_code == 2
    assert "p.jsonl:21" in result.stdout
    assert "field 'summary' is empty" in result.stdout
    assert "Traceback" not in result.output


def test_json_goes_to_stdout_or_a_file(tokenizer):
    write("p.jsonl", [*posts(), posts()[3]])
    options = ("--recipe", "toy", "--tokenizer", tokenizer, "--set", "data.max_query_tokens=24")
    result = call("p.jsonl", *options, "--json", "--out", "report.json")
    report = json.loads(result.stdout)
    with open("report.json", encoding="utf-8") as file:
        assert json.load(file) == report
    assert report["recipe"] == "toy"
    assert report["limits"]["data.max_query_tokens"] == 24
    assert report["tokenizer"]["name"] == tokenizer
    assert {f["kind"] for f in report["findings"]} == {"duplicate_row", "truncated_query"}
    assert "no such folder" in call("p.jsonl", "--out", "none/report.json").stderr


def test_the_other_file_is_held_out():
    write("p.jsonl", posts())
    write("other.jsonl", posts(5, start=18))
    result = call("p.jsonl", "--recipe", "toy", "--against", "other.jsonl", "--json")
    (leak,) = [f for f in json.loads(result.stdout)["findings"] if f["kind"] == "leakage"]
    assert [(row["file"], row["row"]) for row in leak["rows"]] == [
        ("other.jsonl", 1),
        ("other.jsonl", 2),
    ]


def test_a_recipe_that_trains_its_tokenizer_says_so():
    write("p.jsonl", posts())
    report = json.loads(call("p.jsonl", "--recipe", "toy", "--json").stdout)
    assert "trained on 20 texts of it" in report["tokenizer"]["why"]
    assert report["lengths"]["unit"] == "tokens"


def test_without_a_tokenizer_the_report_says_what_is_left_out():
    write("p.jsonl", posts())
    nowhere = ("--set", "model.model_name_or_path=./nowhere")
    report = json.loads(call("p.jsonl", *nowhere, "--json").stdout)
    assert report["tokenizer"]["name"] is None
    assert "no such directory" in report["tokenizer"]["why"]
    assert (report["lengths"]["unit"], report["lengths"]["eos"]) == ("characters", None)
    assert [f["kind"] for f in report["findings"]] == ["tokens_skipped"]
    shown = call("p.jsonl", *nowhere)
    assert shown.exit_code == 0
    assert "tokens_skipped" in shown.stdout


def test_wrong_options_are_one_message():
    write("p.jsonl", posts())
    for arguments, said in (
        (["none.jsonl"], "none.jsonl: no such file"),
        (["p.jsonl", "--recipe", "toys"], "unknown recipe 'toys'"),
        (["p.jsonl", "--set", "data.max_query_token=3"], "max_query_token"),
        (["p.jsonl", "--tokenizer", "./none"], "no such tokenizer directory"),
        (["p.jsonl", "--set", "data.template='{post'"], "data.template"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("nplus: "), result.output
        assert said in result.stderr


def test_wrong_options_are_told_before_a_tokenizer_is_loaded(monkeypatch):
    monkeypatch.setattr("nplus.models.files.model_source", lambda config: pytest.fail("loaded"))
    write("p.jsonl", posts())
    for arguments in (["none.jsonl"], ["p.jsonl", "--set", "data.template='{post'"]):
        assert call(*arguments).exit_code == 2, arguments


def test_markup_in_texts_is_text():
    write("p.jsonl", [{"post": "[bold]a[/bold] [/red] x", "summary": "[/]"} for _ in range(2)])
    result = call("p.jsonl", "--recipe", "toy")
    assert result.exit_code == 0, result.output
    assert "[bold]a[/bold] [/red] x" in result.stdout
