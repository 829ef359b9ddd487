"""Log-probabilities and entropy of tempered distributions, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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


def entropy_from_logits(logits_BRV: Tensor, *, temperature: float | None = None) -> Tensor:
    """[B, R] float32, nats: `logsumexp(z) - sum softmax(z) * z` of the tempered logits (Detail G5).

    Logits of -inf (ids that cannot be sampled) contribute nothing.
    """
    scaled_BRV = temper(logits_BRV, temperature)
    probs_BRV = scaled_BRV.softmax(-1)
    finite_BRV = scaled_BRV.masked_fill(scaled_BRV == float("-inf"), 0.0)
    return scaled_BRV.logsumexp(-1) - (probs_BRV * finite_BRV).sum(-1)
