"""The glossary of every metric that a journal holds, and `docs/metrics.md` made of it.

Detail G5: the paper's code averages some statistics over padding too. A metric here counts real
tokens only; the number that the paper's code logs stands beside it under the same name with
`_reference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

REFERENCE = "_reference"
"""Ends the name of a statistic as the paper's code computes it."""
HEAD = f"""# Metrics

<!-- Written by `make details` from src/nplus/glossary.py. -->

What `journal.jsonl` of a stage holds, one line per optimiser step or PPO update. The loss terms and
what is under `policy/` and `val/clipfrac` or `val/ratio` average over the optimiser steps of an
update. A metric counts real tokens only. Where the paper's code counts padding too (Detail G5,
quirk Q5), its number stands beside ours under the same name with `{REFERENCE}`: ours is marked
*corrected*, the paper's *reference*."""
TRAINED = ("pretrain", "sft", "dpo", "reward", "ppo", "reinforce", "online_dpo")
GROUPS = ("reinforce", "online_dpo")
ONLINE = ("ppo", *GROUPS)


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry: `name` as the journal has it, in which stages, and what it is."""

    name: str
    stages: tuple[str, ...]
    unit: str
    text: str
    detail: str = ""
    """The numbered detail that defines it."""
    corrected: bool = False
    """Whether the paper's code logs another number, which `<name>_reference` is."""

    @property
    def kind(self) -> str:
        """`corrected`, `reference` (as the paper's code has it) or `""` where the two agree."""
        if self.name.endswith(REFERENCE):
            return "reference"
        return "corrected" if self.corrected else ""


def _ppo(name: str, unit: str, text: str, detail: str = "", *, corrected: bool = False) -> Metric:
    return Metric(name, ("ppo",), unit, text, detail, corrected)


def _online(
    name: str, unit: str, text: str, detail: str = "", *, corrected: bool = False
) -> Metric:
    return Metric(name, ONLINE, unit, text, detail, corrected)


def _gradient(
    name: str, unit: str, text: str, detail: str = "", *, corrected: bool = False
) -> Metric:
    return Metric(name, ("ppo", "reinforce"), unit, text, detail, corrected)


def _groups(name: str, unit: str, text: str) -> Metric:
    return Metric(name, GROUPS, unit, text)


def _reinforce(name: str, unit: str, text: str) -> Metric:
    return Metric(name, ("reinforce",), unit, text)


def _dpo(name: str, unit: str, text: str) -> Metric:
    return Metric(name, ("dpo", "online_dpo"), unit, text, "D9")


METRICS = (
    Metric(
        "loss/train",
        ("pretrain", "sft", "dpo", "online_dpo", "reward"),
        "nats",
        "The loss of the step's batch before the step: per token in pretraining and SFT (C2), per "
        "pair for the reward model (D3) and DPO (D9); of DPO without `loss/nll` and "
        "`loss/optimism`.",
    ),
    Metric(
        "grad_norm",
        TRAINED,
        "",
        "Euclidean norm of the gradient of all parameters before clipping; over an update of "
        "several steps, their mean.",
        "B4",
    ),
    Metric("lr", TRAINED, "", "Learning rate of the step; in PPO that of the policy.", "B3"),
    Metric(
        "tokens_per_second",
        ("pretrain", "sft", *ONLINE),
        "tokens/s",
        "Real tokens per second of wall time: trained on, or in online stages sampled, over the "
        "whole step.",
    ),
    Metric("seconds", ("dpo", "reward"), "s", "Wall time of the step."),
    Metric(
        "accuracy",
        ("reward",),
        "share",
        "Training pairs whose chosen response scores strictly higher, before the step.",
        "D3",
    ),
    Metric("margin", ("reward",), "score", "Mean score of the chosen response less the other's."),
    Metric("mean_reward", ("reward",), "score", "Mean score of all responses, before any shift."),
    _dpo(
        "rewards/accuracies",
        "share",
        "Pairs whose chosen response has strictly the higher implicit reward; 0 at the start, "
        "where all tie.",
    ),
    _dpo(
        "rewards/chosen",
        "score",
        "Mean of `beta * (log p - log p_ref)` of chosen responses; of a loss without a reference "
        "`beta * log p`, with `simpo` and `orpo` averaged over a response's tokens.",
    ),
    _dpo("rewards/rejected", "score", "The same of rejected responses."),
    _dpo("rewards/margins", "score", "Mean implicit reward of the chosen response less the other."),
    _dpo("logps/chosen", "nats", "Mean log-probability of chosen responses, EOS included."),
    _dpo("logps/rejected", "nats", "The same of rejected responses."),
    _dpo(
        "rewards/level",
        "score",
        "What implicit rewards are measured against: with `bco_pair` the mean of all so far, with "
        "`kto` beta times the KL of mismatched pairs, at least 0.",
    ),
    _dpo(
        "loss/nll",
        "nats",
        "Negative log-likelihood of chosen responses, averaged as `dpo.rpo_nll` says, before its "
        "weight; where it has one.",
    ),
    _dpo(
        "loss/optimism",
        "nats",
        "Mean log-probability of the designated responses, before `dpo.xpo_alpha`; where that is "
        "set.",
    ),
    _online("episode", "episodes", "Responses sampled so far.", "G1"),
    _online(
        "objective/kl",
        "nats/response",
        "Estimated KL from SFT: log-ratios of the sampled tokens, summed over a response, averaged "
        "over responses; 0 at the first update.",
        "F3",
    ),
    _online(
        "objective/kl_per_token", "nats/token", "The same, averaged over response tokens.", "F3"
    ),
    _online(
        "objective/kl_stderr",
        "nats/response",
        "Standard error of `objective/kl` over the update's responses; tells a negative estimate "
        "from noise.",
        "F3",
    ),
    _gradient("objective/kl_coef", "score/nat", "The price of KL in this update.", "E1"),
    _online("objective/scores", "score", "Mean reward-model score, without the EOS trick.", "D4"),
    _online("objective/scores_std", "score", "Standard deviation of these scores over responses."),
    _ppo(
        "objective/scores_penalised",
        "score",
        "The same, where a response without EOS has the penalty in place of its score.",
        "E8",
    ),
    _gradient(
        "objective/non_score_reward", "score", "Mean of `-kl_coef * KL` of a response.", "G5"
    ),
    _gradient(
        "objective/rlhf_reward",
        "score",
        "What is maximised: the penalised score plus the KL part, per response.",
        "G5",
    ),
    _online(
        "objective/gold",
        "score",
        "The world's true score of the responses; training never sees it.",
    ),
    _online(
        "objective/entropy",
        "nats/response",
        "Mean of `-log p` of a sampled response, summed over its tokens through EOS.",
        "G5",
        corrected=True,
    ),
    _ppo(
        "objective/entropy_reference",
        "nats/response",
        "As the paper's code has it: each slot after EOS adds -1, the log-probability that marks "
        "padding (quirk Q5).",
        "G5",
    ),
    _online("val/eos_rate", "share", "Responses that end by themselves within the length.", "E8"),
    _online(
        "scoring/failed",
        "",
        "Calls of `scoring.terms` for the update's responses that gave no value, so that "
        "`scoring.failed` stands in; only where there are terms.",
    ),
    _online("scoring/failed_share", "share", "Their share of all such calls."),
    _online("val/response_length", "tokens", "Mean tokens of a response through EOS.", "E4"),
    _ppo(
        "val/explained_variance",
        "",
        "`1 - var(return - value) / var(return)` of the critic before the update; 1 is perfect, 0 "
        "no better than a constant.",
    ),
    _gradient(
        "loss/policy_avg",
        "",
        "Clipped surrogate loss per response token; without a critic, divided as `aggregation` "
        "says.",
        "G2",
    ),
    _ppo("loss/value_avg", "score^2", "Clipped squared error of the critic per value slot.", "G3"),
    _gradient(
        "policy/approxkl_avg",
        "nats^2",
        "`0.5 * (log-ratio)^2` of new against old policy, mean over response tokens.",
        "G5",
        corrected=True,
    ),
    _ppo(
        "policy/approxkl_avg_reference",
        "nats^2",
        "As the paper's code has it: the same sum over all slots, padding included.",
        "G5",
    ),
    _gradient(
        "policy/clipfrac_avg",
        "share",
        "Response tokens whose clipped loss is the larger one.",
        "G5",
        corrected=True,
    ),
    _ppo(
        "policy/clipfrac_avg_reference",
        "share",
        "As the paper's code has it: the same count over all slots; there the unmasked mean "
        "overwrites the masked one.",
        "G5",
    ),
    _gradient(
        "policy/entropy_avg",
        "nats/token",
        "Mean entropy of the tempered next-token distribution over response tokens.",
        "G5",
    ),
    _ppo("val/clipfrac_avg", "share", "Value slots whose clipped loss is the larger one.", "G5"),
    _gradient(
        "val/ratio",
        "",
        "Mean probability ratio of new and old policy over response tokens; 1 before the first "
        "step.",
        "G5",
        corrected=True,
    ),
    _ppo(
        "val/ratio_reference",
        "",
        "As the paper's code has it: the mean over all slots, where padding counts as 1.",
        "G5",
    ),
    _groups(
        "val/staleness",
        "updates",
        "Updates that the weights have gone on for since they drew this update's responses, all of "
        "them alike; 0 where `max_staleness` is.",
    ),
    _reinforce(
        "val/importance",
        "",
        "Mean importance weight over response tokens, after its bound: policy before the update "
        "over policy that sampled; where `max_staleness` is not 0.",
    ),
    _reinforce(
        "val/importance_bounded", "share", "Response tokens whose weight `importance_cap` bounds."
    ),
    _groups(
        "objective/signal",
        "",
        "What is maximised before any price of KL: the score with its penalties, or the preference "
        "over the rival less 1/2.",
    ),
    _reinforce(
        "objective/rival_scores",
        "score",
        "Mean score of greedy responses (ReMax) or of the mixture's (Nash-MD); 0 without rivals.",
    ),
    _reinforce(
        "objective/advantage_size", "", "Mean absolute advantage over tokens that are trained on."
    ),
    _groups(
        "groups/score_std", "", "Mean over prompts of the deviation of their responses' signals."
    ),
    _groups("groups/equal", "share", "Groups whose signals are all equal."),
    Metric(
        "groups/score_gap",
        ("online_dpo",),
        "score",
        "Mean over prompts of the best response's penalised score less the worst's.",
    ),
    _reinforce(
        "groups/drawn",
        "groups",
        "Prompts of the update's draws, with `dynamic_sampling_max` over 1.",
    ),
    _groups(
        "groups/dropped",
        "groups",
        "Groups that were left out: by dynamic sampling, or for want of a pair.",
    ),
    _groups(
        "groups/steps", "steps", "Optimiser steps of the update; 0 where every group was left out."
    ),
    _reinforce(
        "loss/kl_avg",
        "nats",
        "KL from SFT in the loss, by `kl_estimator` and divided as the policy loss, before its "
        "price.",
    ),
    _ppo("val/ratio_var", "", "Variance of `val/ratio` over the update's optimiser steps.", "G5"),
    _gradient(
        "first_minibatch/ratio",
        "",
        "`val/ratio` of the very first minibatch, before anything moved: 1 but for rounding.",
        "B4",
    ),
    _gradient(
        "first_minibatch/approxkl_avg",
        "nats^2",
        "`policy/approxkl_avg` of the very first minibatch: 0 but for rounding.",
        "B4",
    ),
    _gradient(
        "first_minibatch/clipfrac_avg",
        "share",
        "`policy/clipfrac_avg` of the very first minibatch: 0.",
        "B4",
    ),
)


def metric(name: str) -> Metric:
    """The entry of a journalled metric; raises KeyError for one that is not in the glossary."""
    found = {entry.name: entry for entry in METRICS}
    if name not in found:
        raise KeyError(f"metric {name!r} is not in the glossary; add it to METRICS")
    return found[name]


def metrics_markdown() -> str:
    """`docs/metrics.md`: a table for each stage, in the order of the road."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    for stage in TRAINED:
        yield ""
        yield f"## {stage}"
        yield ""
        yield "| metric | unit | what it is | detail | |"
        yield "|---|---|---|---|---|"
        for entry in METRICS:
            if stage in entry.stages:
                cells = (f"`{entry.name}`", entry.unit, entry.text, entry.detail, entry.kind)
                yield f"| {' | '.join(cells)} |"
