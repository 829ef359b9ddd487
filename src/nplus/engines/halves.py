"""Two processes that sample, each for half of the prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nplus.batches import Generation, PromptBatch
from nplus.config.sampling import SamplingConfig
from nplus.distributed.partner import Partner
from nplus.engines.kv import KVEngine
from nplus.engines.protocol import Engine


@contextmanager
def halved(engine: KVEngine) -> Iterator[Engine]:
    """`engine` with another process beside it, while the weights stay as they are now."""
    partner = Partner({"generate": engine.generate})
    try:
        yield _Halves(engine, partner)
    finally:
        partner.close()


class _Halves:
    def __init__(self, engine: KVEngine, partner: Partner) -> None:
        self.engine, self.partner = engine, partner

    def generate(
        self, prompts: PromptBatch, sampling: SamplingConfig, noise_BR: Tensor
    ) -> Generation:
        """See `Engine.generate`."""
        own, other = halves(prompts)
        if not len(other):
            return self.engine.generate(prompts, sampling, noise_BR)
        parts = self.partner.beside(
            lambda: self.engine.generate(prompts.rows(own), sampling, noise_BR[own]),
            "generate",
            prompts.rows(other),
            sampling,
            noise_BR[other],
        )
        back = torch.cat([own, other]).argsort()
        return Generation.cat(parts, lambda x, _: x).rows(back)


def halves(prompts: PromptBatch) -> tuple[Tensor, Tensor]:
    """Which rows each of two takes: as long on the whole, those of one prompt together."""
    shown = prompts.tokens_BP.masked_fill(~prompts.mask_BP, -1)
    of: dict[bytes, list[int]] = {}
    for at, row in enumerate(shown.cpu().numpy()):
        of.setdefault(row.tobytes(), []).append(at)
    lengths = prompts.mask_BP.sum(1).tolist()
    groups = sorted(of.values(), key=lambda group: (lengths[group[0]], group[0]))
    taken: tuple[list[int], list[int]] = ([], [])
    for group in reversed(groups):  # the longest to who has fewer rows
        taken[len(taken[1]) < len(taken[0])].extend(group)
    return torch.tensor(sorted(taken[0])), torch.tensor(sorted(taken[1]))
