"""Calibration of a reward model: how often it is right, by how sure it is (Detail D8).

A Bradley-Terry model says that the better-scored response is preferred with probability
`sigmoid(|margin|)`. The control draws labels from exactly that: with it a curve lies on the
diagonal but for chance, so what the real curve is off by is the model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nplus.stats import CalibrationBin, calibration, wilson


def control_labels(margins: Sequence[float], uniforms_N: np.ndarray) -> np.ndarray:
    """[N] bool: whether the better-scored response is preferred, with chance `sigmoid(|margin|)`.

    `uniforms_N` are the coin flips, one per comparison in [0, 1).
    """
    size_N = np.abs(np.asarray(margins, dtype=np.float64))
    return np.asarray(uniforms_N) < 1.0 / (1.0 + np.exp(-size_N))


def calibration_report(
    margins: Sequence[float], uniforms_N: np.ndarray, *, width: float = 0.5
) -> dict[str, Any]:
    """`{n, ece, control_ece, outside, bins}` of signed margins, chosen minus rejected.

    A bin holds `low < |margin| <= high`: its accuracy, what `sigmoid` of its centre and of its
    margins say (`expected`, `confidence`), and the control's accuracy on the same comparisons, with
    95% Wilson intervals. An empty bin has n = 0 and None for the rest.
    """
    real = calibration(margins, width=width)
    control = calibration(margins, control_labels(margins, uniforms_N), width=width)
    return {
        "n": len(margins),
        "ece": _known(real.ece),
        "control_ece": _known(control.ece),
        "outside": real.outside,
        "bins": [
            {
                "from": one.low,
                "to": one.high,
                "expected": one.expected,
                "confidence": _known(one.confidence),
                **_accuracy(one),
                "control": _accuracy(other),
            }
            for one, other in zip(real.bins, control.bins, strict=True)
        ],
    }


def _accuracy(found: CalibrationBin) -> dict[str, Any]:
    if not found.n:
        return {"accuracy": None, "low": None, "high": None, "n": 0}
    _, low, high = wilson(round(found.accuracy * found.n), found.n)
    return {"accuracy": found.accuracy, "low": low, "high": high, "n": found.n}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
