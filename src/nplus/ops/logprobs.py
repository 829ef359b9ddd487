"""Log-probabilities and entropy of tempered distributions, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TEMPERATURE_EPS = 1e-7
"""Detail E5: added to every temperature, in sampling and in every log-prob."""


def temper(logits: Tensor, temperature: float | None) -> Tensor:
    """float32 `logits / (temperature + 1e-7)`; None leaves them unscaled (supervised, DPO).

    float64 stays float64.

    Detail E5: the sampler, the reference and the training forward divide by the same number;
    where one of the three does not, the first ratio is not 1.
    Detail B4: log-softmax runs in float32 whatever the dtype of the model.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature is None else logits / (temperature + TEMPERATURE_EPS)


def gather_logprobs(
    logits_BRV: Tensor, tokens_BR: Tensor, *, temperature: float | None = None
) -> Tensor:
    """[B, R] float32: log-probability of each token under the logits of the same slot.

    Aligned, not shifted: `logits_BRV[:, r]` is what predicts `tokens_BR[:, r]` (Detail E6). Token
    ids lie in 0..V-1, also in masked slots. Cross-entropy's fused kernels pass over [B, R, V]
    about half as often, forward and back, as gathering after a log-sum-exp.
    """
    scaled_BRV = temper(logits_BRV, temperature)
    nll = F.cross_entropy(scaled_BRV.flatten(0, -2), tokens_BR.flatten(), reduction="none")
    return -nll.view(tokens_BR.shape)


def head_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    tokens_N: Tensor,
    *,
    temperature: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`logprobs_N, entropy_N`, float32: what `gather_logprobs` and `entropy_from_logits` give for
    the logits `hidden @ weight.T + bias`, which are never all there at once.

    They are made some rows at a time, once forward and once backward, while they are in the
    processor's cache; what autograd keeps has the size of `hidden_ND`. Matrix products run in
    autocast's type where it is on, all else in float32. The entropy carries no gradient.
    """
    device = hidden_ND.device.type
    dtype = hidden_ND.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    scale = 1.0 if temperature is None else 1.0 / (temperature + TEMPERATURE_EPS)
    found: tuple[Tensor, Tensor] = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, tokens_N, scale, dtype
    )
    return found


def _rows_at_a_time(vocabulary: int, device: torch.device) -> int:
    """As many rows of logits as a MiB of cache holds; on a GPU enough to fill it."""
    return max(32, (1 << 18) // vocabulary) if device.type == "cpu" else 2_048


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        tokens_N: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=wide)
        entropy_N = torch.empty_like(logprobs_N)
        total_N = torch.empty_like(logprobs_N)
        ctx.scale, ctx.dtype = scale, dtype
        for rows, scaled_nV, _ in _HeadLogprobs.pieces(ctx, hidden_ND, weight_VD, bias_V):
            chosen_n = scaled_nV.gather(1, tokens_N[rows, None])[:, 0]
            logp_nV = scaled_nV.log_softmax(-1)
            logprobs_N[rows] = logp_nV.gather(1, tokens_N[rows, None])[:, 0]
            total_N[rows] = chosen_n - logprobs_N[rows]
            p_nV = logp_nV.exp()
            if bias_V is not None:  # which may exclude ids: 0 * -inf is NaN
                logp_nV = logp_nV.masked_fill_(p_nV == 0, 0.0)
            entropy_N[rows] = -torch.linalg.vecdot(p_nV, logp_nV)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, tokens_N, total_N)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, tokens_N, total_N = ctx.saved_tensors
        grad_ND = torch.empty_like(hidden_ND)
        # Many pieces add up: in the weight's own type, if narrow, their sum would lose digits.
        grad_VD = torch.zeros_like(weight_VD, dtype=grad_N.dtype)
        grad_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=grad_N.dtype)
        scaled_N = grad_N * ctx.scale
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(ctx.dtype)
            for rows, logits_nV, narrow_nD in _HeadLogprobs.pieces(
                ctx, hidden_ND, weight_VD, bias_V
            ):
                # d log p(a) / d logits = onehot(a) - p
                by_n = scaled_N[rows]
                grad_nV = logits_nV.sub_(total_N[rows, None]).exp_().mul_(-by_n[:, None])
                grad_nV.scatter_add_(1, tokens_N[rows, None], by_n[:, None])
                if grad_V is not None:
                    grad_V += grad_nV.sum(0)
                narrow_nV = grad_nV.to(ctx.dtype)
                grad_ND[rows] = (narrow_nV @ weight).to(grad_ND.dtype)
                if ctx.dtype == grad_VD.dtype:
                    grad_VD.addmm_(narrow_nV.T, narrow_nD)
                else:
                    grad_VD += narrow_nV.T @ narrow_nD
        if grad_V is not None and bias_V is not None:
            grad_V = grad_V.to(bias_V.dtype)
        return grad_ND, grad_VD.to(weight_VD.dtype), grad_V, None, None, None

    @staticmethod
    def pieces(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """`rows, scaled logits, hidden states as multiplied`, piece by piece."""
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        weight = weight_VD.to(ctx.dtype)
        bias = None if bias_V is None else bias_V.to(ctx.dtype)
        size = _rows_at_a_time(len(weight_VD), hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(hidden_ND), size):
                rows = slice(start, start + size)
                narrow_nD = hidden_ND[rows].to(ctx.dtype)
                logits_nV = F.linear(narrow_nD, weight, bias).to(wide)
                if ctx.scale != 1.0:
                    logits_nV = logits_nV.mul_(ctx.scale)
                yield rows, logits_nV, narrow_nD


def entropy_from_logits(logits_BRV: Tensor, *, temperature: float | None = None) -> Tensor:
    """[B, R] float32, nats: `logsumexp(z) - sum softmax(z) * z` of the tempered logits (Detail G5).

    Logits of -inf (ids that cannot be sampled) contribute nothing.
    """
    scaled_BRV = temper(logits_BRV, temperature)
    probs_BRV = scaled_BRV.softmax(-1)
    finite_BRV = scaled_BRV.masked_fill(scaled_BRV == float("-inf"), 0.0)
    return scaled_BRV.logsumexp(-1) - (probs_BRV * finite_BRV).sum(-1)
