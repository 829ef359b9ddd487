"""The seam between the loop and whatever samples: every engine passes tests/contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nplus.batches import Generation, PromptBatch
from nplus.config.sampling import SamplingConfig


class Engine(Protocol):
    """Samples responses by inverse CDF from numbers it is given: no engine draws on its own."""

    def generate(
        self, prompts: PromptBatch, sampling: SamplingConfig, noise_BR: Tensor
    ) -> Generation:
        """One response a row; several samples of a prompt are repeated rows with other noise.

        `noise_BR` are uniforms in (0, 1), one per row and position: token r of row b is the first
        id whose cumulative tempered probability exceeds `noise_BR[b, r]`. Column count is
        `sampling.response_length`. The tempered log-probs are float32.

        stop='eos'    : after the first EOS, tokens are PAD and log-probs 0.
        stop='length' : all R positions are sampled, and tokens and log-probs after the first EOS
                        are kept (Detail E4). `response_mask_BR` ends at the first EOS either way.

        No id is forbidden: PAD and ids beyond the tokenizer have the probability that the model
        gives them, because the trainer's log-softmax runs over the same ids.
        """
        ...

    def load(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Take new weights; generations from now on carry `policy_version=version`."""
        ...
