"""Dimensions of networks, as far as size and memory depend on them; no torch, no download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.config.model import ModelConfig
from nplus.config.run import RunConfig
from nplus.records import InputError


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer; the defaults are GPT-NeoX's (Pythia)."""

    vocab: int
    """Rows of the embedding."""
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    """Input and output embeddings are one matrix."""
    gated: bool = False
    """The feed-forward layer has three matrices instead of two (Llama)."""
    biases: bool = True
    """Matrices and norms have biases."""
    qkv_biases: bool = True
    """Query, key and value have biases, whatever the other matrices have (Qwen2)."""
    parallel: bool = True
    """Attention and feed-forward layer read the same residual."""
    positions: int = 0
    """Rows of a learned position embedding (GPT-2)."""

    @property
    def parameters(self) -> int:
        """Of the language model."""
        h, q, kv, ff = self.hidden, self.heads * self.head_dim, self._kv, self.feed_forward
        attention = h * (q + 2 * kv) + q * h
        attention += (q + 2 * kv) * self.qkv_biases + h * self.biases
        feed_forward = (3 if self.gated else 2) * h * ff + (ff + h) * self.biases
        norm = h * (2 if self.biases else 1)
        layers = self.layers * (attention + feed_forward + 2 * norm) + norm
        return layers + h * (self.vocab * (1 if self.tied else 2) + self.positions)

    @property
    def scalar_parameters(self) -> int:
        """Of a reward model or critic on its trunk: one output instead of a vocabulary."""
        head = 0 if self.tied else self.vocab * self.hidden
        return self.parameters - head + self.hidden

    @property
    def _kv(self) -> int:
        return self.kv_heads * self.head_dim

    def cache_elements(self, rows: int, tokens: int) -> int:
        """Keys and values of `rows` sequences."""
        return 2 * self.layers * self._kv * rows * tokens


def neox(hidden: int, layers: int, heads: int, *, vocab: int, tied: bool = False) -> Shape:
    """A GPT-NeoX whose feed-forward layer is four times as wide."""
    return Shape(
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=4 * hidden,
        kv_heads=heads,
        head_dim=hidden // heads,
        tied=tied,
    )


def llama(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    *,
    vocab: int,
    tied: bool = False,
) -> Shape:
    """The Llama family: gated, without biases, fewer heads for keys and values."""
    return Shape(
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        tied=tied,
        gated=True,
        biases=False,
        qkv_biases=False,
        parallel=False,
    )


TOYS = {"0.3M": (64, 3, 4), "1M": (128, 4, 4), "4M": (256, 4, 8), "12M": (384, 6, 6)}
"""Width, depth and heads of `model.size`."""
KNOWN = {
    "EleutherAI/pythia-1b-deduped": neox(2048, 16, 8, vocab=50_304),
    "EleutherAI/pythia-2.8b-deduped": neox(2560, 32, 32, vocab=50_304),
    "EleutherAI/pythia-6.9b-deduped": neox(4096, 32, 32, vocab=50_432),
    "meta-llama/Meta-Llama-3-8B": llama(4_096, 32, 32, 8, 14_336, vocab=128_256),
    "smollm": llama(576, 30, 9, 3, 1_536, vocab=49_152, tied=True),
}
"""Models whose shape is known without looking."""


def shape_of(cfg: RunConfig) -> Shape | None:
    """The shape of the run's model: a toy, a known name or a local config.json; None if unknown."""
    if cfg.model.size is not None:
        vocab = cfg.tokenizer.vocab_size
        return None if vocab is None else neox(*TOYS[cfg.model.size], vocab=vocab, tied=True)
    return KNOWN.get(cfg.model.model_name_or_path or "") or _local(cfg.model)


def _local(cfg: ModelConfig) -> Shape | None:
    path = Path(cfg.model_name_or_path or "").expanduser() / "config.json"
    if not path.is_file():
        return None
    mend = "check model.model_name_or_path"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {mend}") from error
    try:
        shape = from_config(found)
        return shape if shape is None or shape.parameters > 0 else None
    # A network may have another shape than its kind had here; one that is none has no number.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{path}: describes no network ({type(error).__name__}: {error}); {mend}"
        ) from error


def from_config(found: dict[str, Any]) -> Shape | None:
    """The shape that a config.json of transformers describes; None for other kinds of model."""
    kind = found.get("model_type")
    if kind == "gpt2":
        width, heads = found["n_embd"], found["n_head"]
        return Shape(
            vocab=found["vocab_size"],
            hidden=width,
            layers=found["n_layer"],
            heads=heads,
            feed_forward=found.get("n_inner") or 4 * width,
            kv_heads=heads,
            head_dim=width // heads,
            tied=True,
            parallel=False,
            positions=found["n_positions"],
        )
    llama = kind in ("llama", "mistral", "qwen2")
    if kind != "gpt_neox" and not llama:
        return None
    width, heads = found["hidden_size"], found["num_attention_heads"]
    return Shape(
        vocab=found["vocab_size"],
        hidden=width,
        layers=found["num_hidden_layers"],
        heads=heads,
        feed_forward=found["intermediate_size"],
        kv_heads=found.get("num_key_value_heads") or heads,
        head_dim=found.get("head_dim") or width // heads,
        tied=bool(found.get("tie_word_embeddings", False)),
        gated=llama,
        biases=not llama,
        qkv_biases=kind in ("gpt_neox", "qwen2"),
        parallel=bool(found.get("use_parallel_residual", True)) and not llama,
    )
