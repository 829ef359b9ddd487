"""Malformed inputs that nobody thought of: made by hypothesis, the same ones in every run."""

import json

import zoo_data
import zoo_models
import zoo_runs
import zoo_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from zoo import POSTS, jsonl, snapshot
from zoo_data import run_on

from nplus.cli import app
from nplus.config.load import known_keys
from nplus.records import InputError
from nplus.runs import Manifest, RunRoot

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = sorted(known_keys())
NOT_A_TEXT = ANY.filter(lambda value: not isinstance(value, str) or not value.strip())
SEEN: dict[str, set[str]] = {}


def seen(kind, what):
    SEEN.setdefault(kind, set()).add(what)


def orderly(place, command):
    """Runs a command: it ends well, or with one line, and has changed nothing then."""
    before = snapshot(place.parent)
    result = CliRunner().invoke(app, list(command))
    if result.exit_code == 0:
        return result
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert snapshot(place.parent) == before
    return result


@REPEATABLE
@given(st.sampled_from(KEYS), ANY)
def test_any_value_of_any_setting(place, key, value):
    seen("setting", f"{key} {value!r}")
    orderly(place, ("check", "toy", "--set", f"{key}={json.dumps(value)}"))


@REPEATABLE
@given(st.text(max_size=20))
def test_any_text_after_set(place, text):
    seen("set", text)
    orderly(place, ("check", "toy", "--set", text))


@REPEATABLE
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode(errors="replace")))
def test_any_bytes_as_a_config_file(place, content):
    seen("config", repr(content))
    (place / "mine.yaml").write_bytes(content)
    orderly(place, ("check", "toy", "--config", "mine.yaml"))


@REPEATABLE
@given(st.sampled_from(["id", "title", "post", "summary"]), NOT_A_TEXT)
def test_any_value_in_a_row_but_text(place, refused, column, value):
    seen("row", f"{column} {value!r}")
    rows = [*POSTS[:1], {**POSTS[1], column: value}, *POSTS[2:]]
    jsonl("posts.jsonl", rows)(place)
    if column in ("id", "title") and (column == "id" or isinstance(value, str)):
        return  # an id of another kind is none, and a title may be blank
    refused(run_on("posts.jsonl"), ("posts.jsonl, line 2",))


@REPEATABLE
@given(st.integers(1, 2000), st.binary(min_size=1, max_size=3))
def test_any_bytes_anywhere_in_a_data_file(place, at, noise):
    """Read or refused by its line; what is read can be written again."""
    from nplus.data.sources import load_demonstrations

    jsonl("posts.jsonl", POSTS)(place)
    path = place / "posts.jsonl"
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    seen("bytes", f"{at} {noise!r}")
    rows, told = [], ""
    try:
        rows = load_demonstrations(path)[""]
    except InputError as error:
        told = str(error)
    assert rows or "posts.jsonl" in told
    for row in rows:
        json.dumps(dict(row.fields), ensure_ascii=False).encode()


MANIFEST = Manifest(
    stage="evaluate",
    key="k" * 64,
    status="complete",
    config={},
    seed=1,
    inputs=({"role": "data", "path": "data-0", "hash": "h"},),
    finished="2025-01-02T03:04:05+00:00",
)


@REPEATABLE
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=3) | st.none())
def test_any_damage_of_a_manifest(tmp_path, at, noise):
    """Read or refused: never another error."""
    path = tmp_path / "manifest.json"
    MANIFEST.write(path)
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + (b"" if noise is None else noise + whole[at + len(noise) :]))
    seen("manifest", f"{at} {noise!r}")
    found = ""
    try:
        Manifest.read(path)
    except InputError as error:
        found = str(error)
    assert not found or str(path) in found


@REPEATABLE
@given(st.text(max_size=12), st.text(max_size=12))
def test_no_name_in_an_index_leads_out_of_the_run(tmp_path, name, where):
    root = RunRoot(tmp_path / "r")
    root.path.mkdir(exist_ok=True)
    index = {"recipe": "toy", "config": {}, "stages": {name: where}}
    root.index_path.write_text(json.dumps(index), encoding="utf-8")
    seen("index", f"{name} {where}")
    try:
        found = root.stages()
    except InputError:
        return
    for stage in found.values():
        assert stage.path.resolve().parent == root.path.resolve()


def test_there_are_at_least_two_hundred_different_inputs():
    """By hand alone, through every command of the command line that takes an input."""
    tables = (zoo_settings, zoo_data, zoo_models, zoo_runs)
    cases = [case for table in tables for case in table.CASES]
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) >= 200
    commands = {case.command[0] for case in cases}
    every = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert every <= commands


def test_what_was_generated_is_as_much_again():
    """The last test of the file: those before have counted what they were given."""
    assert sum(map(len, SEEN.values())) >= 200, {kind: len(what) for kind, what in SEEN.items()}
