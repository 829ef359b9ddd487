"""The score that policies are trained on: the reward model's, with verifiable rewards beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nplus.batches import Generation
from nplus.config import ScoringConfig
from nplus.data.tokens import Codec
from nplus.evaluation.verifiable import FunctionScorer, Term, source_of
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration, Sample, Scorer
from nplus.rollout import ScoreFn, rm_scores, texts
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
) -> list[list[float]]:
    """A list of scores for each member: `cfg.reward_weight` times its own, plus those of the terms,
    which are asked once a response, so that members differ in their own opinion alone."""
    weight = cfg.reward_weight
    totals = [
        [weight * value for value in member.score(samples)] if weight else [0.0] * len(samples)
        for member in members
    ]
    for term in terms:
        values = term.values(samples)
        totals = [term.add_to(of_one, values) for of_one in totals]
    return totals


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
        return learned
    queries = {post.id: post.query for post in posts}
    return lambda generation: _scores(learned, cfg, terms, queries, codec, generation)


def _scores(
    learned: ScoreFn,
    cfg: ScoringConfig,
    terms: Sequence[Term],
    queries: Mapping[str, str],
    codec: Codec,
    generation: Generation,
) -> Tensor:
    """[B]: the weighted sum, in the reward model's precision."""
    base_B = learned(generation) if cfg.reward_weight else None
    written = texts(generation, codec.decode_response)
    samples = [
        Sample(id, queries[id], text)
        for id, text in zip(generation.prompts.keys, written, strict=True)
    ]
    totals = [0.0] * len(samples)
    for term in terms:
        totals = term.add_to(totals, term.values(samples))
    device = generation.tokens_BR.device
    totals_B = torch.tensor(totals, dtype=torch.float32, device=device)
    return totals_B if base_B is None else cfg.reward_weight * base_B + totals_B
