"""A critic as a head on the policy's trunk: one forward for log-probs and values (Detail E3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.models.lm import read_hidden, response_hidden, response_logits
from nplus.models.scalar import ScalarModel, head_weights
from nplus.records import InputError


class SharedCritic(torch.nn.Module):
    """A value head that reads the hidden states of `policy`, as in OpenAI's code of 2019.

    Only the head is a parameter of this module; the trunk belongs to the policy.
    """

    def __init__(self, policy: PreTrainedModel, *, init: str, seed: int) -> None:
        super().__init__()
        self._policy = (policy,)  # in a tuple, so that it is not registered as a submodule
        weights = head_weights(policy.config.hidden_size, init, seed)
        self.weight = torch.nn.Parameter(weights.to(policy.device))

    @property
    def policy(self) -> PreTrainedModel:
        return self._policy[0]

    def response_values(self, tokens_BT: Tensor, mask_BT: Tensor, width: int) -> Tensor:
        """[B, R] float32: V of the state before each of the last `width` tokens (Detail F1)."""
        return self._values(response_hidden(self.policy, tokens_BT, mask_BT, width))

    def logprobs_and_values(
        self, tokens_BT: Tensor, mask_BT: Tensor, width: int, *, temperature: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`logprobs_BR, entropy_BR, values_BR` of the last `width` tokens from one forward."""
        hidden_BRH = response_hidden(self.policy, tokens_BT, mask_BT, width)
        logprobs_BR, entropy_BR = read_hidden(
            self.policy.get_output_embeddings(),
            hidden_BRH,
            tokens_BT,
            mask_BT,
            temperature=temperature,
        )
        return logprobs_BR, entropy_BR, self._values(hidden_BRH)

    @torch.no_grad()
    def require_plain_head(self, tokens_BT: Tensor, mask_BT: Tensor, width: int) -> None:
        """Raises InputError where the policy does more to hidden states than its output layer."""
        hidden_BRH = response_hidden(self.policy, tokens_BT, mask_BT, width)
        ours_BRV = self.policy.get_output_embeddings()(hidden_BRH)
        theirs_BRV = response_logits(self.policy, tokens_BT, mask_BT, width)
        if not torch.allclose(ours_BRV.float(), theirs_BRV.float(), rtol=1e-3, atol=1e-3):
            raise InputError(
                f"ppo.value=shared: {type(self.policy).__name__} changes its hidden states before "
                "the output layer; set ppo.value=separate"
            )

    def save(self, path: Path | str, tokenizer: Any) -> None:
        """Write trunk and head as a reward model is written, readable by plain transformers."""
        whole = ScalarModel.from_causal(
            self.policy, pad_id=tokenizer.pad_token_id, seed=0, head_init="zero"
        )
        with torch.no_grad():
            whole.network.score.weight.copy_(self.weight[None])
        whole.save(path, tokenizer)

    def _values(self, hidden: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.to(dtype) @ self.weight.to(dtype)
