"""Figures: drawn where there is something to draw, and right in what they compute."""

import re

import numpy as np
import pytest

from nplus.report import analyses, figures
from nplus.report.collect import Curve, collect


def test_every_figure_draws_something_in_the_pages_colours(make_run):
    run = collect(make_run())
    found = run.evaluation
    panels = [*figures.win_rates(found), *figures.reward_model(found)]
    panels += [*analyses.lengths(found), *analyses.calibrations(found), analyses.agreement(found)]
    for stage in ("ppo", "reward", "sft", "pretrain"):
        panels += figures.curves(run, stage)
    panels.append(analyses.over_optimisation(run))
    assert len(panels) == 3 + 5 + 3 + 2 + 1 + 15 + 3 + 1 + 1 + 1
    assert len({panel.name for panel in panels}) == len(panels)
    for panel in panels:
        assert panel.svg.startswith("<svg viewBox="), panel.name
        assert panel.svg.count("<path") > 5, panel.name
        assert not re.search(r"#0a0b|http|<style|<metadata|DejaVu", panel.svg), panel.name
        assert re.search(r"var\(--c[123]\)", panel.svg), panel.name


def test_dots_stand_at_their_rates():
    svg = figures.dots([figures.Dot("a", "n 3", {"rate": 0.25})], {}, "x")
    left, right = (
        float(re.search(rf'<text [^>]*x="([\d.]+)"[^>]*>{label}<', svg)[1])
        for label in ("0", "100%")
    )
    dot = float(re.search(r'<use xlink:href="#\w+" x="([\d.]+)"', svg)[1])
    assert dot == pytest.approx(left + 0.25 * (right - left), abs=0.01)


def test_without_evaluation_there_is_nothing_to_draw(make_run):
    run = collect(make_run(stages=("data", "sft")))
    assert figures.win_rates(run.evaluation) == []
    assert figures.reward_model(run.evaluation) == []
    assert analyses.lengths(run.evaluation) == analyses.calibrations(run.evaluation) == []
    assert analyses.agreement(run.evaluation) is None
    assert analyses.over_optimisation(run) is None
    assert figures.curves(run, "ppo") == []


def test_best_gold_is_the_peak_of_the_running_mean(make_run):
    run = collect(make_run())
    curve = run.curve("ppo", "objective/gold")
    y = np.array(curve.values)
    half = len(y) // 40
    means = [y[max(0, i - half) : i + half + 1].mean() for i in range(len(y))]
    step = curve.steps[int(np.argmax(means))]
    note = analyses.over_optimisation(run).note
    assert f"Best gold {max(means):.2f} at update {step}," in note


def test_smooth_is_the_plain_running_mean():
    y = np.random.default_rng(0).normal(size=200)
    expected = [y[max(0, i - 5) : i + 6].mean() for i in range(200)]
    np.testing.assert_allclose(figures.smooth(y), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 29, 400, 401, 5000])
def test_thinning_keeps_the_mean_and_at_most_its_points(length):
    curve = Curve(tuple(range(length)), tuple(float(i % 7) for i in range(length)))
    x, y = figures.thinned(curve)
    assert len(x) == len(y) == min(length, figures.POINTS)
    assert x[0] <= length / 100 + 1
    assert y.mean() == pytest.approx(np.mean(curve.values), abs=0.02)


def test_not_a_number_never_reaches_a_curve(make_run):
    assert collect(make_run()).curve("ppo", "broken") is None


def test_a_run_of_an_older_version_shows_what_it_has(make_run):
    """Rates without bins, groups without intervals, no calibration, agreement or token view."""
    found = dict(collect(make_run()).evaluation)
    found["win_rates"] = [
        {**row, "length_matched": {k: row["length_matched"][k] for k in ("rate", "low", "high")}}
        for row in found["win_rates"]
    ]
    found["reward_model"] = {**found["reward_model"], "calibration": None}
    found.pop("agreement")
    assert analyses.lengths(found) == analyses.calibrations(found) == []
    assert analyses.agreement(found) is None
    assert len(figures.win_rates(found)) == 3
    [panel] = [p for p in figures.reward_model(found) if p.name == "by_split"]
    assert "78.1% [75.4, 80.6]" in panel.svg  # Wilson, of 781 in 1,000


def test_a_group_keeps_the_interval_it_has():
    row = {"name": "batch3", "accuracy": 0.75, "low": 0.7, "high": 0.8, "n": 40}
    assert figures._group(row).row == {"rate": 0.75, "low": 0.7, "high": 0.8}


def places(svg, colour, count):
    """`(x, y)` of the markers drawn in a colour, by the ids matplotlib gives their shapes."""
    found = re.findall(r'<use xlink:href="#(\w+)" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    drawn = [(float(x), float(y)) for _, x, y, style in found if f"stroke: var({colour})" in style]
    assert len(drawn) >= count
    return drawn


@pytest.mark.detail("D8")
def test_calibration_shows_the_line_and_leaves_out_empty_bins(make_run):
    first, second = analyses.calibrations(collect(make_run()).evaluation)
    assert (first.title, second.title) == (
        "Reward model, validation comparisons",
        "Reward model, news articles",
    )
    assert "Off by 3.1% on average, the control by 1.2%; 3 pairs lie outside." in first.note
    real = places(first.svg, "--c1", 5)
    assert len(real) == len(places(first.svg, "--c2", 5)) == 5  # of six bins, one is empty
    x, y = zip(*real, strict=True)
    assert list(x) == sorted(x)
    assert list(y) == sorted(y, reverse=True)  # more sure, more right
    gaps = np.diff(x)
    assert gaps[3] == pytest.approx(2 * gaps[0], rel=0.01)  # over the empty bin


@pytest.mark.detail("H3")
def test_length_bins_stand_in_the_middle_of_their_range(make_run):
    panel, *_ = analyses.lengths(collect(make_run()).evaluation)
    assert panel.title == "PPO against the reference, by length"
    assert "8 bins of 75 pairs" in panel.note
    assert "rises with our length" in panel.note
    drawn = places(panel.svg, "--c1", 8)
    x, y = (np.array(axis) for axis in zip(*drawn, strict=True))
    assert np.diff(x) == pytest.approx(np.full(7, np.diff(x)[0]), rel=0.01)
    assert np.diff(y) == pytest.approx(np.full(7, np.diff(y)[0]), rel=0.01)
    # The hollow diamond at equal length: between the fourth and the fifth bin, edge at 0.
    [(at, _)] = places(panel.svg, "--c2", 1)
    assert at == pytest.approx((x[3] + x[4]) / 2, abs=0.1)


def test_the_start_of_ppo_is_marked_at_its_own_distance(make_run):
    run = collect(make_run())
    kl, gold = run.curve("ppo", "objective/kl"), run.curve("ppo", "objective/gold")
    svg = analyses.over_optimisation(run).svg
    squares = re.findall(
        r'x="([\d.]+)" y="([\d.]+)" style="fill: var\(--card\); stroke: var\(--c3\)', svg
    )
    assert len(squares) == 1
    dots = re.findall(r'x="([\d.]+)" y="([\d.]+)" style="fill: var\(--c3\); fill-opacity', svg)
    assert len(dots) == len(kl.steps)
    nearest = int(np.argmin([float(y) for _, y in dots]))
    assert gold.values[nearest] == max(gold.values)
    assert squares[0] == dots[0]


def test_a_constant_curve_stays_constant():
    assert set(figures.smooth(np.full(200, 7e-4))) == {7e-4}
