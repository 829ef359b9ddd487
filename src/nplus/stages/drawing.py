"""Draw responses from a policy for a list of prompts: shared by sampling, copy test and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.config import SamplingConfig
from nplus.data.collate import prompt_batch
from nplus.engines.halves import halved
from nplus.engines.protocol import Engine
from nplus.ops.responses import contains_eos, response_mask_BR
from nplus.records import Demonstration
from nplus.rollout import generate, texts
from nplus.seeding import epoch_order, take, uniform_grid
from nplus.stages.compute import in_halves
from nplus.stages.context import Context, Ticker

DRAWN_ALIKE = 3
"""A sampled token is a third of the work of a trained one."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response: `tokens` are its ids through EOS."""

    text: str
    tokens: tuple[int, ...]
    has_eos: bool


def noise(
    seed: int,
    name: str,
    keys: Sequence[str],
    sampling: SamplingConfig,
    samples: Sequence[int] = (0,),
) -> Tensor:
    """[B, R] uniforms named by (name, prompt key, sample number): the same whatever the batch.

    `B` is keys times samples, the samples of a key side by side.
    """
    names = [(name, key, sample) for key in keys for sample in samples]
    return torch.from_numpy(uniform_grid(seed, names, sampling.response_length))


def prompts_at(
    posts: Sequence[Demonstration], count: int, step: int, *, seed: int, name: str, reshuffle: bool
) -> list[Demonstration]:
    """The `count` prompts of update `step`: passes over `posts`, reshuffled each time or all in the
    first one's order (Detail E2). `name` names the order."""
    start = step * count
    if reshuffle:
        return [posts[i] for i in take(seed, name, len(posts), start, count)]
    order = epoch_order(seed, name, 0, len(posts))
    return [posts[order[(start + i) % len(posts)]] for i in range(count)]


def shared_out(prompts: Sequence[Demonstration], hands: int) -> list[list[int]]:
    """Which prompts each of `hands` draws for: as many, and as long on the whole."""
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].query))
    return [by_length[hand::hands] for hand in range(hands)]


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
    """One response per prompt, in order: the first of `draw_several`."""
    found = draw_several(
        model, prompts, sampling, ctx, name=name, size=size, samples=(0,), ticker=ticker
    )
    return [drawn for (drawn,) in found]


def draw_several(
    model: PreTrainedModel,
    prompts: Sequence[Demonstration],
    sampling: SamplingConfig,
    ctx: Context,
    *,
    name: str,
    size: int,
    samples: Sequence[int],
    ticker: Ticker | None = None,
) -> list[list[Drawn]]:
    """Per prompt, in order, the responses with these numbers; at most `size` are drawn at once.

    `name` names the noise, with each prompt's id and the number. Several processes share the
    prompts out, and each returns all responses.
    """
    ranks = ctx.topology
    places = shared_out(prompts, ranks.world)
    own = [prompts[i] for i in places[ranks.rank]]
    work = float(model.num_parameters() * len(own) * len(samples) * sampling.response_length)
    engine = ctx.engine(model)
    shared = in_halves(ctx.config.compute, ctx.device, ctx.config.model, work / DRAWN_ALIKE)
    with halved(engine) if shared else nullcontext(engine) as used:
        found = _draw(used, own, sampling, ctx, name, size, samples, ticker)
    drawn: dict[int, list[Drawn]] = {}
    for index, part in zip(places, ranks.collectives.gather(found), strict=True):
        drawn |= dict(zip(index, part, strict=True))
    return [drawn[i] for i in range(len(prompts))]


def _draw(
    engine: Engine,
    prompts: Sequence[Demonstration],
    sampling: SamplingConfig,
    ctx: Context,
    name: str,
    size: int,
    samples: Sequence[int],
    ticker: Ticker | None,
) -> list[list[Drawn]]:
    (by_length,) = shared_out(prompts, 1)
    drawn: dict[int, list[Drawn]] = {}
    step = max(1, size // len(samples))
    for start in range(0, len(prompts), step):
        index = by_length[start : start + step]
        picked = [prompts[i] for i in index]
        # The samples of a prompt stand side by side: the engine reads it once.
        batch = prompt_batch(ctx.codec, [post for post in picked for _ in samples]).to(ctx.device)
        keys = [post.id for post in picked]
        noise_BR = noise(ctx.seed, name, keys, sampling, samples).to(ctx.device)
        generation = generate(engine, batch, sampling, noise_BR, size=size)
        # Not the generation's own mask, which leaves EOS out where PAD is EOS (Detail A7).
        lengths = response_mask_BR(generation.tokens_BR, ctx.codec.eos_id).sum(1).tolist()
        rows = zip(
            [i for i in index for _ in samples],
            texts(generation, ctx.codec.decode_response),
            generation.tokens_BR.tolist(),
            lengths,
            contains_eos(generation.tokens_BR, ctx.codec.eos_id).tolist(),
            strict=True,
        )
        for i, text, tokens, length, ended in rows:
            drawn.setdefault(i, []).append(Drawn(text, tuple(tokens[:length]), ended))
        if ticker is not None:
            ticker.tick(len(index) * len(samples))
    return [drawn[i] for i in range(len(prompts))]


def sequences(
    prompts: Sequence[Demonstration], drawn: Sequence[Drawn], ctx: Context
) -> tuple[Tensor, Tensor, Tensor]:
    """`tokens_BT, mask_BT, response_mask_BR`: queries left-padded, responses through EOS right."""
    batch = prompt_batch(ctx.codec, prompts)
    width = max(len(row.tokens) for row in drawn)
    tokens_BR = torch.full((len(drawn), width), ctx.codec.pad_id)
    mask_BR = torch.zeros((len(drawn), width), dtype=torch.bool)
    for b, row in enumerate(drawn):
        tokens_BR[b, : len(row.tokens)] = torch.tensor(row.tokens)
        mask_BR[b, : len(row.tokens)] = True
    tokens_BT = torch.cat([batch.tokens_BP, tokens_BR], dim=1)
    mask_BT = torch.cat([batch.mask_BP, mask_BR], dim=1)
    device = ctx.device
    return tokens_BT.to(device), mask_BT.to(device), mask_BR.to(device)
