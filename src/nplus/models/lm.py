"""Causal language models: the forwards every stage shares.

Callers see rectangles: `tokens_BT, mask_BT`, mask True where a token is real. Positions and the
ids stored in padding slots are settled here, so padding can never reach a real logit.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nplus.batches import PackedBatch, SharedBatch
from nplus.models.trunk import Kept, kept_of, last_states
from nplus.ops.logprobs import entropy_from_logits, gather_logprobs, head_logprobs

POSITIONS = ("real", "slots")
PLAIN_HEADS = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gpt2")
"""Architectures that put nothing between the last hidden state, the output layer and the logits."""


# --- forwards -----------------------------------------------------------------------------------


def position_ids(mask_BT: Tensor) -> Tensor:
    """[B, T] int64: how many real tokens stand before each slot (Detail B6); 0 in left padding."""
    counts_BT = mask_BT.long()
    return (counts_BT.cumsum(-1) - counts_BT).clamp(min=0)


def set_positions(model: PreTrainedModel, kind: str) -> None:
    """Which position ids `model_inputs` gives this model: `real` or `slots` (Detail B6)."""
    if kind not in POSITIONS:
        raise ValueError(f"unknown positions {kind!r}; known: {POSITIONS}")
    model.nplus_positions = kind


def model_inputs(model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
    """Keyword arguments of a forward: id 0 in padding (Detail A7), mask, positions, no cache.

    Detail B6: a real token's position counts the real tokens before it; `slots` counts columns, as
    a forward without position ids does.
    """
    if mask_BT.dtype != torch.bool or mask_BT.shape != tokens_BT.shape:
        raise ValueError(
            f"mask is bool of shape {tuple(tokens_BT.shape)}, "
            f"not {mask_BT.dtype} of shape {tuple(mask_BT.shape)}"
        )
    slots = getattr(model, "nplus_positions", "real") == "slots"
    return {
        "input_ids": tokens_BT.masked_fill(~mask_BT, 0),
        "attention_mask": mask_BT.long(),
        "position_ids": position_ids(torch.ones_like(mask_BT) if slots else mask_BT),
        "use_cache": False,
    }


def shared_inputs(model: PreTrainedModel, batch: SharedBatch | PackedBatch) -> dict[str, Any]:
    """Keyword arguments of a forward over responses that share a query, or sequences that share a
    row; id 0 in padding."""
    sees_B1TT = batch.sees_BTT()[:, None]
    if model.config._attn_implementation != "sdpa":
        lowest = torch.finfo(model.dtype).min
        sees_B1TT = torch.zeros_like(sees_B1TT, dtype=model.dtype).masked_fill(~sees_B1TT, lowest)
    return {
        "input_ids": batch.tokens_BT.masked_fill(batch.segments_BT < 0, 0),
        "attention_mask": sees_B1TT,
        "position_ids": batch.positions_BT,
        "use_cache": False,
    }


def sequence_logits(model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T, V] logits; column t predicts token t + 1. Meaningless, but finite, in padding."""
    return model(**model_inputs(model, tokens_BT, mask_BT)).logits


def takes_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether the forward can restrict its vocabulary head to the last columns."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def response_logits(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, width: int
) -> Tensor:
    """[B, R, V] logits that predict the last `width` columns: slot r is column P + r - 1.

    The vocabulary head runs on those columns only, where the model's forward allows it.
    Raises ValueError when fewer than one column would be left as the prompt.
    """
    if not 0 < width < tokens_BT.shape[1]:
        raise ValueError(f"a response of {width} does not fit {tokens_BT.shape[1]} columns")
    inputs = model_inputs(model, tokens_BT, mask_BT)
    if takes_logits_to_keep(model):
        inputs["logits_to_keep"] = width + 1
    # Detail E6: off by one here shifts every log-prob; the last column predicts nothing we have.
    return model(**inputs).logits[:, -(width + 1) : -1]


def response_logprobs(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    width: int,
    *,
    temperature: float | None,
) -> tuple[Tensor, Tensor]:
    """`logprobs_BR, entropy_BR` of the last `width` tokens, float32, tempered (Detail E5).

    The entropy carries no gradient. Masked slots hold finite numbers that mean nothing.
    """
    head = plain_head(model)
    if head is not None:
        hidden_BRD = response_hidden(model, tokens_BT, mask_BT, width)
        return read_hidden(head, hidden_BRD, tokens_BT, mask_BT, temperature=temperature)
    logits_BRV = response_logits(model, tokens_BT, mask_BT, width)
    targets_BR = tokens_BT.masked_fill(~mask_BT, 0)[:, -width:]
    logprobs_BR = gather_logprobs(logits_BRV, targets_BR, temperature=temperature)
    with torch.no_grad():
        entropy_BR = entropy_from_logits(logits_BRV.detach(), temperature=temperature)
    return logprobs_BR, entropy_BR


def response_hidden(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, width: int
) -> Tensor:
    """[B, R, D] last hidden states, of the columns that `response_logits` takes."""
    if not 0 < width < tokens_BT.shape[1]:
        raise ValueError(f"a response of {width} does not fit {tokens_BT.shape[1]} columns")
    return trailing_hidden(model, tokens_BT, mask_BT, width + 1)[:, :-1]


def trailing_hidden(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, width: int
) -> Tensor:
    """[B, width, D] last hidden states of the last columns."""
    return hidden_at(model, model_inputs(model, tokens_BT, mask_BT), width)


def hidden_at(model: PreTrainedModel, inputs: dict[str, Any], kept: Kept) -> Tensor:
    """[B, W, D] last hidden states of the columns in `kept`."""
    found = last_states(model.base_model, inputs, kept)
    if found is None:
        found = kept_of(model.base_model(**inputs).last_hidden_state, kept)
    return found


def read_hidden(
    head: torch.nn.Linear,
    hidden_BRD: Tensor,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    *,
    temperature: float | None,
) -> tuple[Tensor, Tensor]:
    """`logprobs_BR, entropy_BR` of the last R tokens from the hidden states that predict them.

    The head runs on the tokens of `mask_BT` only; the others are 0.
    """
    width = hidden_BRD.shape[1]
    kept_BR = mask_BT[:, -width:]
    found_N = head_logprobs(
        hidden_BRD[kept_BR],
        head.weight,
        head.bias,
        tokens_BT[:, -width:][kept_BR],
        temperature=temperature,
    )
    zeros_BR = found_N[0].new_zeros(kept_BR.shape)
    logprobs_BR, entropy_BR = (zeros_BR.masked_scatter(kept_BR, x_N) for x_N in found_N)
    return logprobs_BR, entropy_BR


def plain_head(model: PreTrainedModel) -> torch.nn.Linear | None:
    """The output layer of a model whose logits are this layer on the last hidden states, no more.

    None for other architectures than those of `PLAIN_HEADS`, and where a try says otherwise.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tried, found = getattr(model, "nplus_head", ((), None))  # in tuples: no submodules of the model
    if tried != (head,):
        found = (_plain_head(model),)
        model.nplus_head = ((head,), found)
    return found[0]


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> torch.nn.Linear | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if getattr(model.config, "model_type", "") not in PLAIN_HEADS or type(head) is not nn.Linear:
        return None
    training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            tokens_BT = torch.arange(4, device=model.device)[None]
            mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
            ours_BRV = head(response_hidden(model, tokens_BT, mask_BT, 3))
            theirs_BRV = response_logits(model, tokens_BT, mask_BT, 3)
    finally:
        model.train(training)
    same = torch.allclose(ours_BRV.float(), theirs_BRV.float(), rtol=1e-3, atol=1e-4)
    return head if same else None


def sequence_logprobs(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, response_mask_BT: Tensor
) -> Tensor:
    """[B] float32: log-probs of the response's tokens, EOS included, summed (Detail D9).

    No temperature. Prompt tokens and padding contribute nothing, and the vocabulary head runs only
    on the columns from the first response on.
    """
    start = max(1, int(response_mask_BT.any(0).int().argmax()))
    width = tokens_BT.shape[1] - start
    if (head := plain_head(model)) is not None:
        hidden_BRD = response_hidden(model, tokens_BT, mask_BT, width)
        found_BR, _ = read_hidden(head, hidden_BRD, tokens_BT, response_mask_BT, temperature=None)
        return found_BR.sum(1)
    logits_BRV = response_logits(model, tokens_BT, mask_BT, width)
    kept_BR = response_mask_BT[:, -width:]
    targets_BR = tokens_BT.masked_fill(~response_mask_BT, 0)[:, -width:]
    logprobs_BR = gather_logprobs(logits_BRV, targets_BR)
    return logprobs_BR.masked_fill(~kept_BR, 0.0).sum(1)


def set_dropout(model: torch.nn.Module, p: float) -> None:
    """Detail B1: with dropout, log-probs are random, and the first ratio of PPO is not 1.

    Sets p in every dropout module, and in the rates that attention reads as plain numbers.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = p
        rate = getattr(module, "attention_dropout", None)
        if isinstance(rate, float | int):
            module.attention_dropout = p
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items()) if config is not None else []:
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float | int):
            setattr(config, name, type(value)(p))
