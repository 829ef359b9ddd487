"""The last hidden states of the last columns: the blocks of GPT-NeoX and of Llama and its kin.

The same modules as in the Hugging Face forward with fewer operations between them, for
`attn_implementation="batched"`. In the last block queries, attention's output and the feed-forward
layer run on the wanted columns alone, which after a long prompt saves most of a block; and early
queries do not look at keys that come after them only to have them masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nplus.models.attention import NAME

SPLIT = 64
"""Columns from which on the first half of the queries is attended apart from the second."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far a try may be from the module's own forward, in multiples of its largest number."""

Turn = tuple[Tensor, Tensor]
Block = Callable[[Any, Tensor, Turn, Tensor, int], Tensor]


def last_states(trunk: Any, inputs: Mapping[str, Any], width: int) -> Tensor | None:
    """[B, width, D]: the trunk's last hidden states, after the final norm, of the last columns.

    `inputs` are those of `model_inputs`. None where the module's own forward is to be taken:
    another architecture or attention, dropout, hooks on blocks or checkpointing, or a try that came
    out otherwise.
    """
    block = BLOCKS.get(getattr(trunk.config, "model_type", ""))
    if block is None or trunk.config._attn_implementation != NAME or _does_more(trunk):
        return None
    if not hasattr(trunk, "nplus_last"):
        trunk.nplus_last = _tries_the_same(trunk, block)
    return _last_states(trunk, block, inputs, width) if trunk.nplus_last else None


def _last_states(trunk: Any, block: Block, inputs: Mapping[str, Any], width: int) -> Tensor:
    embed = trunk.get_input_embeddings()
    states_BTD = embed(inputs["input_ids"])
    turn = turn_of(*trunk.rotary_emb(states_BTD, inputs["position_ids"]))
    device, dtype = states_BTD.device.type, states_BTD.dtype
    if torch.is_autocast_enabled(device):  # of the scores, whose lowest number is wanted
        dtype = torch.get_autocast_dtype(device)
    mask_BTT = hidden_pairs(inputs["attention_mask"].bool(), dtype)
    *early, last = trunk.layers
    for each in early:
        states_BTD = block(each, states_BTD, turn, mask_BTT, states_BTD.shape[1])
    states_BTD = block(last, states_BTD, turn, mask_BTT, width)
    norm = trunk.final_layer_norm if hasattr(trunk, "final_layer_norm") else trunk.norm
    found: Tensor = norm(states_BTD)
    return found


def hidden_pairs(mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, T] to add to scores: the lowest number where a key is padding or comes later."""
    length = mask_BT.shape[1]
    later_TT = torch.ones(length, length, dtype=torch.bool, device=mask_BT.device).triu(1)
    hidden_BTT = later_TT | ~mask_BT[:, None]
    zeros_BTT = torch.zeros(hidden_BTT.shape, dtype=dtype, device=mask_BT.device)
    return zeros_BTT.masked_fill(hidden_BTT, torch.finfo(dtype).min)


def turn_of(cos_BTR: Tensor, sin_BTR: Tensor) -> Turn:
    """`cos, sin` [B, T, 1, R/2]: the second half of transformers' repeats the first."""
    half = cos_BTR.shape[-1] // 2
    return cos_BTR[:, :, None, :half], sin_BTR[:, :, None, :half]


def _turned(x_BTHD: Tensor, turn: Turn) -> Tensor:
    """Rotary positions: the i-th number of each head is turned with the (R/2 + i)-th."""
    cos, sin = turn
    half = cos.shape[-1]
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _attend(query_BTHD: Tensor, key_BSKD: Tensor, value_BSKD: Tensor, mask_BSS: Tensor) -> Tensor:
    """[B, T, H * D]: the last T of S columns look at those before them; K divides H."""
    rows, length, heads, width = query_BTHD.shape
    seen, groups = key_BSKD.shape[1:3]
    shared = heads // groups
    query = (query_BTHD * width**-0.5).view(rows, length, groups, shared, width)
    query = query.permute(0, 2, 3, 1, 4)  # [B, K, H/K, T, D]
    key, value = (
        x.transpose(1, 2).reshape(rows * groups, seen, width) for x in (key_BSKD, value_BSKD)
    )

    def part(start: int, stop: int) -> Tensor:
        """[B, K, H/K, t, D]: queries `start` to `stop` over the keys up to the last of them."""
        reach = seen - length + stop
        some = query[:, :, :, start:stop].reshape(rows * groups, -1, width)
        scores = torch.bmm(some, key[:, :reach].transpose(1, 2))
        added = mask_BSS[:, None, None, seen - length + start : reach, :reach]
        scores.view(rows, groups, shared, stop - start, reach).add_(added)
        mixed = torch.bmm(scores.softmax(-1), value[:, :reach])
        return mixed.view(rows, groups, shared, stop - start, width)

    if length == seen and length >= SPLIT:
        middle = length // 2
        mixed = torch.cat([part(0, middle), part(middle, length)], dim=3)
    else:
        mixed = part(0, length)
    return mixed.permute(0, 3, 1, 2, 4).reshape(rows, length, heads * width)


def _neox(block: Any, states_BTD: Tensor, turn: Turn, mask_BTT: Tensor, kept: int) -> Tensor:
    attention = block.attention
    rows, length, _ = states_BTD.shape
    qkv = attention.query_key_value(block.input_layernorm(states_BTD))
    query, key, value = qkv.view(rows, length, -1, 3, attention.head_size).unbind(3)
    late = tuple(x[:, -kept:] for x in turn)
    states_BTD, query = states_BTD[:, -kept:], query[:, -kept:]
    mixed = _attend(_turned(query, late), _turned(key, turn), value, mask_BTT)
    attended = attention.dense(mixed)
    if block.use_parallel_residual:
        inner: Tensor = block.mlp(block.post_attention_layernorm(states_BTD))
        return inner + attended + states_BTD
    attended = attended + states_BTD
    found: Tensor = block.mlp(block.post_attention_layernorm(attended)) + attended
    return found


def _llama(block: Any, states_BTD: Tensor, turn: Turn, mask_BTT: Tensor, kept: int) -> Tensor:
    attention = block.self_attn
    normed = block.input_layernorm(states_BTD)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, attention.head_dim)

    key, value = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
    query = heads(attention.q_proj(normed[:, -kept:]))
    late = tuple(x[:, -kept:] for x in turn)
    mixed = _attend(_turned(query, late), _turned(key, turn), value, mask_BTT)
    states_BTD = states_BTD[:, -kept:] + attention.o_proj(mixed)
    found: Tensor = states_BTD + block.mlp(block.post_attention_layernorm(states_BTD))
    return found


BLOCKS: dict[str, Block] = {"gpt_neox": _neox, "llama": _llama, "mistral": _llama, "qwen2": _llama}
"""`model_type` to what a block computes; a try on the module itself has the last word."""


def has_windows(config: Any) -> bool:
    """Whether some layer does not look at all earlier tokens."""
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return True
    window = getattr(config, "sliding_window", None)
    return bool(window and getattr(config, "use_sliding_window", True))


def _does_more(trunk: Any) -> bool:
    """Whether a forward of the module would do what this one leaves out."""
    if getattr(trunk, "gradient_checkpointing", False) and trunk.training:
        return True
    if any(block._forward_hooks or block._forward_pre_hooks for block in trunk.layers):
        return True
    config = trunk.config
    if has_windows(config):
        return True
    dropout = torch.nn.modules.dropout._DropoutNd
    return trunk.training and (
        any(isinstance(module, dropout) and module.p for module in trunk.modules())
        or any(getattr(config, name, 0) for name in ("attention_dropout", "hidden_dropout"))
    )


def is_alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a forward of ours came out as the module's own, but for rounding."""
    bound = TOLERANCE.get(theirs.dtype, 0.0) * max(1.0, float(theirs.abs().max()))
    return bool((ours - theirs).abs().max() <= bound)


@torch.no_grad()
def _tries_the_same(trunk: Any, block: Block) -> bool:
    """Whether both forwards come to the same on two short rows, one of them padded, and long."""
    training = trunk.training
    trunk.eval()
    try:
        with torch.autocast(trunk.device.type, enabled=False):
            for length in (6, SPLIT + 3):
                tokens_BT = torch.arange(2 * length, device=trunk.device).view(2, -1)
                mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
                mask_BT[0, :2] = False
                inputs = {
                    "input_ids": (tokens_BT * 7 + 3) % trunk.config.vocab_size,
                    "attention_mask": mask_BT.long(),
                    "position_ids": (mask_BT.long().cumsum(1) - 1).clamp(min=0),
                    "use_cache": False,
                }
                ours = _last_states(trunk, block, inputs, 3)
                theirs = trunk(**inputs).last_hidden_state[:, -3:]
                if not is_alike(ours, theirs):
                    return False
        return True
    finally:
        trunk.train(training)
