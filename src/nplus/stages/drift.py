"""How far tuning has moved a policy: KL from SFT over the responses it draws itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nplus.models.lm import response_logprobs
from nplus.ops.kl import kl_per_token
from nplus.records import Demonstration
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn, sequences

NEAR_GREEDY = 0.1
"""Below this temperature a policy is all but a point, and its KL from another says little."""


@torch.no_grad()
def kl_from(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    posts: Sequence[Demonstration],
    drawn: Sequence[Drawn],
    ctx: Context,
    *,
    temperature: float,
) -> list[float]:
    """Nats of each response: `log p_tuned - log p_base`, both at the temperature it was drawn at,
    summed through EOS. Its mean estimates `KL(tuned || base)` (k1, Detail F3).

    `drawn` are responses of `tuned`. Both models are in evaluation mode, whatever the run's
    settings, so that runs with other settings can be compared.
    """
    size = ctx.config.evaluate.micro_batch_size
    order = sorted(range(len(posts)), key=lambda i: len(posts[i].query))
    found = [0.0] * len(posts)
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        tokens_BT, mask_BT, response_mask_BR = sequences(
            [posts[i] for i in picked], [drawn[i] for i in picked], ctx
        )
        tuned_BR, base_BR = (
            response_logprobs(
                model, tokens_BT, mask_BT, response_mask_BR.shape[1], temperature=temperature
            )[0]
            for model in (tuned, base)
        )
        kl_B = kl_per_token(tuned_BR, base_BR, response_mask_BR).sum(1)
        for i, kl in zip(picked, kl_B.tolist(), strict=True):
            found[i] = kl
    return found
