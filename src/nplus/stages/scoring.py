"""The score that policies are trained on: the reward model's, with other rewards beside it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nplus.batches import Generation
from nplus.config import ScoringConfig, TermConfig
from nplus.data.tokens import Codec
from nplus.evaluation.verifiable import (
    Answering,
    Answers,
    FunctionScorer,
    ScoringError,
    Term,
    source_of,
)
from nplus.metrics import Mean, Metric, Sum
from nplus.models.scalar import ScalarModel
from nplus.models.weights import require_weights
from nplus.records import Demonstration, InputError, Sample, Scorer
from nplus.rollout import ScoreFn, Scores, rm_scores, texts
from nplus.runs import content_hash, key_of
from nplus.stages.scorers import RewardScorer


def scoring_key(cfg: ScoringConfig) -> dict[str, Any]:
    """What the scores hang on: the settings, the files of each reward model, and the text of each
    function's module (not of what that imports), so that an edited reward is not taken for the old
    one."""
    hashes = {}
    for term in cfg.terms:
        if term.function is None:
            hashes[term.name] = key_of(
                [(file.name, _hash(file, *_stamp(file))) for file in _files(folder_of(term))]
            )
        elif (source := source_of(term.function)) is not None:
            hashes[term.name] = content_hash(source)
    return cfg.model_dump(mode="json") | {"sources": hashes}


def folder_of(term: TermConfig) -> Path:
    """Where a term's reward model lies."""
    return Path(str(term.reward_model)).expanduser()


def require_terms(cfg: ScoringConfig) -> None:
    """Raise InputError for a term whose reward model is none; nothing is loaded."""
    for term in cfg.terms:
        if term.reward_model is None:
            continue
        try:
            shapes = require_weights(folder_of(term))
        except InputError as error:
            raise InputError(f"scoring.terms: reward_model: {error}") from error
        if shapes.get("score.weight", (0,))[0] != 1:
            raise InputError(
                f"scoring.terms: reward_model: {term.name}: its weights have no head of one number "
                "(score.weight); name the folder `model` of a reward stage"
            )


def _files(folder: Path) -> list[Path]:
    """What a reward model's scores come from."""
    kinds = (".safetensors", ".json")
    return sorted(file for file in folder.glob("*") if file.suffix in kinds and file.is_file())


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _hash(file: Path, size: int, written: int) -> str:
    """The file's hash, taken anew where it has changed: keys are asked for at every stage."""
    return content_hash(file)


@dataclass(frozen=True, slots=True)
class LearnedReward:
    """A reward model that is one of several rewards; it reads what the run's own reads."""

    name: str
    scorer: RewardScorer
    failed: float | None = None
    """The value where it gives no finite number; None raises ScoringError."""

    def answers(self, samples: Sequence[Sample]) -> Answers:
        """One value a sample, read at the EOS behind its text."""
        return self._told(self.scorer.score(samples), [sample.id for sample in samples])

    def answers_to(self, generation: Generation) -> Answers:
        """One value a response, read where the run's reward model reads it."""
        found_B = rm_scores(self.scorer.model, generation, self.scorer.shared)
        return self._told(found_B.tolist(), generation.prompts.keys)

    def _told(self, values: list[float], ids: Sequence[str]) -> Answers:
        lacking = [not math.isfinite(value) for value in values]
        if any(lacking) and self.failed is None:
            at = lacking.index(True)
            raise ScoringError(
                f"{self.name}: gave {values[at]}, no finite number, for a response to prompt "
                f"{ids[at]!r}; take another reward model, or give such responses a value with "
                "scoring.failed=0"
            )
        instead = self.failed or 0.0
        both = zip(lacking, values, strict=True)
        return Answers([instead if none else value for none, value in both], lacking)


def terms_of(cfg: ScoringConfig, reward: Callable[[Path], RewardScorer]) -> tuple[Term, ...]:
    """The rewards of a run beside its reward model; `reward` loads one from its folder."""

    def scorer(term: TermConfig) -> Answering:
        if term.function is None:
            return LearnedReward(term.name, reward(folder_of(term)), cfg.failed)
        return FunctionScorer(term.function, cfg.timeout, cfg.memory_mib, cfg.failed)

    return tuple(Term(scorer(term), term.weight, term.at_least, term.penalty) for term in cfg.terms)


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
    """How many calls of terms gave no value; nothing where there is no term."""
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
        learns = isinstance(term.scorer, LearnedReward)
        found = term.scorer.answers_to(generation) if learns else term.answers(samples)
        totals = term.add_to(totals, found.values)
        failed_B += torch.tensor(found.failed)
    device = generation.tokens_BR.device
    totals_B = torch.tensor(totals, dtype=torch.float32, device=device)
    sums_B = totals_B if base_B is None else cfg.reward_weight * base_B + totals_B
    return Scores(sums_B, failed_B.to(device))
