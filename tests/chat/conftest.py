"""A tokenizer under a chat template, and a random network for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nplus.data.tokens import Codec

sys.path.insert(0, str(Path(__file__).parent))

from talk import SPECIAL, chat_config, make_tokenizer

Write = Callable[[str, Sequence[Mapping[str, Any]]], Path]


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(make_tokenizer()).for_data(chat_config())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, rows)`: a JSONL file in the test's folder."""

    def to_file(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to_file


@pytest.fixture(scope="session")
def llama() -> Callable[..., LlamaForCausalLM]:
    """`llama(attn)`: a random network for the tokenizer above, PAD beyond its embeddings."""

    def build(attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            vocab_size=len(SPECIAL) + 256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
            initializer_range=0.3,
            attn_implementation=attn,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return LlamaForCausalLM(config).to(dtype).eval()

    return build
