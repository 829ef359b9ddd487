"""Every entry of the registry is honest: its code, key, switch and tests are there."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from nplus.config.load import default_of, known_keys, load_config
from nplus.details import detail, details
from nplus.recipes import recipe
from nplus.records import InputError

HERE = Path(__file__).parent
COUNTS = {"A": 11, "B": 6, "C": 3, "D": 9, "E": 8, "F": 7, "G": 5, "H": 5}
ENTRIES = {entry.id: entry for entry in details()}


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_details", HERE / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(name):
    """The object of a dotted name: the longest importable module, then attributes."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def cited(text):
    """Ids that a docstring cites, spans such as `details F2 to F7` spelled out."""
    found = set()
    for words in re.findall(r"[Dd]etails?\s+((?:[A-H]\d+(?:,\s*|\s+and\s+|\s+to\s+)?)+)", text):
        for first, last in re.findall(r"([A-H]\d+)\s+to\s+([A-H]\d+)", words):
            found |= {f"{first[0]}{n}" for n in range(int(first[1:]), int(last[1:]) + 1)}
        found |= set(re.findall(r"[A-H]\d+", words))
    return found


def test_every_entry_of_the_specification_is_there_in_order():
    assert list(ENTRIES) == [f"{s}{n}" for s, count in COUNTS.items() for n in range(1, count + 1)]


def test_most_entries_can_be_switched():
    assert sum(entry.key is not None for entry in details()) >= 28


@pytest.mark.parametrize("id", ENTRIES)
def test_the_code_is_there_and_says_so(id):
    code = resolve(ENTRIES[id].code)
    assert id in cited(code.__doc__ or ""), f"{ENTRIES[id].code} does not cite Detail {id}"


@pytest.mark.parametrize("id", ENTRIES)
def test_a_key_or_a_reason(id):
    entry = ENTRIES[id]
    assert (entry.key is None) != (entry.always_on == "")
    if entry.key is None:
        assert not entry.flip
        return
    assert entry.key in set(known_keys())
    assert entry.key in [text.partition("=")[0] for text in entry.flip]
    default_of(entry.key)


@pytest.mark.parametrize("id", ENTRIES)
def test_the_texts_are_there(id):
    entry = ENTRIES[id]
    for text in (entry.title, entry.statement, entry.source, entry.bites):
        assert len(text) >= 5


@pytest.mark.parametrize("id", ENTRIES)
def test_a_test_holds_it(id, generate):
    assert generate.marked_tests().get(id), f"no test is marked with {id}"


def test_the_listed_tests_are_the_marked_ones(generate):
    listed = {id: list(entry.tests) for id, entry in ENTRIES.items()}
    assert generate.marked_tests() == {id: tests for id, tests in listed.items() if tests}, (
        "run `make details`"
    )


def test_the_page_is_current(generate):
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run `make details`"


@pytest.mark.parametrize(
    ("id", "name"), [(id, name) for id, entry in ENTRIES.items() for name in entry.ablation]
)
def test_an_ablation_is_a_valid_run(id, name):
    changed = load_config(recipe("toy"), sets=ENTRIES[id].ablation[name])
    assert changed != recipe("toy")


def test_the_ablations_that_every_reader_asks_for_are_there():
    names = {name for entry in details() for name in entry.ablation}
    assert names >= {
        "dropout on",
        "temperature missing in the update",
        "EOS trick off",
        "value initialised at random",
        "no normalisation",
        "no advantage whitening",
        "PAD = EOS",
        "value mask without the extra slot",
        "reward whitening on",
        "KL coefficient 0",
        "KL coefficient 0.5",
        "Adam's eps 1e-8 in PPO",
    }


def test_an_unknown_detail_is_an_error_that_names_a_near_one():
    with pytest.raises(InputError, match=r"unknown detail 'D55'; did you mean D5"):
        detail("D55")
    assert detail("d5").id == "D5"
