"""RewardBench's section scores against published figures, and its known traps."""

import math

import pytest

from nplus.evaluation.sections import HOME, SECTIONS, section_of, section_report
from nplus.records import RowError

# RewardBench's published subset accuracies of the pairwise model pair-preference-model-LLaMA3-8B
# (arXiv 2405.07863; pull request 123 of the benchmark) and rows of each subset.
PUBLISHED = {
    "alpacaeval-easy": (0.98, 100),
    "alpacaeval-length": (0.978947, 95),
    "alpacaeval-hard": (0.989474, 95),
    "mt-bench-easy": (1.0, 28),
    "mt-bench-med": (1.0, 40),
    "mt-bench-hard": (0.756757, 37),
    "llmbar-natural": (0.90, 100),
    "llmbar-adver-neighbor": (0.522388, 134),
    "llmbar-adver-GPTInst": (0.619565, 92),
    "llmbar-adver-GPTOut": (0.680851, 47),
    "llmbar-adver-manual": (0.50, 46),
}


def report(rights):
    """Of `subset -> (right, rows)`: a margin of 1 for a right row and of -1 for a wrong one."""
    subsets, margins = [], []
    for name, (right, n) in rights.items():
        subsets += [name] * n
        margins += [1.0] * right + [-1.0] * (n - right)
    return section_report(subsets, {name: HOME.get(name, "mine") for name in rights}, margins)


def scores(found):
    return {row["name"]: row["accuracy"] for row in found["sections"]}


def test_published_subsets_give_the_published_sections():
    found = report({name: (round(rate * n), n) for name, (rate, n) in PUBLISHED.items()})
    assert {name: round(100 * value, 2) for name, value in scores(found).items()} == {
        "Chat": 98.60,
        "Chat Hard": 65.79,
    }
    by_subset = {row["name"]: row["accuracy"] for row in found["subsets"]}
    assert by_subset == pytest.approx(
        {name: rate for name, (rate, _) in PUBLISHED.items()}, abs=1e-6
    )
    assert found["total"]["missing"] == ["Safety", "Reasoning", "Prior Sets"]
    assert [row["missing"] for row in found["sections"]] == [[], []]


@pytest.mark.parametrize(
    ("sections", "total"),
    [
        ((96.9, 76.8, 92.2, 97.3, 74.3), 88.97),
        ((96.4, 71.3, 92.7, 97.7, 78.2), 88.27),
        ((98.3, 65.8, 89.7, 94.7, 74.6), 85.73),
        ((95.3, 74.3, 87.2, 86.9, 70.9), 84.26),
        ((99.4, 65.1, 87.8, 86.4, 74.9), 83.59),
        ((96.9, 57.2, 88.2, 88.5, 71.4), 81.44),
    ],
)
def test_the_total_of_the_published_leaderboard(sections, total):
    """Prior sets weigh half; the rows there are do not weigh at all."""
    rights = {
        subset: (round(10 * score), 1000)
        for (_, subsets), score in zip(SECTIONS.items(), sections, strict=True)
        for subset in subsets
    }
    found = report(rights)
    assert round(100 * found["total"]["accuracy"], 2) == total
    assert found["total"]["missing"] == []


def test_xstest_is_not_the_wrong_way_round():
    """154 rows that should be refused, 250 that should be answered (spec trap: scripts swap)."""
    rights = {name: (n, n) for name, n in SECTIONS["Safety"].items()}
    rights["xstest-should-respond"] = (0, 250)
    expected = (100 + 100 + 154 + 136) / (100 + 100 + 154 + 250 + 136)
    assert scores(report(rights))["Safety"] == pytest.approx(expected, abs=1e-12)


def test_mathematics_weighs_as_all_code_together():
    rights = {name: (164, 164) for name in SECTIONS["Reasoning"] if name.startswith("hep-")}
    assert len(rights) == 6
    assert scores(report(rights | {"math-prm": (0, 447)}))["Reasoning"] == pytest.approx(0.5)


def test_a_tie_and_a_score_that_is_no_number_are_wrong():
    margins = [1.0, 0.0, math.nan, -1.0]
    found = section_report(["shp"] * 4, {"shp": "Prior Sets"}, margins)
    (row,) = found["subsets"]
    assert (row["accuracy"], row["n"], row["ties"], row["invalid"]) == (0.25, 4, 1, 1)


def test_sections_that_are_not_there_are_left_out_and_named():
    found = report({"donotanswer": (1, 2), "shp": (1, 1), "summarize": (0, 3)})
    assert scores(found) == {"Safety": 0.5, "Prior Sets": 0.5}
    assert found["total"]["accuracy"] == pytest.approx(0.5)
    assert found["total"]["missing"] == ["Chat", "Chat Hard", "Reasoning"]
    assert "refusals-dangerous" in found["sections"][0]["missing"]
    other = report({"donotanswer": (2, 2), "shp": (0, 1)})
    assert other["total"]["accuracy"] == pytest.approx(2 / 3)


def test_sections_of_ones_own_weigh_rows_and_stay_out_of_the_total():
    found = report({"poems": (1, 1), "letters": (0, 3)})
    assert (scores(found), found["total"]) == ({"mine": 0.25}, None)
    both = report({"poems": (1, 1), "donotanswer": (0, 2)})
    assert both["total"]["accuracy"] == 0.0


def test_which_section():
    assert section_of("hep-go", "", "here") == "Reasoning"
    assert section_of("hep-go", "Reasoning", "here") == "Reasoning"
    assert section_of("hep-goo", "mine", "here") == "mine"
    for subset, own in (("hep-go", "mine"), ("hep-goo", ""), ("hep-goo", "Chat")):
        with pytest.raises(RowError, match=r"^f, line 3: subset .*(mend|remove)"):
            section_of(subset, own, "f, line 3")
