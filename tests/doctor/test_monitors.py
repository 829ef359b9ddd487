"""Curves with a planted fault are named at the step where it shows; healthy ones never are."""

import math
import random
import re
import time
from pathlib import Path

import pytest

from nplus.glossary import METRICS, TRAINED
from nplus.stages.doctor import monitors
from nplus.stages.doctor.monitors import MONITORS, journal_findings
from nplus.stages.doctor.windows import append, columns_of

UPDATES = 60


def healthy(seed=0, updates=UPDATES, **changed):
    """Rows of PPO like those of the embedded world's toys; `changed` maps a metric's short name to
    a function of `(part of the run, noise)`."""
    dice = random.Random(seed)
    rows = []
    for step in range(1, updates + 1):
        part = step / updates
        kl = 0.0 if step == 1 else 0.4 + 3.5 * part
        values = {
            "objective/kl": kl + (dice.gauss(0, 0.25) if step > 1 else 0.0),
            "objective/kl_stderr": 0.25 if step > 1 else 0.0,
            "objective/kl_per_token": kl / 22,
            "objective/scores": 1.2 * math.sqrt(part) + dice.gauss(0, 0.08),
            "objective/scores_std": 1.0 - 0.4 * part + dice.gauss(0, 0.05),
            "objective/gold": 2.4 + 0.7 * math.sqrt(part) + dice.gauss(0, 0.12),
            "val/eos_rate": min(1.0, 0.98 + dice.gauss(0, 0.01)),
            "val/response_length": 20.5 + 3 * min(1.0, 3 * part) + dice.gauss(0, 0.7),
            "val/explained_variance": 0.5 - 4 * math.exp(-step / 10) + dice.gauss(0, 0.1),
            "scoring/failed_share": 0.05,
            "policy/clipfrac_avg": 0.1 * math.exp(-3 * part),
            "policy/approxkl_avg": 0.08 * math.exp(-5 * part),
            "policy/entropy_avg": 0.65 - 0.3 * part + dice.gauss(0, 0.02),
            "first_minibatch/ratio": 1.0 if step == 1 else math.nan,
            "first_minibatch/approxkl_avg": 2e-12 if step == 1 else math.nan,
        }
        for name, make in changed.items():
            key = next(k for k in values if k.split("/")[1] == name and not k.startswith("first"))
            if name != "kl" or step > 1:  # 0 at update 1, whatever comes after
                values[key] = make(part, dice.gauss(0, 1))
        rows.append({k: v for k, v in values.items() if not math.isnan(v)})
    return rows


def named(rows, stage="ppo", precision="float32"):
    """`name -> step of the first appearance`, looked for after every step as a run does."""
    columns, seen = {}, {}
    for count, row in enumerate(rows):
        append(columns, row, count)
        for finding in journal_findings(stage, columns, precision, precision):
            seen.setdefault(finding.name, count + 1)
    return seen


@pytest.mark.parametrize("seed", range(40))
def test_a_healthy_journal_has_no_findings(seed):
    assert named(healthy(seed)) == {}


def test_a_long_healthy_journal_has_no_findings():
    assert named(healthy(1, updates=1000)) == {}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"kl": lambda part, z: -0.5 + 0.3 * z}, "kl_negative"),
        ({"kl_per_token": lambda part, z: 2 * part}, "kl_large"),
        ({"gold": lambda part, z: 2.5 - 2 * part + 0.1 * z}, "reward_hacking"),
        (
            {
                "response_length": lambda part, z: 20 + 15 * part + 0.2 * z,
                "scores": lambda part, z: 3 * part + 0.05 * z,
                "gold": lambda part, z: 2.4 + 0.1 * z,
            },
            "length_hacking",
        ),
        ({"explained_variance": lambda part, z: -0.6 + 0.1 * z}, "value_useless"),
        ({"entropy_avg": lambda part, z: 0.6 * math.exp(-6 * part)}, "entropy_collapse"),
        ({"eos_rate": lambda part, z: 0.97 - 0.6 * part}, "eos_rate_low"),
        ({"eos_rate": lambda part, z: 0.2}, "eos_rate_low"),
        ({"clipfrac_avg": lambda part, z: 0.5}, "clip_fraction_high"),
        ({"approxkl_avg": lambda part, z: 0.4}, "update_too_large"),
        ({"failed_share": lambda part, z: 0.6}, "scoring_failed"),
        ({"scores_std": lambda part, z: math.exp(-6 * part)}, "score_spread_lost"),
    ],
)
def test_a_planted_fault_is_named_alone(changed, name):
    assert set(named(healthy(3, **changed))) == {name}


# --- the first update ---------------------------------------------------------------------------


def at_start(**first):
    rows = healthy(0)
    rows[0] |= {f"{'objective' if k.startswith('kl') else 'first_minibatch'}/{k}": v
                for k, v in first.items()}  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ({"kl": 0.3}, "kl_at_start"),
        ({"kl": -0.3}, "kl_at_start"),
        ({"kl": math.nan}, "kl_at_start"),
        ({"kl_stderr": 0.3}, "kl_at_start"),
        ({"ratio": 1.01}, "ratio_at_start"),
        ({"approxkl_avg": 1e-5}, "ratio_at_start"),  # a log-ratio of 0.0045 a token
        ({"ratio": math.nan}, "ratio_at_start"),
    ],
)
def test_the_identities_of_update_1(first, name):
    assert named(at_start(**first)) == {name: 1}


def test_rounding_is_no_fault_at_its_precision():
    bf16 = at_start(ratio=1.004, approxkl_avg=0.051**2 / 2, kl=0.01)
    assert set(named(bf16)) == {"ratio_at_start"}
    assert named(bf16, precision="bfloat16") == {}
    float32 = at_start(ratio=1 + 2e-6, approxkl_avg=7e-6**2 / 2, kl=1e-4)
    assert named(float32) == {}
    # What a forgotten temperature or dropout leaves is beyond every bound.
    assert set(named(at_start(approxkl_avg=0.25**2 / 2), precision="bfloat16")) == {
        "ratio_at_start"
    }


# --- noise --------------------------------------------------------------------------------------


def test_a_kl_that_is_negative_by_its_noise_is_none():
    noisy = healthy(2, kl=lambda part, z: 0.02 + 0.25 * z)
    assert min(row["objective/kl"] for row in noisy) < -0.3
    assert named(noisy) == {}


def test_the_standard_error_decides_what_is_noise():
    rows = healthy(2, kl=lambda part, z: -0.3)
    for row in rows:
        row["objective/kl_stderr"] *= 0.2
    assert set(named(rows)) == {"kl_negative"}
    for row in rows[1:]:
        row["objective/kl_stderr"] = 1.0
    assert named(rows) == {}
    for row in rows:  # a journal without it: the spread between updates stands in
        del row["objective/kl_stderr"]
    assert set(named(rows)) == {"kl_negative"}


def test_length_that_gold_pays_for_too_is_no_hacking():
    rows = healthy(
        4,
        response_length=lambda part, z: 20 + 15 * part + 0.2 * z,
        scores=lambda part, z: 3 * part + 0.05 * z,
        gold=lambda part, z: 2.4 + 2 * part + 0.1 * z,
    )
    assert named(rows) == {}
    for row in rows:
        del row["objective/gold"]
    assert set(named(rows)) == {"length_hacking"}


def test_gold_that_falls_with_the_score_is_no_hacking():
    rows = healthy(
        5, gold=lambda part, z: 2.5 - 2 * part + 0.1 * z, scores=lambda part, z: 1 - part
    )
    assert "reward_hacking" not in named(rows)


def test_too_short_a_run_is_not_judged():
    worst = {
        "gold": lambda part, z: 2.5 - 9 * part,
        "eos_rate": lambda part, z: 0.0,
        "explained_variance": lambda part, z: -3.0,
    }
    assert named(healthy(0, updates=4, **worst)) == {}


# --- other stages -------------------------------------------------------------------------------


def losses(last, count=100, seed=0):
    dice = random.Random(seed)
    return [
        {"loss/train": 2 + (last - 2) * step / count + dice.gauss(0, 0.1)} for step in range(count)
    ]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "reward"])
def test_a_loss_that_rises(stage):
    assert set(named(losses(4.0), stage)) == {"loss_rising"}
    assert all(named(losses(last, seed=s), stage) == {} for last in (1.0, 2.0) for s in range(20))


def chosen(first, last, count=62, spread=0.6, seed=0):
    dice = random.Random(seed)
    return [
        {"logps/chosen": first + (last - first) * step / count + dice.gauss(0, spread)}
        for step in range(count)
    ]


@pytest.mark.parametrize("stage", ["dpo", "round3", "round3_train"])
def test_preferred_responses_that_become_unlikely(stage):
    assert set(named(chosen(-11.2, -20.3), stage)) == {"chosen_unlikely"}
    assert set(named(chosen(-280.0, -600.0, spread=30), stage)) == {"chosen_unlikely"}
    for seed in range(20):
        assert named(chosen(-11.2, -13.5, seed=seed), stage) == {}
        assert named(chosen(-280.0, -340.0, spread=30, seed=seed), stage) == {}
        assert named(chosen(-2.0, -4.0, seed=seed, spread=0.2), stage) == {}  # three tokens
        assert named(chosen(-11.2, -20.3, count=20, seed=seed), stage) == {}
    assert named(chosen(-11.2, -20.3), "sft") == {}


def test_a_reward_model_at_chance():
    dice = random.Random(0)

    def rows(mean):
        return [{"accuracy": mean + dice.gauss(0, 0.06)} for _ in range(120)]

    assert set(named(rows(0.5), "reward")) == {"reward_at_chance"}
    assert set(named(rows(0.3), "reward")) == {"reward_at_chance"}  # choices swapped
    assert named(rows(0.63), "reward") == {}


# --- columns ------------------------------------------------------------------------------------


def test_columns_line_up_where_a_step_lacks_a_metric():
    columns = columns_of([{"a": 1.0}, {"a": 2.0, "b": 5.0}, {"b": None}])
    assert columns["a"][:2] == [1.0, 2.0]
    assert columns["b"][1] == 5.0
    assert [math.isnan(x) for x in columns["a"] + columns["b"]] == [False] * 2 + [True] * 2 + [
        False,
        True,
    ]


def test_every_stage_that_trains_has_monitors():
    assert set(MONITORS) == set(TRAINED)
    source = Path(monitors.__file__).read_text(encoding="utf-8")
    known = {entry.name for entry in METRICS}
    assert (
        set(re.findall(r'"((?:objective|val|policy|first_minibatch|loss)/\w+)"', source)) <= known
    )


def test_a_step_costs_next_to_nothing():
    """At the paper's 1,953 updates, each look takes less than 20 ms, where an update takes tens of
    seconds."""
    columns = columns_of(healthy(0, updates=1953))
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        list(journal_findings("ppo", columns, "float32", "float32"))
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.02
