"""The metric glossary: whole, consistent, and what docs/metrics.md says."""

from pathlib import Path

import pytest

from nplus.glossary import METRICS, REFERENCE, TRAINED, metric, metrics_markdown

ROOT = Path(__file__).parents[1]


def test_docs_metrics_md_is_up_to_date():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert text == metrics_markdown(), "run `make details`"


def test_every_metric_stands_in_the_table_of_each_of_its_stages():
    sections = metrics_markdown().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == list(TRAINED)
    for stage, section in zip(TRAINED, sections, strict=True):
        named = [line.split("`")[1] for line in section.split("\n") if line.startswith("| `")]
        assert named == [entry.name for entry in METRICS if stage in entry.stages]


def test_entries_are_unique_and_say_something():
    names = [entry.name for entry in METRICS]
    assert len(set(names)) == len(names)
    for entry in METRICS:
        assert entry.text.endswith(".")
        assert "|" not in entry.text
        assert set(entry.stages) <= set(TRAINED)


@pytest.mark.detail("G5")
def test_each_corrected_metric_has_the_papers_beside_it():
    found = {entry.name: entry for entry in METRICS}
    corrected = {name for name, entry in found.items() if entry.kind == "corrected"}
    reference = {name for name, entry in found.items() if entry.kind == "reference"}
    assert reference == {f"{name}{REFERENCE}" for name in corrected}
    # The paper's are of PPO.
    assert all(set(found[f"{n}{REFERENCE}"].stages) <= set(found[n].stages) for n in corrected)
    assert {found[f"{n}{REFERENCE}"].stages for n in corrected} == {("ppo",)}
    assert corrected == {
        "objective/entropy",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "val/ratio",
    }


def test_an_unknown_metric_is_named():
    with pytest.raises(KeyError, match="'val/nothing' is not in the glossary"):
        metric("val/nothing")
