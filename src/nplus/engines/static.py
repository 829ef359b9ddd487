"""A decoding step whose shapes never change, so that CUDA can record it once and replay it.

A token of a small batch is hundreds of kernels of a few microseconds each, and starting them from
Python takes longer than they do. A recorded step is started as one. For that every step attends to
the whole cache, with what is not there yet hidden, and where it writes is a tensor, not a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nplus.engines.families import Network
from nplus.engines.lean import LeanSteps

WARM_UP = 2
"""Steps before a recording: libraries allocate and choose kernels in the first ones."""


class StaticSteps(LeanSteps):
    """`Steps` on a `Network`, as `LeanSteps`; also on a CPU, where it gains nothing."""

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor, room: int) -> Tensor:
        logits_BV = super().prefill(tokens_BP, mask_BP, room)
        rows, width = mask_BP.shape
        self.cache[..., width:] = 0.0  # what is hidden is still multiplied, and may have been NaN
        lowest = torch.finfo(self.cache.dtype).min
        self.bias_b1S = self.cache.new_full((rows, 1, width + room), lowest)
        self.bias_b1S[:, 0, :width].masked_fill_(mask_BP, 0.0)
        self.at_1 = torch.tensor([width], device=mask_BP.device)
        return logits_BV

    def step(self, tokens_b: Tensor) -> Tensor:
        assert self.bias_b1S is not None
        self.bias_b1S.index_fill_(2, self.at_1, 0.0)
        positions_b1 = self.position_b[:, None]
        states = self._embedded(tokens_b[:, None], positions_b1)
        turn = self._turn(states, positions_b1)
        last = self.cache.shape[-1] - 1  # the step's own column is `at`; all are looked at
        for layer, cache in zip(self.network.layers, self.cache, strict=True):
            states = self._layer(layer, cache, states, turn, last, None)
        self.at_1 += 1
        self.position_b += 1
        return self._logits(states[:, 0])

    def _store(self, cache: Tensor, new: Tensor, start: int) -> None:
        if new.shape[-1] == 1 and hasattr(self, "at_1"):
            cache.index_copy_(-1, self.at_1, new)
        else:
            super()._store(cache, new, start)


class GraphSteps(StaticSteps):
    """`StaticSteps` on CUDA, each step a replay of the first; recorded anew when rows leave."""

    compact_below = 0.5
    look_every = 8

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, tokens_b: Tensor) -> Tensor:
        if self.graph is None:
            self._record(tokens_b)
        assert self.graph is not None
        self.tokens_b.copy_(tokens_b)
        self.graph.replay()
        return self.logits_bV

    def keep(self, index: Tensor) -> None:
        self.graph = None
        super().keep(index)

    def _record(self, tokens_b: Tensor) -> None:
        """What the warm-up moves is put back; its columns are written again."""
        assert self.bias_b1S is not None
        self.tokens_b = tokens_b.clone()
        moved = (self.bias_b1S, self.at_1, self.position_b)
        before = [x.clone() for x in moved]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                super().step(self.tokens_b)
                for x, was in zip(moved, before, strict=True):
                    x.copy_(was)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_bV = super().step(self.tokens_b)
