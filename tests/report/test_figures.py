"""Figures: drawn where there is something to draw, and right in what they compute."""

import re

import numpy as np
import pytest

from nplus.report import figures
from nplus.report.collect import Curve, collect


def test_every_figure_draws_something_in_the_pages_colours(make_run):
    run = collect(make_run())
    panels = [*figures.win_rates(run.evaluation), *figures.reward_model(run.evaluation)]
    for stage in ("ppo", "reward", "sft", "pretrain"):
        panels += figures.curves(run, stage)
    panels.append(figures.over_optimisation(run))
    assert len(panels) == 3 + 5 + 15 + 3 + 1 + 1 + 1
    for panel in panels:
        assert panel.svg.startswith("<svg viewBox="), panel.name
        assert panel.svg.count("<path") > 5, panel.name
        assert not re.search(r"#0a0b|http|<style|<metadata|DejaVu", panel.svg), panel.name
        assert re.search(r"var\(--c[123]\)", panel.svg), panel.name


def test_dots_stand_at_their_rates():
    svg = figures._dots([figures.Dot("a", "n 3", {"rate": 0.25})], {}, "x")
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
    assert figures.over_optimisation(run) is None
    assert figures.curves(run, "ppo") == []


def test_best_gold_is_the_peak_of_the_running_mean(make_run):
    run = collect(make_run())
    curve = run.curve("ppo", "objective/gold")
    y = np.array(curve.values)
    half = len(y) // 40
    means = [y[max(0, i - half) : i + half + 1].mean() for i in range(len(y))]
    step = curve.steps[int(np.argmax(means))]
    note = figures.over_optimisation(run).note
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
