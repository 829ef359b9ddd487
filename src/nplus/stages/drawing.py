"""Draw responses from a policy for a list of prompts: shared by sampling, copy test and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from nplus.config import SamplingConfig
from nplus.data.collate import prompt_batch
from nplus.ops.responses import contains_eos
from nplus.records import Demonstration
from nplus.rollout import generate, texts
from nplus.seeding import uniform_grid
from nplus.stages.context import Context, Ticker


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response: `tokens` are its ids through EOS."""

    text: str
    tokens: tuple[int, ...]
    has_eos: bool


def noise(
    seed: int, name: str, keys: Sequence[str], sampling: SamplingConfig, sample: int = 0
) -> torch.Tensor:
    """[B, R] uniforms named by (name, prompt key, sample): the same whatever the batch."""
    grid = uniform_grid(seed, [(name, key, sample) for key in keys], sampling.response_length)
    return torch.from_numpy(grid)


def draw(
    model: PreTrainedModel,
    prompts: Sequence[Demonstration],
    sampling: SamplingConfig,
    ctx: Context,
    *,
    name: str,
    size: int,
    ticker: Ticker | None = None,
) -> list[Drawn]:
    """One response per prompt, in order. `name` names the noise, with each prompt's id."""
    engine = ctx.engine(model)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].query))
    drawn: dict[int, Drawn] = {}
    for start in range(0, len(prompts), size):
        index = by_length[start : start + size]
        batch = prompt_batch(ctx.codec, [prompts[i] for i in index]).to(ctx.device)
        noise_BR = noise(ctx.seed, name, batch.keys, sampling).to(ctx.device)
        generation = generate(engine, batch, sampling, noise_BR, size=size)
        lengths = generation.response_mask_BR.sum(1).tolist()
        rows = zip(
            index,
            texts(generation, ctx.codec.decode_response),
            generation.tokens_BR.tolist(),
            lengths,
            contains_eos(generation.tokens_BR, ctx.codec.eos_id).tolist(),
            strict=True,
        )
        for i, text, tokens, length, ended in rows:
            drawn[i] = Drawn(text, tuple(tokens[:length]), ended)
        if ticker is not None:
            ticker.tick(len(index))
    return [drawn[i] for i in range(len(prompts))]
