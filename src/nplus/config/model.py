"""Which network, and how it computes."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nplus.config.base import Config

MOST_THREADS = 1024

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
    allow_pickle: bool = False
    """Read weights that are only there as a pickle (`pytorch_model.bin`), in torch's mode that
    reads tensors and nothing else. Off unless asked for: pickles have run code before."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Parameter type."""
    attn_implementation: Literal["eager", "sdpa", "batched", "auto"] = "sdpa"
    """Attention: transformers' own, or `batched`, the same as `eager` in fewer passes; `auto`: what
    `nplus tune` found under the run's precision, else `sdpa`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of every dropout of every trained model (Detail B1: 0)."""
    positions: Literal["real", "slots"] = "real"
    """Position ids of training forwards: count real tokens, or count slots, left padding included,
    as in the paper's code (Detail B6)."""

    @model_validator(mode="after")
    def _eager_is_narrow(self) -> Self:
        if self.dtype == "float64" and self.attn_implementation == "eager":
            raise ValueError(
                "dtype=float64 with attn_implementation=eager: transformers' eager attention takes "
                "its softmax in float32, where the mask of a padded row overflows to NaN; set "
                "attn_implementation=sdpa or batched"
            )
        return self


class ComputeConfig(Config):
    """Numerics and threads of the process.

    `auto` is what `nplus tune` found on this machine, settled when a run begins and kept by its
    directory; where it has not run, the default. `compute=auto` is short for all that know it,
    attention included.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    threads: int | Literal["auto"] | None = None
    """CPU threads of torch, a number or `auto`; None leaves torch's choice."""
    side_by_side: bool | Literal["auto"] = True
    """On a CPU under Linux, let two processes share training, rollouts and sampling, each on half
    the threads; `auto` as tuned."""
    matmul_precision: Literal["highest", "high", "medium", "auto"] = "highest"
    """`torch.set_float32_matmul_precision`; `auto`: the fastest whose products err like
    `highest`'s, as tuned."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of training forwards outside PPO; log-softmax stays in float32."""
    allocator: Literal["one_arena", "keep", "system", "auto"] = "one_arena"
    """Freed memory on a CPU with glibc: kept for all threads together, kept by each thread for
    itself, or as the system does it; `auto` as tuned."""

    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: the same
    result with less memory, for a forward more."""

    @field_validator("threads", mode="before")
    @classmethod
    def _threads(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool)
        if (number and 1 <= value <= MOST_THREADS) or value is None or value == "auto":
            return value
        raise ValueError(
            f"given {value!r}; must be a number from 1 to {MOST_THREADS}, auto or null"
        )

    @field_validator("side_by_side", mode="before")
    @classmethod
    def _side_by_side(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value == "auto"):
            return value
        raise ValueError(f"given {value!r}; must be true, false or auto")
