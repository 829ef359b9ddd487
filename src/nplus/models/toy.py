"""Toy GPT-NeoX networks, small enough to train from scratch on a laptop CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from nplus.config.shapes import TOYS

ROTARY_PCT = 0.5
"""Share of each head that rotates; Pythia has 0.25, a toy learned soonest with a half."""
MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class ToyShape:
    """Width, depth and heads of a toy; the feed-forward layer is four times as wide."""

    hidden: int
    layers: int
    heads: int


# Parameter counts hold for a vocabulary of 2048; embeddings are tied (Pythia's are not): a toy
# learns to copy a fact from the post in half as many documents.
TOY_SIZES: dict[str, ToyShape] = {name: ToyShape(*sizes) for name, sizes in TOYS.items()}


def toy_config(size: str, *, vocab_size: int, eos_id: int, pad_id: int) -> GPTNeoXConfig:
    """Configuration of a toy; dropout is 0 throughout (Detail B1).

    Raises ValueError for an unknown size, and for ids that have no embedding row.
    """
    if size not in TOY_SIZES:
        raise ValueError(f"unknown toy size {size!r}; known: {sorted(TOY_SIZES)}")
    if not (0 <= eos_id < vocab_size and 0 <= pad_id < vocab_size):
        raise ValueError(f"eos {eos_id} and pad {pad_id} must lie in 0..{vocab_size - 1}")
    shape = TOY_SIZES[size]
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        rotary_pct=ROTARY_PCT,
        max_position_embeddings=MAX_POSITIONS,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        classifier_dropout=0.0,
        use_parallel_residual=True,
        tie_word_embeddings=True,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )


def build_toy(
    size: str, *, vocab_size: int, eos_id: int, pad_id: int, seed: int
) -> GPTNeoXForCausalLM:
    """A toy whose weights depend on `seed` alone; the global generator stays as it was."""
    config = toy_config(size, vocab_size=vocab_size, eos_id=eos_id, pad_id=pad_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config)
