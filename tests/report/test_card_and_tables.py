"""Model cards and the terminal's verdict."""

import io
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from nplus.report import verdict, write_cards
from nplus.report.card import base_model
from nplus.report.collect import collect
from nplus.report.tables import (
    agreement_line,
    headline,
    implicit_line,
    plain,
    span,
    wrong_facts_line,
)


def show(root, width=80):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(verdict(root))
    return out.getvalue()


def change(root, stage, **what):
    where = root.stages()[stage]
    manifest = where.manifest()
    replace(manifest, results=manifest.results | what).write(where.manifest_path)


def test_front_matter_is_yaml_with_what_the_hub_wants(make_run):
    cards = write_cards(make_run())
    assert [card.parent.parent.name.split("-")[0] for card in cards] == [
        "pretrain",
        "sft",
        "reward",
        "ppo",
    ]
    for card in cards:
        empty, front, body = card.read_text().split("---\n", 2)
        read = yaml.safe_load(front)
        assert empty == ""
        assert read["license"] == "apache-2.0"
        assert read["library_name"] == "transformers"
        assert "nplus" in read["tags"]
        assert "base_model" not in read  # trained from scratch
        code = body.split("```python\n")[1].split("```")[0]
        compile(code, str(card), "exec")


def test_cards_carry_the_runs_figures_and_the_shift(make_run):
    _, sft, reward, ppo = (card.read_text() for card in write_cards(make_run()))
    assert "62.3% [58.3, 66.3] of 600 test posts" in ppo
    assert "38.1% [34.1, 42.1]" in sft
    assert "62.3%" not in sft
    assert "78.1% [75.5, 80.7] of 1,000 labels" in reward
    assert "(by 0.2500)" in reward
    assert "AutoModelForSequenceClassification" in reward
    assert "AutoModelForSequenceClassification" not in ppo


def test_an_unchanged_card_is_not_written_again(make_run):
    root = make_run()
    before = [card.stat().st_mtime_ns for card in write_cards(root)]
    assert [card.stat().st_mtime_ns for card in write_cards(root)] == before
    change(root, "reward", shift=0.5)
    cards = write_cards(root)
    after = [card.stat().st_mtime_ns for card in cards]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    assert not [p for card in cards for p in card.parent.glob(".*")]


def test_only_finished_models_get_a_card(make_run):
    root = make_run(stages=("data", "sft", "reward"))
    where = root.stages()["reward"]
    replace(where.manifest(), status="failed").write(where.manifest_path)
    (card,) = write_cards(root)
    assert card.parent.parent.name.startswith("sft")
    assert "has no evaluation yet" not in card.read_text()  # its loss is a figure


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"size": "4M", "model_name_or_path": None}, ""),
        ({"size": None, "model_name_or_path": "EleutherAI/pythia-1b"}, "EleutherAI/pythia-1b"),
        ({"size": None, "model_name_or_path": "smollm"}, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"size": None, "model_name_or_path": "/home/someone/models/base"}, ""),
        ({"size": None, "model_name_or_path": "../base"}, ""),
        ({}, ""),
    ],
)
def test_only_a_hub_name_is_a_base_model(model, expected):
    assert base_model({"model": model}) == expected


def test_the_verdict_fits_a_terminal_of_80_columns(make_run):
    text = show(make_run())
    for part in ("62.3 [58, 66]", "59.3 [54, 64]", "33 v 30", "85.1%", "-2.1 points"):
        assert part in text, part
    assert text.rstrip().endswith("PPO beats the reference: 62.3% of 600 test posts.")
    assert "…" not in text


def test_the_verdict_of_an_unfinished_run_says_so(make_run):
    root = make_run(stages=("data", "sft"))
    assert "no evaluation" in show(root)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.51, 0.6, "better than"), (0.4, 0.49, "worse than"), (0.5, 0.6, "not clearly")],
)
def test_words_follow_the_interval(make_run, low, high, word):
    root = make_run()
    rows = collect(root).evaluation["win_rates"]
    change(root, "evaluate", verdict="", win_rates=[{**r, "low": low, "high": high} for r in rows])
    assert headline(collect(root)).startswith(f"PPO is {word}")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.1, -0.01, "fewer"), (0.01, 0.1, "more"), (-0.1, 0.1, "not clearly more or fewer")],
)
def test_wrong_facts_follow_their_interval_at_zero_too(low, high, word):
    row = {"value": 0.0, "low": low, "high": high, "split": "test"}
    line = wrong_facts_line({"split": "test", "wrong_facts_ppo_minus_sft": [row]})
    assert line.startswith(f"PPO states {word} wrong facts")


def test_a_reward_model_as_judge_is_called_that(make_run):
    root = make_run()
    change(root, "evaluate", judge="reward")
    assert "the reward model itself" in show(root)


def test_numbers_that_are_not_there_are_dashes():
    assert {plain(None), plain(float("nan")), span(None), span({"rate": None})} == {"\u2013"}


def test_dpo_is_told_like_ppo_and_after_it(make_run):
    root = make_run()
    found = collect(root).evaluation
    rows = found["win_rates"]
    dpo = [{**r, "policy": "dpo", "rate": 0.111} for r in rows if r["policy"] == "ppo"]
    facts = [{"value": 0.03, "low": 0.01, "high": 0.05, "split": "test"}]
    change(root, "evaluate", win_rates=[*dpo, *rows], wrong_facts_dpo_minus_sft=facts, verdict="")
    text = show(root)
    assert text.index("PPO: win rates") < text.index("DPO: win rates") < text.index("SFT: win")
    assert "DPO states more wrong facts than SFT: +3.0 points" in " ".join(text.split())
    assert headline(collect(root)).startswith("PPO is better than the reference")
    change(root, "evaluate", win_rates=dpo)
    assert headline(collect(root)).startswith("DPO is ")


@pytest.mark.detail("D9")
def test_the_implicit_reward_stands_beside_the_reward_model():
    accuracy = {"rate": 0.621, "low": 0.6, "high": 0.64, "n": 1000}
    found = {"implicit_reward": {"accuracy": accuracy, "minus_reward_model": None}}
    assert implicit_line(found) == (
        "DPO's implicit reward agrees with 62.1% [60.0, 64.0] of the same labels."
    )
    found["implicit_reward"]["minus_reward_model"] = {"value": -0.007, "low": -0.02, "high": 0.006}
    assert "-0.7 points [-2.0, +0.6] beside the reward model" in implicit_line(found)
    assert implicit_line({"implicit_reward": None}) == implicit_line({}) == ""


@pytest.mark.detail("D7")
def test_agreement_is_told_of_the_main_policy_against_the_references(make_run):
    found = dict(collect(make_run()).evaluation)
    assert "the same of PPO's summary and the reference on 64.7%" in agreement_line(found)
    found["agreement"] = [{**r, "policy": "sft"} for r in found["agreement"]]
    assert agreement_line(found) == ""
