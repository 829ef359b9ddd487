"""The file of a tuning: read back as written, and never taken where it does not belong."""

import json

import pytest

from nplus.records import InputError
from nplus.stages.tuning.cache import path_of, read, this_machine, write


@pytest.fixture
def here():
    return this_machine("cpu")


def test_a_tuning_comes_back_as_it_was(tuning, here, cache_home):
    path = write(tuning())
    assert path == path_of(here)
    assert path.is_relative_to(cache_home / "nplus" / "tune")
    assert read(here) == (tuning(), "")
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing left aside


def test_types_survive_the_file(tuning, here):
    write(tuning())
    found, _ = read(here)
    values = {c.key: c.value for c in found.choices}
    assert values["compute.side_by_side"] is False
    assert values["compute.threads"] == 1
    assert values["compute.threads"] is not True


def test_a_later_tuning_takes_the_place_of_the_first(tuning, here):
    write(tuning())
    write(tuning(compute__threads=2))
    assert read(here)[0].choice("compute.threads").value == 2


def test_nothing_is_known_before(here):
    assert read(here) == (None, "this machine is not tuned; run `nplus tune`")


def broken(text, change):
    tree = json.loads(text)
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "expected an object, found list"),
        (lambda text: broken(text, lambda t: t.update(version=0)), "of version 0, not 1"),
        (lambda text: broken(text, lambda t: t.pop("version")), "of version None"),
        (lambda text: broken(text, lambda t: t.pop("choices")), "choices: is required"),
        (lambda text: broken(text, lambda t: t.update(seconds="x")), "seconds='x'"),
        (lambda text: text.replace("40.0", "NaN"), "seconds=nan"),
        (lambda text: broken(text, lambda t: t.update(more=1)), "more=1"),
    ],
)
def test_a_damaged_file_is_ignored_and_named(tuning, here, change, reason):
    path = write(tuning())
    text = path.read_text(encoding="utf-8")
    path.write_text(change(text), encoding="utf-8")
    found, why = read(here)
    assert found is None
    assert why.startswith(f"{path}: ignored, it is damaged or old: ")
    assert reason in why
    assert why.endswith("; run `nplus tune`")
    assert "\n" not in why


def test_bytes_that_are_no_text_are_ignored(tuning, here):
    path = write(tuning())
    path.write_bytes(b"\xff\xfe\x00")
    assert "damaged or old" in read(here)[1]


def test_a_file_copied_from_another_machine_is_not_taken(tuning, here):
    there = here.model_copy(update={"cores": here.cores + 2})
    path = write(tuning())
    path.write_text(tuning(machine=there).model_dump_json(), encoding="utf-8")
    found, why = read(here)
    assert found is None
    assert f"of another machine (cores {here.cores + 2} there, {here.cores} here)" in why


@pytest.mark.parametrize(
    "other",
    [{"torch": "1.0"}, {"cpu": "abacus"}, {"cores": 999}, {"device": "GPU"}, {"capability": "x"}],
)
def test_each_part_of_the_machine_makes_another_file(tuning, here, other):
    there = here.model_copy(update=other)
    write(tuning(machine=there))
    found, why = read(here)
    assert found is None
    [(name, value)] = other.items()
    assert f"not tuned, but another is ({name} {value} there, " in why


def test_a_directory_that_cannot_be_made_is_bad_input(tuning, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write there .*; set XDG_CACHE_HOME"):
        write(tuning())


def test_a_file_that_cannot_be_read_is_ignored(here):
    path_of(here).mkdir(parents=True)
    assert "ignored, cannot read it" in read(here)[1]
