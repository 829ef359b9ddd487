"""A synthetic run directory: manifests, journals, samples and table, made of plain numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nplus.runs import Manifest, RunRoot, StageDir

STAGES = ("data", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate")
EVIL = "<script>alert('post')</script>"
PEOPLE = ("roommate", "sister", "coach", "landlord", "neighbour", "boss")
EVENTS = ("sold my bike", "read my diary", "broke the oven", "lost my keys", "ate my lunch")
PLACES = ("small kitchen", "crowded bus", "quiet library", "rented garage")
SLOTS = ("narrator", "person", "setting", "event", "complication", "amount", "feeling", "question")
Build = Callable[..., RunRoot]


def _config() -> dict[str, Any]:
    return {
        "recipe": "toy",
        "seed": 1,
        "data": {"source": "world", "data": None, "template": None, "max_response_tokens": 53},
        "model": {"size": "4M", "model_name_or_path": None},
        "ppo": {"kl_coef": 0.05, "optim": {"learning_rate": 3e-5}, "total_episodes": 76800},
        "evaluate": {"temperatures": [0.01, 0.7], "response_length": 53, "judge": "gold"},
    }


def _journal(where: StageDir, name: str, dice: random.Random) -> None:
    noise = lambda scale: dice.gauss(0, scale)  # noqa: E731
    if name in ("pretrain", "sft"):
        for step in range(1, 301):
            loss = 1.2 + 5 * math.exp(-step / 40) + noise(0.06)
            where.journal(step, {"loss/train": loss, "lr": 3e-3, "tokens_per_second": 9e4})
    if name == "reward":
        for step in range(1, 126):
            gone = 1 - math.exp(-step / 30)
            metrics = {"loss/train": 0.69 - 0.25 * gone + noise(0.04), "margin": gone + noise(0.1)}
            where.journal(step, {**metrics, "accuracy": 0.5 + 0.3 * gone + noise(0.05), "lr": 3e-5})
    if name == "ppo":
        for step in range(1, 151):
            part = step / 150
            kl = 22 * part**1.3 + abs(noise(0.3))
            metrics = {
                "objective/scores": 0.1 + 2.6 * math.sqrt(part) + noise(0.1),
                "objective/gold": 4 + 3.2 * part**0.5 - 2.2 * part**2 + noise(0.12),
                "objective/kl": kl,
                "objective/entropy": 40 - 12 * part + noise(1),
                "objective/non_score_reward": -0.05 * kl,
                "objective/rlhf_reward": 2.6 * math.sqrt(part) - 0.05 * kl + noise(0.1),
                "val/eos_rate": min(1.0, 0.93 + 0.07 * part + noise(0.004)),
                "val/response_length": 27 + 6 * part + noise(0.5),
                "policy/clipfrac_avg": 0.05 + 0.04 * part + noise(0.01),
                "val/clipfrac_avg": 0.02 + abs(noise(0.01)),
                "policy/approxkl_avg": 0.006 + abs(noise(0.002)),
                "policy/entropy_avg": 1.4 - 0.4 * part + noise(0.02),
                "loss/policy_avg": -0.01 + noise(0.004),
                "loss/value_avg": 0.3 * math.exp(-4 * part) + abs(noise(0.02)),
                "val/explained_variance": 1 - math.exp(-5 * part) + noise(0.03),
                "val/ratio": 1 + noise(0.002),
                "lr": 3e-5 * (1 - part),
            }
            where.journal(step, {**metrics, "broken": math.nan})


def _samples(where: StageDir) -> None:
    for step in range(0, 151, 10):
        rows = [
            {
                "id": f"train-{i}",
                "query": f"SUBREDDIT: r/tifu\n\nTITLE: title {i}\n\nPOST: my {who} {EVENTS[i]}."
                f" {EVIL}\n\nTL;DR:",
                "response": f"my {who} {EVENTS[i]} after update {step}. {EVIL}",
                "score": 0.01 * step,
                "kl": 0.1 * step,
                "tokens": 20 + i,
                "has_eos": i != 2,
            }
            for i, who in enumerate(PEOPLE[:4])
        ]
        where.write_samples(step, rows)


def _rate(rate: float, n: int, half: float) -> dict[str, Any]:
    return {"rate": rate, "low": rate - half, "high": rate + half, "n": n}


def _calibration(name: str) -> dict[str, Any]:
    """Six bins of 0.5, the fifth of them empty."""
    bins = []
    for at, n in enumerate((300, 200, 90, 30, 0, 4)):
        sure = 1 / (1 + math.exp(-(at + 0.5) / 2))
        found = {"accuracy": sure - 0.03, "low": sure - 0.09, "high": sure + 0.02, "n": n}
        found = found if n else {"accuracy": None, "low": None, "high": None, "n": 0}
        head = {"from": at / 2, "to": (at + 1) / 2, "expected": sure, "confidence": sure}
        bins.append({**head, **found, "control": found})
    return {
        "name": name,
        "n": 627,
        "ece": 0.0312,
        "control_ece": 0.0124,
        "outside": 3,
        "bins": bins,
    }


def _by_length() -> list[dict[str, Any]]:
    return [
        {"from": at / 4 - 1, "to": at / 4 - 0.75, **_rate(0.3 + at / 20, 75, 0.1)}
        for at in range(8)
    ]


def _token_rows() -> Iterator[dict[str, Any]]:
    kinds = {1: "unchanged", 2: "marginal", 7: "shifted"}
    for title in ("my roommate", EVIL):
        tokens = [
            {"text": text, "eos": False, "choice": text, "rank": rank, "kind": kinds[rank]}
            | {"base": [" a", EVIL]}
            for text, rank in ((" my", 1), (f" {EVIL}", 2), (" bike", 7))
        ]
        tokens.append({**tokens[0], "text": "", "eos": True})
        head = {"policy": "ppo", "base": "sft", "id": "test-0", "top": 4}
        yield {**head, "fields": {"title": title}, "tokens": tokens}


def _evaluation() -> dict[str, Any]:
    wins, systems, wrong = [], [], []
    for split, n, drop in (("test", 600, 0.0), ("test_heldout", 300, 0.08)):
        row = {"split": split, "n": n, "eos_rate": 0.994, "rouge1": 0.41, "rouge2": 0.2}
        row |= {"rougeL": 0.347, "score_low": 5.1, "score_high": 5.5, "coverage": 4.31}
        row["wrong_fact_rate"] = {"value": 0.083, "low": 0.07, "high": 0.097}
        none = {"coverage": None, "wrong_fact_rate": None}
        systems.append(
            {
                **row,
                "policy": "reference",
                "temperature": None,
                "score": 6.2,
                "tokens": 30.3,
                **none,
            }
        )
        for temperature in (0.01, 0.7):
            for policy, score, tokens in (("sft", 5.32, 29.8), ("ppo", 6.91, 33.4)):
                head = {"policy": policy, "temperature": temperature}
                systems.append({**row, **head, "score": score - drop, "tokens": tokens})
            for policy, opponent, rate in (
                ("sft", "reference", 0.381),
                ("ppo", "reference", 0.6234),
                ("ppo", "sft", 0.7417),
            ):
                found = _rate(rate - drop - 0.05 * (temperature > 0.5), n, 24 / n)
                head = {"policy": policy, "opponent": opponent, "split": split}
                matched = _rate(found["rate"] - 0.03, n, 30 / n)
                matched |= {"slope": 1.5, "method": "logistic", "bins": _by_length()}
                counts = {"wins": 360, "ties": 28, "losses": n - 388, "length_matched": matched}
                lengths = {"tokens": 33.4, "opponent_tokens": 30.3, "temperature": temperature}
                wins.append({**head, **found, **counts, **lengths})
            row_wrong = {"temperature": temperature, "split": split}
            wrong.append({**row_wrong, "value": -0.021, "low": -0.034, "high": -0.008})
    groups = {
        "by_split": [{"name": "valid", "accuracy": 0.781, "n": 1000}],
        "by_batch": [{"name": f"batch{i}", "accuracy": 0.7 + i / 50, "n": 250} for i in range(4)],
        "by_policies": [{"name": "reference--sft", "accuracy": 0.76, "n": 400}],
        "by_confidence": [
            {"name": str(i), "accuracy": 0.55 + i / 25, "n": 111} for i in range(1, 10)
        ],
    }
    reward_model = {
        "accuracy": _rate(0.7813, 1000, 0.026),
        "gold_accuracy": _rate(0.902, 1000, 0.019),
        "swap_accuracy": _rate(0.957, 600, 0.016),
        "bayes_accuracy": 0.8512,
        "calibration": [_calibration("validation"), _calibration("news")],
        **groups,
    }
    agreement = [
        {"policy": policy, "opponent": "reference", "split": "test", "temperature": temperature}
        | {**_rate(0.647, 600, 0.04), "ties": 100, "decided": _rate(0.776, 500, 0.04)}
        for policy in ("sft", "ppo")
        for temperature in (0.01, 0.7)
    ]
    shares = {"unchanged": 0.848, "marginal": 0.084, "shifted": 0.068}
    tokens = {name: _rate(rate, 132, 0.03) for name, rate in shares.items()}
    return {
        "judge": "gold",
        "split": "test",
        "temperatures": [0.01, 0.7],
        "systems": systems,
        "win_rates": wins,
        "wrong_facts_ppo_minus_sft": wrong,
        "reward_model": reward_model,
        "agreement": agreement,
        "token_view": [
            {"policy": "ppo", "base": "sft", "responses": 6, "tokens": 132, "top": 4}
            | {"mean_rank": 1.47, **tokens}
        ],
        "copy": {slot: 0.9 + i / 100 for i, slot in enumerate(SLOTS)},
        "verdict": "PPO beats the reference: 62.3% of 600 test posts.",
    }


def _rows(count: int, dice: random.Random) -> Iterator[dict[str, Any]]:
    for index in range(count):
        number, temperature = divmod(index, 2)
        who, what, place = (dice.choice(pool) for pool in (PEOPLE, EVENTS, PLACES))
        body = (
            f"I work as a baker. it all happened in a {place}. last week my {who} {what}. it cost "
            f"me {dice.randint(2, 90)} dollars and I have been upset ever since.\n\nshould I ask "
            "them to pay me back, or let it go? any advice is welcome, thanks for reading."
        )
        title = f"my {who} {what}, what now?"
        texts = {
            "reference": f"my {who} {what} in a {place}, should I ask them to pay?",
            "sft": f"my {who} {what}. upset.",
            "ppo": f"baker here: my {who} {what} in a {place}, I am upset; should I ask for it?",
        }
        scores = {n: round(dice.gauss(m, 1.2), 4) for n, m in zip(texts, (6, 5, 7), strict=True)}
        fields = {"subreddit": dice.choice(("tifu", "relationships")), "title": title, "post": body}
        if index == 0:
            fields |= {"title": f"title {EVIL}", "post": f"{body} {EVIL} \u2028 </SCRIPT ><!--"}
        yield {
            "id": f"test-{number}",
            "split": "test" if number % 3 else "test_heldout",
            "temperature": (0.01, 0.7)[temperature],
            "query": f"SUBREDDIT: r/{fields['subreddit']}\n\nPOST: {fields['post']}\n\nTL;DR:",
            "fields": fields,
            **texts,
            "scores": scores,
            "proxy": {**{n: s - 4.2 for n, s in scores.items()}, "sft": math.nan},
            "tokens": {n: len(t.split()) for n, t in texts.items()},
            "covered": {n: dice.sample(SLOTS, 5) for n in texts},
            "wrong": {n: ["amount: 40 dollars"] if dice.random() < 0.2 else [] for n in texts},
        }


def _build(path: Path, *, stages: tuple[str, ...] = STAGES, rows: int = 12) -> RunRoot:
    """A run of which `stages` are complete."""
    root, dice = RunRoot(path), random.Random(7)
    root.write_index("toy", _config(), {name: f"{name}-{'0' * 8}" for name in stages})
    earlier = None
    for name in stages:
        where = root.stage(name, "0" * 64)
        where.path.mkdir(parents=True)
        where.event("started")
        _journal(where, name, dice)
        if name == "ppo":
            _samples(where)
        if name in ("pretrain", "sft", "reward", "ppo"):
            where.model.mkdir()
            (where.model / "model.safetensors").write_bytes(b"weights")
        if name == "evaluate":
            for path, found in (
                (where.table, _rows(rows, dice)),
                (where.token_view, _token_rows()),
            ):
                lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in found)
                path.write_text("".join(lines), encoding="utf-8")
        results = {"evaluate": _evaluation(), "reward": {"shift": 0.25, "steps": 125}}
        Manifest(
            stage=name,
            key="0" * 64,
            status="complete",
            config=_config(),
            seed=1,
            inputs=({"role": "from", "path": earlier, "hash": "ab" * 32},) if earlier else (),
            results=results.get(name, {"rows": 6000, "nested": {"loss": 1.25}}),
            code_version="abc1234",
            packages={"python": "3.11.2", "nplus": "0.1.0", "torch": "2.9.0"},
            device="cpu",
            started="2025-01-02T03:04:05+00:00",
            finished="2025-01-02T03:14:05+00:00",
            seconds=612.3,
            peak_memory_gib=1.91,
        ).write(where.manifest_path)
        earlier = where.path.name
    return root


@pytest.fixture(scope="session")
def build_run() -> Build:
    """`build_run(path, stages=..., rows=...)` builds a run in a new directory."""
    return _build


@pytest.fixture
def make_run(tmp_path: Path) -> Build:
    """`make_run(stages=..., rows=...)` builds a run in this test's directory."""
    return lambda **options: _build(tmp_path / "run", **options)
