"""Sampling from the geometric mixture of two models, whose logits meet at every token."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from nplus.engines.kv import KVEngine
from nplus.engines.steps import PlainSteps


class MixedSteps:
    """`Steps` of two models on the same tokens: `(1 - share) * logits + share * other logits`.

    Softmax normalises the mixture, at any temperature. Source: Munos et al. 2023, section 7.
    """

    compact_below = PlainSteps.compact_below
    look_every = PlainSteps.look_every

    def __init__(self, model: PreTrainedModel, other: PreTrainedModel, share: float) -> None:
        self.parts, self.share = (PlainSteps(model), PlainSteps(other)), share

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor, room: int) -> Tensor:
        return self._mixed(*(part.prefill(tokens_BP, mask_BP, room) for part in self.parts))

    def step(self, tokens_b: Tensor) -> Tensor:
        return self._mixed(*(part.step(tokens_b) for part in self.parts))

    def keep(self, index: Tensor) -> None:
        for part in self.parts:
            part.keep(index)

    def _mixed(self, own_BV: Tensor, other_BV: Tensor) -> Tensor:
        return own_BV.lerp(other_BV, self.share)


def mixture_engine(
    model: PreTrainedModel, other: PreTrainedModel, share: float, *, eos_id: int, pad_id: int
) -> KVEngine:
    """Samples from `model^(1 - share) * other^share`, token by token; `share=0` is `model` alone.

    `load` copies weights into `model`. Both models have one vocabulary.
    """
    return KVEngine(
        model,
        eos_id=eos_id,
        pad_id=pad_id,
        make_steps=lambda: MixedSteps(model, other, share),
    )
