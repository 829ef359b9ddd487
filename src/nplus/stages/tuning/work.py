"""What is timed: training steps, prefills, rollouts and products of two networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from nplus.batches import PromptBatch
from nplus.config import SamplingConfig
from nplus.engines.kv import KVEngine
from nplus.engines.steps import PlainSteps
from nplus.models.lm import response_logprobs
from nplus.stages.compute import forward_precision

EOS, PAD = 0, 1


@dataclass(frozen=True, slots=True)
class Net:
    """A network of random weights."""

    width: int
    layers: int
    heads: int
    groups: int
    """Heads of keys and values; as many as `heads` make a GPT-NeoX, fewer a Llama."""
    inner: int
    vocab: int

    @property
    def name(self) -> str:
        return f"width {self.width}"

    def build(self, attention: str, device: torch.device) -> PreTrainedModel:
        """The network in float32; the same weights for every `attention`."""
        shared = {
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": 1024,
            "bos_token_id": EOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "tie_word_embeddings": True,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.groups == self.heads:
                model = GPTNeoXForCausalLM(GPTNeoXConfig(rotary_pct=0.5, **shared))
            else:
                config = LlamaConfig(num_key_value_heads=self.groups, **shared)
                model = LlamaForCausalLM(config)
        model.set_attn_implementation(attention)
        return model.to(device)


@dataclass(frozen=True, slots=True)
class Load:
    """A network and how much it is given."""

    net: Net
    rows: int
    prompt: int
    response: int = 48

    @property
    def name(self) -> str:
        return f"{self.net.name}, {self.rows} x {self.prompt + self.response} tokens"


@dataclass(frozen=True, slots=True)
class Loads:
    """What one kind of device is given."""

    short: Load
    """A narrow network and short prompts, as of the toy recipes."""
    long: Load
    """The same network, long prompts."""
    wide: Load
    """A wide network, long prompts."""

    @property
    def all(self) -> tuple[Load, ...]:
        return self.short, self.long, self.wide


_TOY = Net(width=128, layers=4, heads=4, groups=4, inner=512, vocab=2_048)
_SMOLLM = Net(width=576, layers=2, heads=9, groups=3, inner=1_536, vocab=4_096)
_BILLION = Net(width=2_048, layers=2, heads=16, groups=8, inner=5_632, vocab=8_192)
LOADS = {
    "cpu": Loads(Load(_TOY, 16, 64), Load(_TOY, 8, 256), Load(_SMOLLM, 2, 256)),
    "cuda": Loads(Load(_SMOLLM, 64, 64), Load(_SMOLLM, 32, 256), Load(_BILLION, 4, 512)),
}
"""Small enough for a minute in all, and of the shapes that runs have."""


def rectangle(load: Load, device: torch.device) -> tuple[Tensor, Tensor]:
    """`tokens_BT, mask_BT`: every second row is padded by a quarter of the prompt."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.rows, load.prompt + load.response)
    tokens_BT = torch.randint(2, load.net.vocab, shape, generator=generator)
    mask_BT = torch.ones(shape, dtype=torch.bool)
    mask_BT[1::2, : load.prompt // 4] = False
    return tokens_BT.to(device), mask_BT.to(device)


def training(
    model: PreTrainedModel, load: Load, *, micro: int | None = None, autocast: str = "none"
) -> Callable[[], None]:
    """Forward and backward of PPO's policy over the rows of `load`, `micro` at a time."""
    tokens_BT, mask_BT = rectangle(load, model.device)
    size = micro or load.rows
    pieces = list(zip(tokens_BT.split(size), mask_BT.split(size), strict=True))

    def step() -> None:
        for tokens, mask in pieces:
            with forward_precision(model.device, autocast):
                logprobs_BR, _ = response_logprobs(
                    model, tokens, mask, load.response, temperature=0.7
                )
            logprobs_BR.mean().backward()
        model.zero_grad()

    return step


def prefill(model: PreTrainedModel, load: Load) -> Callable[[], None]:
    """A forward of the module itself over the prompts of twice the rows, without gradient."""
    many = Load(load.net, 2 * load.rows, load.prompt, 0)
    tokens_BP, mask_BP = rectangle(many, model.device)

    def forward() -> None:
        with torch.inference_mode():
            PlainSteps(model).prefill(tokens_BP, mask_BP, 1)

    return forward


def rollout(model: PreTrainedModel, load: Load, *, rows: int) -> Callable[[], None]:
    """Responses to the prompts of `load`, `rows` at a time, by the engine."""
    tokens_BP, mask_BP = rectangle(Load(load.net, load.rows, load.prompt, 0), model.device)
    noise_BR = torch.rand(load.rows, load.response, generator=torch.Generator().manual_seed(0))
    sampling = SamplingConfig(response_length=load.response, stop="length")
    engine = KVEngine(model, eos_id=EOS, pad_id=PAD)
    parts = [
        (PromptBatch(tokens_BP[i], mask_BP[i], tuple(map(str, i.tolist()))), noise_BR[i.cpu()])
        for i in torch.arange(load.rows, device=model.device).split(rows)
    ]

    def generate() -> None:
        for prompts, noise in parts:
            engine.generate(prompts, sampling, noise)

    return generate


def products(load: Load, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Pairs to multiply: a layer's matrices forward and back over the tokens of `load`, and the
    scores of attention."""
    net, tokens = load.net, load.rows * (load.prompt + load.response)
    head = net.width // net.heads
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    found = []
    for inputs, outputs in (
        (net.width, net.width + 2 * net.groups * head),
        (net.width, net.width),
        (net.width, net.inner),
        (net.inner, net.width),
    ):
        x, w, up = drawn(tokens, inputs), drawn(outputs, inputs), drawn(tokens, outputs)
        found += [(x, w.T), (up, w), (up.T, x)]
    length = load.prompt + load.response
    query, key = (
        drawn(load.rows * net.heads, length, head),
        drawn(load.rows * net.heads, length, head),
    )
    return [*found, (query, key.transpose(1, 2))]


def all_products(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The product of each pair, in the precision that is set."""
    return [left @ right for left, right in pairs]


def worst_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error of a product (Frobenius norm)."""
    pairs = zip(found, exact, strict=True)
    return max(float((ours.double() - true).norm() / true.norm()) for ours, true in pairs)
