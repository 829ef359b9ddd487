"""Which network, and how it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nplus.config.base import Config

ToySize = Literal["0.3M", "1M", "4M", "12M"]


class ModelConfig(Config):
    """A toy GPT-NeoX trained from scratch, or any `AutoModelForCausalLM`."""

    size: ToySize | None = None
    """A toy GPT-NeoX of about this many parameters; None takes `model_name_or_path`."""
    model_name_or_path: str | None = None
    """A local directory or hub name of a causal language model, or `smollm` for the packaged
    SmolLM2-135M."""
    revision: str | None = None
    """Hub revision."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless asked for."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Parameter type."""
    attn_implementation: Literal["eager", "sdpa", "batched"] = "sdpa"
    """Attention: transformers' own, or `batched`, the same as `eager` in fewer passes."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of every dropout of every trained model (Detail B1: 0)."""
    positions: Literal["real", "slots"] = "real"
    """Position ids of training forwards: count real tokens, or count slots, left padding included,
    as in the paper's code (Detail B6)."""


class ComputeConfig(Config):
    """Numerics and threads of the process."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads of torch; None leaves torch's choice."""
    side_by_side: bool = True
    """On a CPU, let two workers share a minibatch's micro-batches in PPO's update, each on half the
    threads, with gradients of its own."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """`torch.set_float32_matmul_precision`."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of training forwards outside PPO; log-softmax stays in float32."""
