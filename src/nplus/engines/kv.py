"""The in-process engine: the trained module itself with a key-value cache, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.batches import Generation, PromptBatch
from nplus.config.sampling import SamplingConfig
from nplus.engines.lean import LeanSteps, lean_network
from nplus.engines.static import GraphSteps
from nplus.engines.steps import PlainSteps, Steps
from nplus.ops.logprobs import temper
from nplus.ops.responses import response_mask_BR

Path = Literal["auto", "plain"]


def sample_tokens(
    logits_BV: Tensor, noise_B: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """`tokens_B, logprobs_B` by inverse CDF: the first id whose cumulative mass exceeds noise.

    Log-probs are float32 and tempered (Detail E5). The cumulative sum runs in float64: float32
    loses the tail of a large vocabulary. Never an id of probability 0, also for noise 0 or 1.
    """
    scaled_BV = temper(logits_BV, temperature)
    below_BV = scaled_BV - scaled_BV.amax(-1, keepdim=True)
    cdf_BV = below_BV.exp().cumsum(-1, dtype=torch.float64)
    total_B1 = cdf_BV[:, -1:]
    reach_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    level_B1 = torch.minimum(noise_B.double().unsqueeze(-1) * total_B1, reach_B1)
    # NaN logits exceed nothing: the clamp keeps the index valid, the log-prob shows the NaN.
    tokens_B1 = torch.searchsorted(cdf_BV, level_B1, right=True).clamp(max=cdf_BV.shape[1] - 1)
    logprobs_B1 = (below_BV.gather(-1, tokens_B1) - total_B1.log()).to(scaled_BV.dtype)
    return tokens_B1.squeeze(-1), logprobs_B1.squeeze(-1)


@dataclass(slots=True)
class _Live:
    """The rows still being sampled: where they came from, and what goes on for them."""

    rows_b: Tensor
    finished_b: Tensor
    noise_bR: Tensor
    steps: Steps

    def keep(self, index: Tensor) -> None:
        for name in ("rows_b", "finished_b", "noise_bR"):
            setattr(self, name, getattr(self, name)[index])
        self.steps.keep(index)


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
        self,
        model: PreTrainedModel,
        *,
        eos_id: int,
        pad_id: int,
        version: int = 0,
        path: Path = "auto",
        make_steps: Callable[[], Steps] | None = None,
    ) -> None:
        """`path="plain"` takes the module's own forward for every token, `auto` the lean one where
        it knows the architecture and answers the same; `make_steps` takes the place of both."""
        self.model = model
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.version = version
        self.path = path
        self.make_steps = make_steps

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
            logprobs_BR[live.rows_b, r] = logprobs_b.to(logprobs_BR.dtype)
            if r + 1 == sampling.response_length:
                return
            if sampling.stop == "eos":
                live.finished_b |= tokens_b == self.eos_id
                if (r + 1) % live.steps.look_every == 0:
                    going = (~live.finished_b).nonzero().flatten()
                    if not len(going):
                        return
                    if len(going) <= live.steps.compact_below * len(tokens_b):
                        live.keep(going)
                        tokens_b = tokens_b[going]
            logits_bV = live.steps.step(tokens_b)

    def _prefill(self, prompts: PromptBatch, room: int, noise_BR: Tensor) -> tuple[_Live, Tensor]:
        # Padding common to all rows is cut: it would be computed, cached and attended to in vain.
        start = int(prompts.mask_BP.any(0).int().argmax())
        mask_BP = prompts.mask_BP[:, start:]
        rows = len(mask_BP)
        steps = self._steps() if self.make_steps is None else self.make_steps()
        tokens_BP = prompts.tokens_BP[:, start:]
        first_U, of_B = _distinct(tokens_BP.masked_fill(~mask_BP, -1))
        if len(first_U) == rows:
            logits_BV = steps.prefill(tokens_BP, mask_BP, room)
        else:  # several samples of a prompt read it once
            logits_BV = steps.prefill(tokens_BP[first_U], mask_BP[first_U], room)[of_B]
            steps.keep(of_B)
        index_B = torch.arange(rows, device=mask_BP.device)
        finished_B = torch.zeros(rows, dtype=torch.bool, device=mask_BP.device)
        return _Live(index_B, finished_B, noise_BR, steps), logits_BV

    def _steps(self) -> Steps:
        network = lean_network(self.model) if self.path == "auto" else None
        if network is None:
            return PlainSteps(self.model)
        return GraphSteps(network) if self.model.device.type == "cuda" else LeanSteps(network)


def _distinct(rows_BP: Tensor) -> tuple[Tensor, Tensor]:
    """`first_U, of_B`: where each distinct row stands first, and for each row which of them it
    is."""
    seen: dict[bytes, int] = {}
    of, first = [], []
    for b, row in enumerate(rows_BP.cpu().numpy()):
        found = seen.setdefault(row.tobytes(), len(seen))
        if found == len(first):
            first.append(b)
        of.append(found)
    device = rows_BP.device
    return torch.tensor(first, device=device), torch.tensor(of, device=device)
