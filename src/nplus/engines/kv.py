"""The in-process engine: the Hugging Face module itself with a key-value cache, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nplus.batches import Generation, PromptBatch
from nplus.config.sampling import SamplingConfig
from nplus.models.lm import position_ids, takes_logits_to_keep
from nplus.ops.logprobs import temper
from nplus.ops.responses import response_mask_BR

COMPACT_EVERY = 4
"""Steps between two looks at which rows have finished; a look waits for the device."""
COMPACT_BELOW = 0.8
"""Rows are dropped when at most this share of the batch is unfinished."""


def sample_tokens(
    logits_BV: Tensor, noise_B: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """`tokens_B, logprobs_B` by inverse CDF: the first id whose cumulative mass exceeds noise.

    Log-probs are float32 and tempered (Detail E5). The cumulative sum runs in float64: float32
    loses the tail of a large vocabulary. Never an id of probability 0, also for noise 0 or 1.
    """
    scaled_BV = temper(logits_BV, temperature)
    cdf_BV = scaled_BV.double().softmax(-1).cumsum(-1)
    total_B1 = cdf_BV[:, -1:]
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    level_B1 = torch.minimum(noise_B.double().unsqueeze(-1) * total_B1, below_B1)
    # NaN logits exceed nothing: the clamp keeps the index valid, the log-prob shows the NaN.
    tokens_B1 = torch.searchsorted(cdf_BV, level_B1, right=True).clamp(max=cdf_BV.shape[1] - 1)
    logprobs_B1 = scaled_BV.gather(-1, tokens_B1) - scaled_BV.logsumexp(-1, keepdim=True)
    return tokens_B1.squeeze(-1), logprobs_B1.squeeze(-1)


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


@dataclass(slots=True)
class _Live:
    """The rows still being sampled: where they came from, their cache, mask and next position."""

    rows_b: Tensor
    finished_b: Tensor
    mask_bT: Tensor
    position_b: Tensor
    noise_bR: Tensor
    cache: DynamicCache

    def keep(self, index: Tensor) -> None:
        for name in ("rows_b", "finished_b", "mask_bT", "position_b", "noise_bR"):
            setattr(self, name, getattr(self, name)[index])
        self.cache.batch_select_indices(index)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    # Gradient checkpointing, which switches the cache off, is active in training mode only.
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class KVEngine:
    """Samples from `model` as it is at the time of the call; `load` copies weights into it."""

    def __init__(
        self, model: PreTrainedModel, *, eos_id: int, pad_id: int, version: int = 0
    ) -> None:
        self.model = model
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.version = version
        self._head = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}

    def load(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Copy `state_dict` into the model; raises RuntimeError when names or shapes differ."""
        self.model.load_state_dict(state_dict, strict=True)
        self.version = version

    def generate(
        self, prompts: PromptBatch, sampling: SamplingConfig, noise_BR: Tensor
    ) -> Generation:
        """See `Engine.generate`; the result lies on the model's device.

        Raises ValueError when the noise does not fit, FloatingPointError for NaN logits.
        """
        shape = (len(prompts), sampling.response_length)
        if tuple(noise_BR.shape) != shape:
            raise ValueError(f"noise_BR has shape {tuple(noise_BR.shape)}, expected {shape}")
        device = self.model.device
        prompts = prompts.to(device)
        # Made outside inference mode: autograd refuses to save inference tensors.
        tokens_BR = torch.full(shape, self.pad_id, dtype=torch.int64, device=device)
        logprobs_BR = torch.zeros(shape, dtype=torch.float32, device=device)
        if len(prompts):
            with _evaluating(self.model):
                self._fill(prompts, sampling, noise_BR.to(device), tokens_BR, logprobs_BR)
        if bool(logprobs_BR.isnan().any()):
            raise FloatingPointError("the model gives NaN logits: look for NaN in its weights")
        mask_BR = response_mask_BR(tokens_BR, self.eos_id)
        if self.pad_id == self.eos_id:
            mask_BR &= tokens_BR != self.pad_id  # Detail A7: a PAD that is EOS masks every EOS
        if sampling.stop == "eos":
            tokens_BR = tokens_BR.masked_fill(~mask_BR, self.pad_id)
            logprobs_BR = logprobs_BR.masked_fill(~mask_BR, 0.0)
        return Generation(prompts, tokens_BR, mask_BR, logprobs_BR, self.version)

    def _fill(
        self,
        prompts: PromptBatch,
        sampling: SamplingConfig,
        noise_BR: Tensor,
        tokens_BR: Tensor,
        logprobs_BR: Tensor,
    ) -> None:
        live, logits_bV = self._prefill(prompts, sampling.response_length, noise_BR)
        for r in range(sampling.response_length):
            tokens_b, logprobs_b = sample_tokens(
                logits_bV, live.noise_bR[:, r], temperature=sampling.temperature
            )
            tokens_BR[live.rows_b, r] = tokens_b
            logprobs_BR[live.rows_b, r] = logprobs_b
            if r + 1 == sampling.response_length:
                return
            if sampling.stop == "eos":
                live.finished_b |= tokens_b == self.eos_id
                if (r + 1) % COMPACT_EVERY == 0:
                    going = (~live.finished_b).nonzero().flatten()
                    if not len(going):
                        return
                    if len(going) <= COMPACT_BELOW * len(tokens_b):
                        live.keep(going)
                        tokens_b = tokens_b[going]
            logits_bV = self._step(live, tokens_b)

    def _prefill(self, prompts: PromptBatch, room: int, noise_BR: Tensor) -> tuple[_Live, Tensor]:
        # Padding common to all rows is cut: it would be computed, cached and attended to in vain.
        start = int(prompts.mask_BP.any(0).int().argmax())
        mask_BP = prompts.mask_BP[:, start:]
        rows, width = mask_BP.shape
        cache = _cache(self.model, width + room)
        logits_BV = self._forward(
            prompts.tokens_BP[:, start:].masked_fill(~mask_BP, 0),
            mask_BP,
            position_ids(mask_BP),
            cache,
        )
        mask_BT = torch.cat([mask_BP, mask_BP.new_ones(rows, room)], dim=1)
        index_B = torch.arange(rows, device=mask_BP.device)
        finished_B = torch.zeros(rows, dtype=torch.bool, device=mask_BP.device)
        live = _Live(index_B, finished_B, mask_BT, mask_BP.sum(-1), noise_BR, cache)
        return live, logits_BV

    def _step(self, live: _Live, tokens_b: Tensor) -> Tensor:
        seen = live.cache.get_seq_length() + 1
        logits_bV = self._forward(
            tokens_b.unsqueeze(-1),
            live.mask_bT[:, :seen],
            live.position_b.unsqueeze(-1),
            live.cache,
        )
        live.position_b = live.position_b + 1
        return logits_bV

    def _forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._head,
        )
        return out.logits[:, -1]
