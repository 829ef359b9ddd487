"""What a policy of a finished run came to: its verdict post by post, and what its responses are
like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nplus.config import RunConfig
from nplus.config.relatives import ALGORITHMS
from nplus.records import Judgement, read_records
from nplus.runs import StageDir

MEASURES = ("kl", "length", "eos_rate", "greedy_length")
"""What the policy's responses are like, measured the same way in every run."""
BOUNDS = {"win_rate": (0.0, 1.0), "eos_rate": (0.0, 1.0), "kl": (-math.inf, math.inf)}
"""Where a measure's values lie, if not above 0."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy of one run came to."""

    posts: Mapping[str, float]
    """Post id to 1, 1/2 or 0: the policy against the reference, on the judged split, at the first
    temperature."""
    measures: Mapping[str, float]
    """KL in nats, length in tokens through EOS and share that ends by itself, all at the last
    temperature; length at the first."""


def main_policy(config: RunConfig) -> str:
    """The policy that a run is about: the last that its stages make."""
    made = [name for name in config.stage_names() if name in POLICY_ORDER]
    return max(made, key=POLICY_ORDER.index, default="sft")


POLICY_ORDER = ("sft", "dpo", "online", "online_dpo", "reinforce", "ppo")
"""Policies, the one that a run is about last."""


def read_outcome(where: StageDir | None, policy: str) -> Outcome | None:
    """A policy's outcome from a finished evaluation; None where there is none of it."""
    manifest = where.manifest() if where else None
    if manifest is None or where is None or manifest.status != "complete":
        return None
    split, temperatures = manifest.results["split"], manifest.results["temperatures"]
    # A judgement calls what `reinforce` made by its algorithm.
    names = ALGORITHMS if policy == "reinforce" else (policy,)
    ours = {f"{name}@{temperatures[0]:g}" for name in names}
    posts = {
        row.id: 0.5 + 0.5 * ((row.score > row.opponent_score) - (row.score < row.opponent_score))
        for row in read_records(where.judgements, Judgement)
        if row.policy in ours and (row.opponent, row.split) == ("reference", split)
    }
    systems = {
        row["temperature"]: row
        for row in manifest.results["systems"]
        if (row["policy"], row["split"]) == (policy, split)
    }
    if not posts or not systems:  # a judge that answered nothing, or a run without this policy
        return None
    first, last = systems[temperatures[0]], systems[temperatures[-1]]
    return Outcome(
        posts,
        {
            "kl": last["kl"]["value"] if last["kl"] else math.nan,
            "length": last["tokens"],
            "eos_rate": last["eos_rate"],
            "greedy_length": first["tokens"],
        },
    )
