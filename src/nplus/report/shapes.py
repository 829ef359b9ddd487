"""What the results of an evaluation look like: a damaged manifest or table is told, not drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nplus.records import InputError

SYSTEMS = ("reference", "sft", "ppo", "reinforce", "online_dpo", "dpo", "online")
NUMBER, TEXT, NAMED = "a number", "text", "an object"
Shape = Any
"""`NUMBER`, `TEXT`, `NAMED`, `[shape]` for a list, or `{key: shape}` for an object. None is always
allowed, and so is what is not named: a key may be missing, and another version may write more."""

RATE = {"rate": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
MEAN = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
MATCH = {"policy": TEXT, "opponent": TEXT, "split": TEXT, "temperature": NUMBER, "ties": NUMBER}
GROUP = {"name": TEXT, "accuracy": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
BIN = {"from": NUMBER, "to": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
CALIBRATION = {
    **{"name": TEXT, "ece": NUMBER, "control_ece": NUMBER, "outside": NUMBER},
    "bins": [{**BIN, "accuracy": NUMBER, "control": {"accuracy": NUMBER, "n": NUMBER}}],
}
MODEL = {
    **dict.fromkeys(("accuracy", "gold_accuracy", "swap_accuracy"), RATE),
    **{
        key: [GROUP]
        for key in ("by_split", "by_batch", "by_policies", "by_confidence", "by_source")
    },
    "bayes_accuracy": NUMBER,
    "minus_reward_model": MEAN,
    "calibration": [CALIBRATION],
}
EVALUATION: Shape = {
    **dict.fromkeys(("judge", "split", "verdict", "name"), TEXT),
    "temperatures": [NUMBER],
    "policies": [TEXT],
    "systems": [{"policy": TEXT, "split": TEXT, "kl": MEAN, "wrong_fact_rate": MEAN}],
    "win_rates": [{**MATCH, **RATE, "length_matched": {**RATE, "bins": [{**BIN, "rate": NUMBER}]}}],
    "agreement": [{**MATCH, **RATE, "decided": RATE}],
    **{f"wrong_facts_{policy}_minus_sft": [MEAN] for policy in SYSTEMS[2:]},
    **dict.fromkeys(("reward_model", "implicit_reward"), MODEL),
    "token_view": [{"policy": TEXT, "unchanged": RATE, "marginal": RATE, "shifted": RATE}],
    "copy": NAMED,
    "matched": NAMED,
    **dict.fromkeys(("read", "unmatched", "duplicates", "other_query"), NUMBER),
}
ROUNDS: Shape = {
    "chosen": NUMBER,
    "rounds": [
        {
            "round": NUMBER,
            "validation": {
                "systems": [
                    {
                        **dict.fromkeys(("temperature", "score", "proxy", "tokens"), NUMBER),
                        "kl": MEAN,
                        "against_sft": RATE,
                        "against_reference": RATE,
                    }
                ]
            },
            "pairs": {"pairs": NUMBER, "reward": NUMBER, "left_out": NAMED},
        }
    ],
}
"""The results of the online loop."""
REQUIRED = {
    "rounds": {"round", "validation"},
    "systems": {"policy", "split", "temperature"},
    "calibration": {"name", "ece", "control_ece", "outside", "bins"},
    "bins": {"from", "to", "n", "low", "high"},
    "by_source": {"name"},
    "token_view": {"policy", "responses"},
    "tokens": {"text", "eos", "kind", "choice", "rank", "base"},
    **{key: {"value", "low", "high"} for key in ("kl", "minus_reward_model")},
}
"""Keys that an object of this name has, or every one in a list of this name."""
ROW: Shape = {
    **dict.fromkeys(("scores", "proxy", "tokens", "fields"), NAMED),
    **{key: {name: [TEXT] for name in SYSTEMS} for key in ("covered", "wrong")},
    **dict.fromkeys(SYSTEMS, TEXT),
}
"""A row of the table."""
VIEW: Shape = {
    **{"policy": TEXT, "base": TEXT, "top": NUMBER, "fields": NAMED},
    "tokens": [{"text": TEXT, "kind": TEXT, "rank": NUMBER, "base": [TEXT]}],
}
"""A row of the token view."""


def require_results(path: Path, results: Mapping[str, Any], shape: Shape = EVALUATION) -> None:
    """InputError for results in the manifest at `path` that no evaluation writes, or no stage whose
    results are of another `shape`."""
    if fault := odd(results, shape):
        raise InputError(
            f"{path}: in its results {fault}; it is damaged: remove {path.parent} and run again"
        )


def odd(value: Any, shape: Shape, where: str = "") -> str:
    """What of `value` is not of its shape, as `systems[0].kl is text, not an object`; or ""."""
    if value is None:
        return ""
    if isinstance(shape, dict):
        return _odd_object(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is {_kind(value)}, not a list"
        faults = (odd(item, shape[0], f"{where}[{at}]") for at, item in enumerate(value))
        return next(filter(None, faults), "") or _null(value, where)
    return "" if _kind(value) == shape else f"{where} is {_kind(value)}, not {shape}"


def _odd_object(value: Any, shape: Mapping[str, Shape], where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is {_kind(value)}, not an object"
    name = where.rpartition(".")[2].partition("[")[0]
    if lacks := sorted(REQUIRED.get(name, set()) - value.keys()):
        return f"{where} lacks {', '.join(lacks)}"
    head = f"{where}." if where else ""
    faults = (odd(value.get(key), part, f"{head}{key}") for key, part in shape.items())
    return next(filter(None, faults), "")


def _null(value: list[Any], where: str) -> str:
    return f"{where} holds null" if None in value else ""


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    if isinstance(value, dict):
        return NAMED
    if isinstance(value, list):
        return "a list"
    return NUMBER if isinstance(value, int | float) and not isinstance(value, bool) else "a truth"
