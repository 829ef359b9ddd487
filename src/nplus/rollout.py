"""Prompts -> engine -> log-probs, reference log-probs, scores, values (section E)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from nplus.batches import Generation, GroupRollout, PromptBatch, Rollout, ValuedRollout
from nplus.config import SamplingConfig
from nplus.engines.protocol import Engine
from nplus.models.critic import SharedCritic
from nplus.models.lm import response_logprobs
from nplus.models.scalar import ScalarModel
from nplus.models.shared import shared_response_logprobs, sharing
from nplus.ops.responses import contains_eos, value_mask_BR

Critic = ScalarModel | SharedCritic
Rolled = TypeVar("Rolled", ValuedRollout, GroupRollout)


class Scores(NamedTuple):
    """[B] scores, and for each row how many verifiable rewards gave it no value."""

    scores_B: Tensor
    failed_B: Tensor

    @classmethod
    def of(cls, scores_B: Tensor) -> Scores:
        """Of a model, which always gives one."""
        return cls(scores_B, torch.zeros_like(scores_B, dtype=torch.long))


ScoreFn = Callable[[Generation], Scores]

ROWS_ON_CPU = 16
"""Rows of a forward on a CPU, which gains nothing from more and computes less padding for fewer."""
WIDTH_MULTIPLE = 16
"""Widths are round, so that kernels are compiled for few."""


def _pieces(
    generation: Generation, size: int, positions: str, shared: bool
) -> tuple[Iterator[Generation], Tensor]:
    """Pieces of like rows, each without the padding it can do without, and where each row of the
    generation stands among theirs.

    Models that count columns as positions need all of them. `shared`: rows of one prompt, side by
    side in the generation, stay so.
    """
    lengths_B = generation.prompts.mask_BP.sum(1)
    if not shared:
        lengths_B = lengths_B + generation.response_mask_BR.sum(1)
    order_B = lengths_B.argsort(stable=True)
    if order_B.device.type == "cpu" and not shared:
        size = min(size, ROWS_ON_CPU)
    pieces = (generation.rows(index) for index in order_B.split(size))
    cut = (narrowed(piece) if positions == "real" else piece for piece in pieces)
    return cut, order_B.argsort()


def _in_pieces(
    fn: Callable[[Generation], Tensor],
    generation: Generation,
    size: int,
    positions: str,
    shared: bool = False,
) -> Tensor:
    """[B, R]: `fn` of the generation, piece by piece."""
    width = generation.tokens_BR.shape[1]
    pieces, places_B = _pieces(generation, size, positions, shared)
    found = [fn(piece) for piece in pieces]
    wide = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in found]
    return torch.cat(wide)[places_B]


def narrowed(generation: Generation) -> Generation:
    """Without the columns that no row needs, but for a round width."""
    generation = trimmed(generation)
    prompts = generation.prompts
    start = spare_columns(prompts.mask_BP, generation.tokens_BR.shape[1])
    cut = replace(
        prompts, tokens_BP=prompts.tokens_BP[:, start:], mask_BP=prompts.mask_BP[:, start:]
    )
    return replace(generation, prompts=cut)


def spare_columns(mask_BP: Tensor, more: int) -> int:
    """Columns on the left that are padding in every row; with `more` columns the rest is round."""
    empty = int((~mask_BP).all(0).long().cumprod(0).sum())
    needed = mask_BP.shape[1] - empty + more
    return max(0, empty - (-needed % WIDTH_MULTIPLE))


@torch.no_grad()
def logprobs_of(
    model: torch.nn.Module,
    generation: Generation,
    temperature: float | None,
    shared: bool = False,
) -> Tensor:
    """[B, R] tempered log-probs of the sampled tokens by a full forward (details E5, E6).

    `shared`: each distinct prompt is read once.
    """
    tokens_BT, mask_BT = generation.sequences()
    width = generation.tokens_BR.shape[1]
    read = shared_response_logprobs if shared else response_logprobs
    logprobs_BR, _ = read(model, tokens_BT, mask_BT, width, temperature=temperature)
    return logprobs_BR.masked_fill(~generation.response_mask_BR, 0.0)


@torch.no_grad()
def rm_scores(reward_model: ScalarModel, generation: Generation, shared: bool = False) -> Tensor:
    """[B] reward read at each response's last real token (details D4, E7).

    `shared`: each distinct prompt is read once.
    """
    tokens_BT, mask_BT = generation.sequences()
    if not shared:
        return reward_model.scores(tokens_BT, mask_BT)
    response_BT = mask_BT.clone()
    response_BT[:, : -generation.tokens_BR.shape[1]] = False
    return reward_model.shared_scores(sharing(tokens_BT, mask_BT, response_BT))


def scored(
    score: ScoreFn, generation: Generation, *, size: int, positions: str, shared: bool = False
) -> Scores:
    """`score` of the generation, in pieces of at most `size` rows; `shared` as in `collect`."""
    pieces, places_B = _pieces(generation, size, positions, shared)
    parts = [score(piece) for piece in pieces]
    scores_B = torch.cat([part.scores_B for part in parts])[places_B]
    return Scores(scores_B, torch.cat([part.failed_B for part in parts])[places_B])


def generate(
    engine: Engine, prompts: PromptBatch, sampling: SamplingConfig, noise_BR: Tensor, *, size: int
) -> Generation:
    """`engine.generate` over pieces of at most `size` rows of similar length, order kept."""
    order = torch.argsort(prompts.mask_BP.sum(1), stable=True)
    pieces = [
        engine.generate(prompts.rows(index), sampling, noise_BR[index])
        for index in order.split(size)
    ]
    back = torch.argsort(order)
    return Generation(
        prompts=prompts,
        tokens_BR=torch.cat([p.tokens_BR for p in pieces])[back],
        response_mask_BR=torch.cat([p.response_mask_BR for p in pieces])[back],
        logprobs_BR=torch.cat([p.logprobs_BR for p in pieces])[back],
        policy_version=pieces[0].policy_version,
    )


def trimmed(generation: Generation) -> Generation:
    """Without the response columns no row needs; the slot after the last EOS stays (Detail F1)."""
    width = min(generation.tokens_BR.shape[1], int(generation.response_mask_BR.sum(1).max()) + 1)
    return replace(
        generation,
        tokens_BR=generation.tokens_BR[:, :width],
        response_mask_BR=generation.response_mask_BR[:, :width],
        logprobs_BR=generation.logprobs_BR[:, :width],
    )


def untruncated(generation: Generation) -> Generation:
    """What follows EOS counts too (the alternative to Detail E7)."""
    return replace(generation, response_mask_BR=torch.ones_like(generation.response_mask_BR))


def collect(
    engine: Engine,
    prompts: PromptBatch,
    sampling: SamplingConfig,
    noise_BR: Tensor,
    *,
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    score: ScoreFn,
    eos_id: int,
    size: int,
    old_logprobs: str = "trainer",
    tempered: Collection[str] = ("old", "reference"),
    stop_token: str = "eos",
    positions: str = "real",
    shared: bool = False,
    on_sampled: Callable[[], None] = lambda: None,
) -> Rollout:
    """Sample one response per prompt row and score it.

    Detail E6: old log-probs come from a forward of the training path (`trainer`) or are the
    sampler's. Detail E5: both they and the reference's are tempered, unless left out of `tempered`.
    Detail E7: `stop_token="none"` scores and keeps what follows EOS. `positions` is how the models
    count (Detail B6). `shared`: the responses to a prompt, which stand side by side, share one
    reading of it. `on_sampled` is called between sampling and scoring.
    """
    generation = generate(engine, prompts, sampling, noise_BR, size=size)
    on_sampled()
    generation = trimmed(generation) if stop_token == "eos" else untruncated(generation)
    heat = {
        name: sampling.temperature if name in tempered else None for name in ("old", "reference")
    }
    pieces = partial(
        _in_pieces, generation=generation, size=size, positions=positions, shared=shared
    )
    if old_logprobs == "trainer":
        old_BR = pieces(lambda g: logprobs_of(policy, g, heat["old"], shared))
    else:
        old_BR = generation.logprobs_BR.masked_fill(~generation.response_mask_BR, 0.0)
    ref_BR = pieces(lambda g: logprobs_of(reference, g, heat["reference"], shared))
    scores_B, failed_B = scored(score, generation, size=size, positions=positions, shared=shared)
    return Rollout(
        generation=generation,
        logprobs_BR=old_BR,
        ref_logprobs_BR=ref_BR,
        scores_B=scores_B,
        failed_B=failed_B,
        has_eos_B=contains_eos(generation.tokens_BR, eos_id),
    )


def with_logprobs(
    rollout: Rollout,
    policy: torch.nn.Module,
    *,
    temperature: float | None,
    size: int,
    positions: str,
    shared: bool = False,
) -> Rollout:
    """The rollout with the log-probs that `policy` has now, by a forward of the training path."""

    def now(piece: Generation) -> Tensor:
        return logprobs_of(policy, piece, temperature, shared)

    found_BR = _in_pieces(now, rollout.generation, size, positions, shared)
    return replace(rollout, logprobs_BR=found_BR)


@torch.no_grad()
def add_values(
    rollout: Rollout, critic: Critic, *, size: int, positions: str = "real"
) -> ValuedRollout:
    """The critic's value of every state, on the untruncated text (details E3, F1)."""
    generation = rollout.generation
    mask_BR = value_mask_BR(generation.response_mask_BR)

    def values(piece: Generation) -> Tensor:
        return critic.response_values(*piece.sequences(), piece.tokens_BR.shape[1])

    values_BR = _in_pieces(values, generation, size, positions).masked_fill(~mask_BR, 0.0)
    return ValuedRollout(rollout=rollout, values_BR=values_BR, value_mask_BR=mask_BR)


def joined(parts: Sequence[Rolled], places: Sequence[int], *, pad_id: int) -> Rolled:
    """The rows of all parts, each at its place, prompts and responses padded to one width."""
    widths = [part.rollout.generation for part in parts]
    prompt = max(g.prompts.tokens_BP.shape[1] for g in widths)
    response = max(g.tokens_BR.shape[1] for g in widths)
    index = torch.tensor(places).argsort()

    def wide(x: Tensor, name: str) -> Tensor:
        fill = pad_id if name.startswith("tokens") else 0
        if name.endswith("_BP"):
            return torch.nn.functional.pad(x, (prompt - x.shape[1], 0), value=fill)
        if name.endswith("_BR"):
            return torch.nn.functional.pad(x, (0, response - x.shape[1]), value=fill)
        return x

    return type(parts[0]).cat(parts, wide).rows(index)


def texts(generation: Generation, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Each response as text, cut at its first EOS (Detail E7)."""
    rows = zip(
        generation.tokens_BR.tolist(), generation.response_mask_BR.sum(1).tolist(), strict=True
    )
    return [decode(tokens[:length]) for tokens, length in rows]
