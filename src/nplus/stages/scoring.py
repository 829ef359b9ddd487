"""The score that policies are trained on: the reward model's, with verifiable rewards beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nplus.batches import Generation
from nplus.config import ScoringConfig
from nplus.data.tokens import Codec
from nplus.evaluation.verifiable import FunctionScorer, Term, source_of
from nplus.metrics import Mean, Metric, Sum
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration, Sample, Scorer
from nplus.rollout import ScoreFn, Scores, rm_scores, texts
from nplus.runs import content_hash


def scoring_key(cfg: ScoringConfig) -> dict[str, Any]:
    """What the scores hang on: the settings, and the text of each function's module (not of what
    that imports), so that an edited reward is not taken for the old one."""
    sources = {term.function: source_of(term.function) for term in cfg.terms}
    hashes = {name: content_hash(path) for name, path in sources.items() if path is not None}
    return cfg.model_dump(mode="json") | {"sources": hashes}


def terms_of(cfg: ScoringConfig) -> tuple[Term, ...]:
    """The verifiable rewards of a run."""
    return tuple(
        Term(
            FunctionScorer(term.function, cfg.timeout, cfg.memory_mib, cfg.failed),
            term.weight,
            term.at_least,
            term.penalty,
        )
        for term in cfg.terms
    )


def member_scores(
    members: Sequence[Scorer], cfg: ScoringConfig, terms: Sequence[Term], samples: Sequence[Sample]
) -> tuple[list[list[float]], list[int]]:
    """A list of scores for each member: `cfg.reward_weight` times its own, plus those of the terms,
    which are asked once a response, so that members differ in their own opinion alone. And for each
    response how many terms gave no value."""
    weight = cfg.reward_weight
    totals = [
        [weight * value for value in member.score(samples)] if weight else [0.0] * len(samples)
        for member in members
    ]
    failed = [0] * len(samples)
    for term in terms:
        found = term.answers(samples)
        totals = [term.add_to(of_one, found.values) for of_one in totals]
        failed = [count + one for count, one in zip(failed, found.failed, strict=True)]
    return totals, failed


def failures(failed: int, calls: int) -> dict[str, Metric]:
    """How many of the functions' calls gave no value; nothing where no function is called."""
    if not calls:
        return {}
    return {
        "scoring/failed": Sum(float(failed)),
        "scoring/failed_share": Mean(float(failed), float(calls)),
    }


def score_fn(
    reward_model: ScalarModel,
    cfg: ScoringConfig,
    terms: Sequence[Term],
    posts: Sequence[Demonstration],
    codec: Codec,
    *,
    shared: bool = False,
) -> ScoreFn:
    """What rollouts are scored by. `posts` are those of the rollout, found by their ids.

    `shared`: the reward model reads each distinct prompt once.
    """

    def learned(generation: Generation) -> Tensor:
        return rm_scores(reward_model, generation, shared)

    if cfg.plain:
        return lambda generation: Scores.of(learned(generation))
    queries = {post.id: post.query for post in posts}
    return lambda generation: _scores(learned, cfg, terms, queries, codec, generation)


def _scores(
    learned: Callable[[Generation], Tensor],
    cfg: ScoringConfig,
    terms: Sequence[Term],
    queries: Mapping[str, str],
    codec: Codec,
    generation: Generation,
) -> Scores:
    """The weighted sum, in the reward model's precision."""
    base_B = learned(generation) if cfg.reward_weight else None
    written = texts(generation, codec.decode_response)
    samples = [
        Sample(id, queries[id], text)
        for id, text in zip(generation.prompts.keys, written, strict=True)
    ]
    totals = [0.0] * len(samples)
    failed_B = torch.zeros(len(samples), dtype=torch.long)
    for term in terms:
        found = term.answers(samples)
        totals = term.add_to(totals, found.values)
        failed_B += torch.tensor(found.failed)
    device = generation.tokens_BR.device
    totals_B = torch.tensor(totals, dtype=torch.float32, device=device)
    sums_B = totals_B if base_B is None else cfg.reward_weight * base_B + totals_B
    return Scores(sums_B, failed_B.to(device))
