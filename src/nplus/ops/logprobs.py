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
    found: tuple[Tensor, Tensor] = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, tokens_N, _scale(temperature), _products(hidden_ND), True
    )
    return found


def head_token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    tokens_N: Tensor,
    *,
    temperature: float | None = None,
) -> Tensor:
    """[N] float32: the log-probs of `head_logprobs` alone, for less work."""
    found: tuple[Tensor, Tensor] = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, tokens_N, _scale(temperature), _products(hidden_ND), False
    )
    return found[0]


def head_nll(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    tokens_N: Tensor,
    weight_N: Tensor,
) -> Tensor:
    """Scalar float32: `sum(weight * -log p(token))` under the logits `hidden @ weight.T + bias`.

    What `head_logprobs` would give, summed. As the weights are known beforehand, each piece of
    logits leaves its gradient behind at once and is not made a second time: autograd keeps
    gradients of the sizes of `hidden_ND` and `weight_VD`. `weight_N` gets no gradient.
    """
    nll: Tensor = _HeadNLL.apply(  # type: ignore[no-untyped-call]
        hidden_ND,
        weight_VD,
        bias_V,
        tokens_N,
        weight_N,
        _products(hidden_ND),
        torch.is_grad_enabled(),
    )
    return nll


def _scale(temperature: float | None) -> float:
    return 1.0 if temperature is None else 1.0 / (temperature + TEMPERATURE_EPS)


def _products(hidden_ND: Tensor) -> torch.dtype:
    """What matrix products run in: autocast's type where it is on, which leaves float64 alone."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype


def _rows_at_a_time(vocabulary: int, device: torch.device) -> int:
    """As many rows of logits as two MiB of cache hold; on a GPU enough to fill it."""
    return max(32, (1 << 19) // vocabulary) if device.type == "cpu" else 2_048


def _pieces(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """`rows, scaled logits, hidden states as multiplied`, piece by piece."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    weight = weight_VD.to(dtype)
    bias = None if bias_V is None else bias_V.to(dtype)
    size = _rows_at_a_time(len(weight_VD), hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, len(hidden_ND), size):
            rows = slice(start, start + size)
            narrow_nD = hidden_ND[rows].to(dtype)
            logits_nV = F.linear(narrow_nD, weight, bias).to(wide)
            if scale != 1.0:
                logits_nV = logits_nV.mul_(scale)
            yield rows, logits_nV, narrow_nD


class _Gradients:
    """Gradients of hidden states, weight and bias, from those of the logits piece by piece."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype
    ) -> None:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.dtype = dtype
        self.narrow_VD = weight_VD.to(dtype)
        self.hidden_ND = torch.empty_like(hidden_ND)
        # Many pieces add up: in the weight's own type, if narrow, their sum would lose digits.
        self.weight_VD = torch.zeros_like(weight_VD, dtype=wide)
        self.bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)

    def add(self, rows: slice, grad_nV: Tensor, narrow_nD: Tensor) -> None:
        if self.bias_V is not None:
            self.bias_V += grad_nV.sum(0)
        narrow_nV = grad_nV.to(self.dtype)
        self.hidden_ND[rows] = (narrow_nV @ self.narrow_VD).to(self.hidden_ND.dtype)
        if self.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(narrow_nV.T, narrow_nD)
        else:
            self.weight_VD += narrow_nV.T @ narrow_nD


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
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=wide)
        entropy_N = torch.empty_like(logprobs_N) if entropy else logprobs_N.new_empty(0)
        total_N = torch.empty_like(logprobs_N)
        ctx.scale, ctx.dtype = scale, dtype
        for rows, scaled_nV, _ in _pieces(hidden_ND, weight_VD, bias_V, scale, dtype):
            chosen_n = scaled_nV.gather(1, tokens_N[rows, None])[:, 0]
            logp_nV = scaled_nV.log_softmax(-1)
            logprobs_N[rows] = logp_nV.gather(1, tokens_N[rows, None])[:, 0]
            total_N[rows] = chosen_n - logprobs_N[rows]
            if not entropy:
                continue
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
        found = _Gradients(hidden_ND, weight_VD, bias_V, ctx.dtype)
        scaled_N = grad_N * ctx.scale
        pieces = _pieces(hidden_ND, weight_VD, bias_V, ctx.scale, ctx.dtype)
        for rows, logits_nV, narrow_nD in pieces:
            # d log p(a) / d logits = onehot(a) - p
            by_n = scaled_N[rows]
            grad_nV = logits_nV.sub_(total_N[rows, None]).exp_().mul_(-by_n[:, None])
            grad_nV.scatter_add_(1, tokens_N[rows, None], by_n[:, None])
            found.add(rows, grad_nV, narrow_nD)
        grad_V = None if bias_V is None or found.bias_V is None else found.bias_V.to(bias_V.dtype)
        return found.hidden_ND, found.weight_VD.to(weight_VD.dtype), grad_V, *[None] * 4


class _HeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        tokens_N: Tensor,
        weight_N: Tensor,
        dtype: torch.dtype,
        trains: bool,
    ) -> Tensor:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=wide)
        weight_N = weight_N.to(wide)
        grads = _Gradients(hidden_ND, weight_VD, bias_V, dtype) if trains else None
        for rows, logits_nV, narrow_nD in _pieces(hidden_ND, weight_VD, bias_V, 1.0, dtype):
            at_n1 = tokens_N[rows, None]
            logp_nV = logits_nV.log_softmax(-1)
            logprobs_N[rows] = logp_nV.gather(1, at_n1)[:, 0]
            if grads is not None:  # d -log p(a) / d logits = p - onehot(a)
                by_n1 = weight_N[rows, None]
                grad_nV = logp_nV.exp_().mul_(by_n1)
                grad_nV.scatter_add_(1, at_n1, -by_n1)
                grads.add(rows, grad_nV, narrow_nD)
        if grads is not None:
            ctx.save_for_backward(grads.hidden_ND, grads.weight_VD, grads.bias_V)
            ctx.types = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return -(logprobs_N * weight_N).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V = ctx.saved_tensors
        of_weight, of_bias = ctx.types
        return (
            (hidden_ND * grad).to(hidden_ND.dtype),
            (weight_VD * grad).to(of_weight),
            None if bias_V is None else (bias_V * grad).to(of_bias),
            *[None] * 4,
        )


def entropy_from_logits(logits_BRV: Tensor, *, temperature: float | None = None) -> Tensor:
    """[B, R] float32, nats: `logsumexp(z) - sum softmax(z) * z` of the tempered logits (Detail G5).

    Logits of -inf (ids that cannot be sampled) contribute nothing.
    """
    scaled_BRV = temper(logits_BRV, temperature)
    probs_BRV = scaled_BRV.softmax(-1)
    finite_BRV = scaled_BRV.masked_fill(scaled_BRV == float("-inf"), 0.0)
    return scaled_BRV.logsumexp(-1) - (probs_BRV * finite_BRV).sum(-1)
