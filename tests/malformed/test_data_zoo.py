"""Every malformed data file ends in one line that names file, row and field."""

import json

import pytest
from zoo import PAIRS, POSTS, jsonl, snapshot
from zoo_data import CASES, LABELLED, OWN, run_on


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_data_is_refused(case, place, refused):
    case.make(place)
    refused(case.command, case.says)
    assert not (place / "out").exists()
    assert not (place / "g").exists()


def good(place):
    """What the cases would be without their faults."""
    for name in ("train", "valid", "test", "pretrain"):
        jsonl(f"d/{name}.jsonl", [{**row, "id": f"{name}{n}"} for n, row in enumerate(POSTS)])(
            place
        )
    jsonl("pairs.jsonl", PAIRS)(place)


@pytest.mark.parametrize("own", [OWN, LABELLED], ids=["contrast", "labelled"])
def test_the_same_without_a_fault_is_read(place, call, own):
    good(place)
    labelled = ("--set", "data.comparisons.data=pairs.jsonl") if own is LABELLED else ()
    command = [word for word in run_on("d") if word not in OWN or word == "--set"]
    command = ["run", "toy:tiny", "--set", "data=d", *own, *labelled, "--out", "out"]
    result = call(*command, "--until", "data")
    assert result.exit_code == 0, result.output


def test_bad_data_leaves_a_run_of_other_data_as_it_is(place, call, refused):
    """The index of a run tells what its report shows: bad input must not rewrite it."""
    good(place)
    command = ["run", "toy:tiny", "--set", "data=d", *OWN, "--out", "out"]
    assert call(*command, "--until", "data").exit_code == 0
    before = snapshot(place / "out")
    (place / "d" / "valid.jsonl").write_text(json.dumps({"post": 1}), encoding="utf-8")
    refused(command, ("valid.jsonl",))
    assert snapshot(place / "out") == before
