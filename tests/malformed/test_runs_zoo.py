"""Every damaged run directory, grid and file of completions is refused, and nothing is changed."""

import json
import shutil

import pytest
from typer.testing import CliRunner
from zoo import snapshot
from zoo_runs import CASES, RUN, TOLERATED, stage

from nplus.cli import app


def unsigned(manifest):
    """Without hashes, by which any damage would be seen before what it does to a row is."""
    row = json.loads(manifest.read_text(encoding="utf-8"))
    del row["digest"]
    manifest.write_text(json.dumps({**row, "outputs": []}), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of the smallest size, from the command line."""
    import matplotlib.font_manager  # noqa: F401  # writes a cache of its own when first loaded

    where = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr("nplus.cli.run._show", lambda root, console: None)
        result = CliRunner().invoke(app, RUN)
    assert result.exit_code == 0, result.output
    for manifest in (where / "r").glob("*/manifest.json"):
        unsigned(manifest)
    return where / "r"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_damaged_run_is_refused(case, finished, place, refused):
    shutil.copytree(finished, place / "r")
    # completions that fit, where the case has none
    row = json.loads((stage(place, "evaluate") / "table.jsonl").read_text().splitlines()[0])
    if "theirs.jsonl" not in case.says:
        theirs = json.dumps({"id": row["id"], "completion": "x"})
        (place / "theirs.jsonl").write_text(theirs, encoding="utf-8")
    case.make(place)
    refused(case.command, case.says)


def test_the_same_without_damage_is_taken(finished, place, call, no_drawing):
    shutil.copytree(finished, place / "r")
    before = snapshot(place / "r")
    assert call(*RUN).exit_code == 0
    assert call("report", "r").exit_code == 0
    assert call("details", "F7", "--run", "r").exit_code == 0
    after = snapshot(place / "r")
    assert {name for name in before if before[name] != after.get(name)} <= {"run.json", "."}
    row = json.loads((stage(place, "evaluate") / "table.jsonl").read_text().splitlines()[0])
    theirs = json.dumps({"id": row["id"], "completion": "x"})
    (place / "theirs.jsonl").write_text(theirs, encoding="utf-8")
    found = call("evaluate", "r", "--against", "theirs.jsonl")
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(("name", "damage", "note"), TOLERATED, ids=[t[0] for t in TOLERATED])
def test_the_report_shows_what_is_whole_and_names_the_rest(
    name, damage, note, finished, place, call, no_drawing
):
    shutil.copytree(finished, place / "r")
    damage(place)
    result = call("report", "r")
    assert result.exit_code == 0, result.output
    page = (place / "r" / "report.html").read_text(encoding="utf-8")
    assert note in page
    assert page.count("<h2>") > 4
