"""The last hidden states of some columns: the blocks of GPT-NeoX and of Llama and its kin.

The same modules as in the Hugging Face forward with fewer operations between them, for
`attn_implementation="batched"`. In the last block queries, attention's output and the feed-forward
layer run on the wanted columns alone, which after a long prompt saves most of a block; and early
queries do not look at keys that come after them only to have them masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nplus.models.attention import NAME
from nplus.ops.attention import SPLIT, Turn, rotary_attention

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far a try may be from the module's own forward, in multiples of its largest number."""

Projection = tuple[Tensor, Tensor | None]
"""Weight and bias."""

Kept = int | Tensor
"""The columns that a block goes on with: so many last ones, or `[B, W]` of each row, W < T."""


def kept_of(states_BTD: Tensor, kept: Kept) -> Tensor:
    """[B, W, D]: the columns of `kept`."""
    if isinstance(kept, int):
        return states_BTD[:, -kept:]
    rows, length, _ = states_BTD.shape
    first_B1 = length * torch.arange(rows, device=kept.device)[:, None]
    index_N = (first_B1 + kept).flatten()
    return states_BTD.flatten(0, 1).index_select(0, index_N).view(*kept.shape, -1)


@dataclass(frozen=True, slots=True)
class Sight:
    """What every block's attention needs to know of the rows."""

    turn: Turn
    """[B, r, T] each."""
    mask_BTT: Tensor

    def of(self, kept: Kept) -> tuple[Turn, Tensor]:
        """Turns and mask of the queries in `kept`."""
        cos, sin = (kept_of(x.mT, kept).mT for x in self.turn)
        return (cos, sin), kept_of(self.mask_BTT, kept)


Block = Callable[[Any, Tensor, Sight, Kept], Tensor]


def last_states(trunk: Any, inputs: Mapping[str, Any], kept: Kept) -> Tensor | None:
    """[B, W, D]: the trunk's last hidden states, after the final norm, of the columns in `kept`.

    `inputs` are those of `model_inputs`, or of `shared_inputs`, whose mask `[B, 1, T, T]` is added
    to the scores and shows no column a later one. None where the module's own forward is to be
    taken: another architecture or attention, dropout, hooks on blocks, or a try that came out
    otherwise.
    """
    block = BLOCKS.get(getattr(trunk.config, "model_type", ""))
    if block is None or trunk.config._attn_implementation != NAME or _does_more(trunk):
        return None
    if not hasattr(trunk, "nplus_last"):
        trunk.nplus_last = _tries_the_same(trunk, block)
    return _last_states(trunk, block, inputs, kept) if trunk.nplus_last else None


def _last_states(trunk: Any, block: Block, inputs: Mapping[str, Any], kept: Kept) -> Tensor:
    run = block
    if getattr(trunk, "gradient_checkpointing", False) and trunk.training:
        run = partial(checkpoint, block, use_reentrant=False)
    embed = trunk.get_input_embeddings()
    states_BTD = embed(inputs["input_ids"])
    cos_BTr, sin_BTr = turn_of(*trunk.rotary_emb(states_BTD, inputs["position_ids"]))
    device, dtype = states_BTD.device.type, states_BTD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    mask = inputs["attention_mask"]
    if mask.dim() == 2:
        mask = hidden_pairs(mask.bool(), torch.promote_types(dtype, torch.float32))
    else:
        mask = mask[:, 0]
    sight = Sight((cos_BTr.mT.to(dtype).contiguous(), sin_BTr.mT.to(dtype).contiguous()), mask)
    *early, last = trunk.layers
    for each in early:
        states_BTD = run(each, states_BTD, sight, states_BTD.shape[1])
    states_BTD = run(last, states_BTD, sight, kept)
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
    """`cos, sin` [B, T, R/2]: the second half of transformers' repeats the first."""
    half = cos_BTR.shape[-1] // 2
    return cos_BTR[..., :half], sin_BTR[..., :half]


def _attended(
    states_BTD: Tensor,
    query: Projection,
    keys_values: Projection,
    sight: Sight,
    kept: Kept,
    heads: int,
) -> Tensor:
    """[B, W, H * D]: the columns in `kept` look at all that they see."""
    rows, width = len(states_BTD), len(query[0]) // heads
    late_ND = kept_of(states_BTD, kept).flatten(0, 1)
    turn_q, mask_BWT = sight.of(kept)
    found_CN = rotary_attention(
        query[0] @ late_ND.T,
        keys_values[0] @ states_BTD.flatten(0, 1).T,
        None if query[1] is None else (query[1], keys_values[1]),
        (turn_q, sight.turn),
        mask_BWT,
        heads=heads,
        groups=len(keys_values[0]) // (2 * width),
    )
    return found_CN.T.view(rows, mask_BWT.shape[1], -1)


def _neox(block: Any, states_BTD: Tensor, sight: Sight, kept: Kept) -> Tensor:
    attention = block.attention
    qkv, size = attention.query_key_value, attention.head_size
    heads = qkv.out_features // (3 * size)

    def apart(x: Tensor | None) -> tuple[Any, Any]:
        """From query, key and value of each head to the queries, and the keys and values."""
        if x is None:
            return None, None
        by_part = x.view(heads, 3, size, *x.shape[1:]).transpose(0, 1)
        return by_part[0].flatten(0, 1), by_part[1:].flatten(0, 2)

    (weight_q, weight_kv), (bias_q, bias_kv) = apart(qkv.weight), apart(qkv.bias)
    normed = block.input_layernorm(states_BTD)
    mixed = _attended(normed, (weight_q, bias_q), (weight_kv, bias_kv), sight, kept, heads)
    attended = attention.dense(mixed)
    states_BTD = kept_of(states_BTD, kept)
    if block.use_parallel_residual:
        inner: Tensor = block.mlp(block.post_attention_layernorm(states_BTD))
        return inner + attended + states_BTD
    attended = attended + states_BTD
    found: Tensor = block.mlp(block.post_attention_layernorm(attended)) + attended
    return found


def _llama(block: Any, states_BTD: Tensor, sight: Sight, kept: Kept) -> Tensor:
    attention = block.self_attn
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    bias_kv = None if key.bias is None else torch.cat([key.bias, value.bias])
    mixed = _attended(
        block.input_layernorm(states_BTD),
        (query.weight, query.bias),
        (torch.cat([key.weight, value.weight]), bias_kv),
        sight,
        kept,
        query.out_features // attention.head_dim,
    )
    states_BTD = kept_of(states_BTD, kept) + attention.o_proj(mixed)
    found: Tensor = states_BTD + block.mlp(block.post_attention_layernorm(states_BTD))
    return found


BLOCKS: dict[str, Block] = {"gpt_neox": _neox, "llama": _llama, "mistral": _llama, "qwen2": _llama}
"""`model_type` to what a block computes; a try on the module itself has the last word."""


def _projections(block: Any) -> tuple[Any, ...]:
    """The layers whose weights are read apart from their module: adapters change what they do."""
    if hasattr(block, "attention"):
        return (block.attention.query_key_value,)
    return block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj


def has_windows(config: Any) -> bool:
    """Whether some layer does not look at all earlier tokens."""
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return True
    window = getattr(config, "sliding_window", None)
    return bool(window and getattr(config, "use_sliding_window", True))


def _does_more(trunk: Any) -> bool:
    """Whether a forward of the module would do what this one leaves out."""
    if any(block._forward_hooks or block._forward_pre_hooks for block in trunk.layers):
        return True
    if any(type(module) is not torch.nn.Linear for b in trunk.layers for module in _projections(b)):
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
