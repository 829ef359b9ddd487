"""One forward over the prompts and one for each token after: by the Hugging Face module itself."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nplus.models.lm import position_ids, takes_logits_to_keep


class Steps(Protocol):
    """A batch that grows by one token a step; its keys and values stay with it.

    `prefill` comes first and once. Prompts are left-padded; `room` is how many steps may follow.
    """

    compact_below: float
    """Rows are dropped when at most this share of the batch is unfinished."""
    look_every: int
    """Steps between two looks at which rows have finished; a look waits for the device."""

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor, room: int) -> Tensor:
        """[B, V] logits after the prompts."""
        ...

    def step(self, tokens_b: Tensor) -> Tensor:
        """[b, V] logits after one more token of each row."""
        ...

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        ...


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for every step from the start: no concatenation per token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = tuple(
                x.new_empty(*x.shape[:2], self.capacity, x.shape[3])
                for x in (key_states, value_states)
            )
        stop = start + key_states.shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:stop] = new
        self._show(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        used = self.get_seq_length()
        self.room = tuple(room[indices] for room in self.room)
        self._show(used)

    def _show(self, used: int) -> None:
        self.keys, self.values = (room[:, :, :used] for room in self.room)


def _cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    # Sliding-window layers keep the bookkeeping of transformers.
    cache.layers = [
        _RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class PlainSteps:
    """`Steps` by the module's own forward and transformers' cache: any causal model."""

    compact_below = 0.8
    look_every = 4

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._head = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor, room: int) -> Tensor:
        rows, width = mask_BP.shape
        self.cache = _cache(self.model, width + room)
        self.mask_bT = torch.cat([mask_BP, mask_BP.new_ones(rows, room)], dim=1)
        self.position_b = mask_BP.sum(-1)
        return self._forward(tokens_BP.masked_fill(~mask_BP, 0), mask_BP, position_ids(mask_BP))

    def step(self, tokens_b: Tensor) -> Tensor:
        seen = self.cache.get_seq_length() + 1
        logits_bV = self._forward(
            tokens_b.unsqueeze(-1), self.mask_bT[:, :seen], self.position_b.unsqueeze(-1)
        )
        self.position_b = self.position_b + 1
        return logits_bV

    def keep(self, index: Tensor) -> None:
        self.mask_bT, self.position_b = self.mask_bT[index], self.position_b[index]
        self.cache.batch_select_indices(index)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **self._head,
        )
        logits_bV: Tensor = out.logits[:, -1]
        return logits_bV
