"""What the lean path knows of architectures: their weights, laid out for one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nplus.models.trunk import has_windows

Fn = Callable[[Tensor], Tensor]
_ONEDNN = torch.ops.mkldnn


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this type on this processor."""
    if not (torch.backends.mkldnn.is_available() and hasattr(_ONEDNN, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Linear:
    """A weight [out, in] and a bias, on a CPU also as oneDNN wants to read the weight.

    For some tens of rows that saves half the time, most of it the reordering of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.packed: Tensor | None = None
        if weight.device.type == "cpu" and _packs(weight.dtype):
            self.packed = _ONEDNN._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        found: Tensor = _ONEDNN._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return found


@dataclass(frozen=True, slots=True)
class Layer:
    """One block; `qkv` gives all queries, then all keys, then all values."""

    norm: Fn
    second_norm: Fn
    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    inner: Fn
    """From what `up` gives to what `down` takes."""


@dataclass(frozen=True, slots=True)
class Network:
    """A causal model as `LeanSteps` runs it."""

    embed: Fn
    places: Fn | None
    """Embeddings of positions, where they are added to the tokens'."""
    angles: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """`cos, sin` of positions, where queries and keys are rotated."""
    layers: tuple[Layer, ...]
    norm: Fn
    head: Linear
    heads: int
    groups: int
    """Heads of keys and values."""
    width: int
    """Of a head."""
    scale: float
    parallel: bool
    """Whether attention and feed-forward layer read the same residual."""


class NotPlainError(TypeError):
    """A layer that is more than its weight, an adapter for one."""


def _own(module: Any, kind: type = nn.Linear) -> Any:
    if type(module) is not kind:
        raise NotPlainError(type(module).__name__)
    return module


def _linear(module: nn.Linear) -> Linear:
    return Linear(_own(module).weight, module.bias)


def _neox(model: Any) -> Network | None:
    config, trunk = model.config, model.gpt_neox
    heads = config.num_attention_heads
    width = config.hidden_size // heads

    def apart(x: Tensor) -> Tensor:
        """From query, key, value of each head to all queries, all keys, all values."""
        return x.view(heads, 3, width, *x.shape[1:]).transpose(0, 1).flatten(0, 2).contiguous()

    layers = []
    for block in trunk.layers:
        qkv = _own(block.attention.query_key_value)
        layers.append(
            Layer(
                norm=block.input_layernorm,
                second_norm=block.post_attention_layernorm,
                qkv=Linear(apart(qkv.weight), None if qkv.bias is None else apart(qkv.bias)),
                out=_linear(block.attention.dense),
                up=_linear(block.mlp.dense_h_to_4h),
                down=_linear(block.mlp.dense_4h_to_h),
                inner=block.mlp.act,
            )
        )
    return Network(
        embed=trunk.embed_in,
        places=None,
        angles=trunk.rotary_emb,
        layers=tuple(layers),
        norm=trunk.final_layer_norm,
        head=_linear(model.lm_head),
        heads=heads,
        groups=heads,
        width=width,
        scale=width**-0.5,
        parallel=config.use_parallel_residual,
    )


def _llama(model: Any) -> Network | None:
    config, trunk = model.config, model.model
    if has_windows(config):
        return None
    first = trunk.layers[0].self_attn

    def stacked(*modules: nn.Linear) -> Linear:
        biases = [_own(m).bias for m in modules]
        bias = None if biases[0] is None else torch.cat(biases)
        return Linear(torch.cat([m.weight for m in modules]), bias)

    layers = []
    for block in trunk.layers:
        attention, mlp = block.self_attn, block.mlp

        def inner(both: Tensor, act: Fn = mlp.act_fn) -> Tensor:
            gate, up = both.chunk(2, -1)
            return act(gate) * up

        layers.append(
            Layer(
                norm=block.input_layernorm,
                second_norm=block.post_attention_layernorm,
                qkv=stacked(attention.q_proj, attention.k_proj, attention.v_proj),
                out=_linear(attention.o_proj),
                up=stacked(mlp.gate_proj, mlp.up_proj),
                down=_linear(mlp.down_proj),
                inner=inner,
            )
        )
    return Network(
        embed=trunk.embed_tokens,
        places=None,
        angles=trunk.rotary_emb,
        layers=tuple(layers),
        norm=trunk.norm,
        head=_linear(model.lm_head),
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        width=first.head_dim,
        scale=first.scaling,
        parallel=False,
    )


def _gpt2(model: Any) -> Network | None:
    config, trunk = model.config, model.transformer
    if config.scale_attn_by_inverse_layer_idx:
        return None

    def turned(module: Any) -> Linear:
        """GPT-2 keeps weights as [in, out]."""
        return Linear(_own(module, Conv1D).weight.T, module.bias)

    layers = tuple(
        Layer(
            norm=block.ln_1,
            second_norm=block.ln_2,
            qkv=turned(block.attn.c_attn),
            out=turned(block.attn.c_proj),
            up=turned(block.mlp.c_fc),
            down=turned(block.mlp.c_proj),
            inner=block.mlp.act,
        )
        for block in trunk.h
    )
    return Network(
        embed=trunk.wte,
        places=trunk.wpe,
        angles=None,
        layers=layers,
        norm=trunk.ln_f,
        head=_linear(model.lm_head),
        heads=config.n_head,
        groups=config.n_head,
        width=config.n_embd // config.n_head,
        scale=trunk.h[0].attn.scaling,
        parallel=False,
    )


FAMILIES: dict[str, Callable[[Any], Network | None]] = {
    "gpt_neox": _neox,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "gpt2": _gpt2,
}
"""`model_type` to how its modules are read."""
