"""One forward a token with few operations: GPT-NeoX, Llama and its kin, GPT-2.

A decoding step of a small model, or of a large one at a small batch, is not arithmetic but the cost
of starting each operation, and a Hugging Face layer starts some fifty. Here it is about twenty, on
weights laid out for it: queries, keys and values in one product, keys and values written to one
cache, the rotation in place. What the layers compute is taken from the module itself; before the
first use both paths answer the same prompts, and where they differ the plain path is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.engines.families import FAMILIES, Layer, Network, NotPlainError
from nplus.engines.steps import PlainSteps
from nplus.models.lm import position_ids
from nplus.models.trunk import hidden_pairs, is_alike, turn_of


class LeanSteps:
    """`Steps` on a `Network`."""

    compact_below = 0.8
    look_every = 4

    def __init__(self, network: Network) -> None:
        self.network = network

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor, room: int) -> Tensor:
        net, (rows, width) = self.network, mask_BP.shape
        self.seen, space = width, width + room
        tokens_BP = tokens_BP.masked_fill(~mask_BP, 0)
        self.position_b = mask_BP.sum(-1)
        states = self._embedded(tokens_BP, positions := position_ids(mask_BP))
        mask_B1PP = hidden_pairs(mask_BP, states.dtype)[:, None]
        # What a step adds to the scores; None where there is no padding to hide.
        padded = not bool(mask_BP.all())
        self.bias_b1S = states.new_zeros(rows, 1, space) if padded else None
        if self.bias_b1S is not None:
            self.bias_b1S[:, 0, :width].masked_fill_(~mask_BP, torch.finfo(states.dtype).min)
        # Channel before position: a step's one query then runs along memory, twice as fast on CPU.
        shape = (len(net.layers), 2, rows, net.groups, net.width, space)
        self.cache = states.new_empty(shape)
        turn = self._turn(states, positions)
        for layer, cache in zip(net.layers, self.cache, strict=True):
            read = 1 if layer is net.layers[-1] else width  # columns, after this block
            states = self._layer(layer, cache, states, turn, 0, mask_B1PP[:, :, -read:])
        return self._logits(states[:, -1])

    def step(self, tokens_b: Tensor) -> Tensor:
        start, self.seen = self.seen, self.seen + 1
        positions_b1 = self.position_b[:, None]
        states = self._embedded(tokens_b[:, None], positions_b1)
        turn = self._turn(states, positions_b1)
        with _many_small_products(states.device):
            for layer, cache in zip(self.network.layers, self.cache, strict=True):
                states = self._layer(layer, cache, states, turn, start, None)
        self.position_b = self.position_b + 1
        return self._logits(states[:, 0])

    def keep(self, index: Tensor) -> None:
        self.position_b = self.position_b[index]
        self.cache = self.cache[:, :, index]
        if self.bias_b1S is not None:
            self.bias_b1S = self.bias_b1S[index]

    def _embedded(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        states = self.network.embed(tokens_BT)
        return states if self.network.places is None else states + self.network.places(positions_BT)

    def _turn(self, states: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.network.angles is None:
            return None
        cos_BTr, sin_BTr = turn_of(*self.network.angles(states, positions_BT))
        return cos_BTr[:, :, None], sin_BTr[:, :, None]

    def _logits(self, states_bD: Tensor) -> Tensor:
        return self.network.head(self.network.norm(states_bD))

    def _layer(
        self,
        layer: Layer,
        cache: Tensor,
        states: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        start: int,
        mask_B1TT: Tensor | None,
    ) -> Tensor:
        """The states after a block, of the columns that the mask has rows for."""
        net = self.network
        rows, length, _ = states.shape
        qkv = layer.qkv(layer.norm(states)).view(rows, length, -1, net.width)
        if turn is not None:
            _rotate(qkv[:, :, : net.heads + net.groups], *turn)
        stop = start + length
        both = qkv[:, :, net.heads :].view(rows, length, 2, net.groups, net.width)
        self._store(cache, both.permute(2, 0, 3, 4, 1), start)
        if mask_B1TT is not None:
            length = mask_B1TT.shape[2]
        states = states[:, -length:]
        mixed = self._attend(qkv[:, -length:, : net.heads], cache, stop, mask_B1TT)
        attended = layer.out(mixed)
        if net.parallel:
            inner = layer.inner(layer.up(layer.second_norm(states)))
            return layer.down(inner).add_(attended).add_(states)
        attended += states
        inner = layer.inner(layer.up(layer.second_norm(attended)))
        return layer.down(inner).add_(attended)

    def _store(self, cache: Tensor, new: Tensor, start: int) -> None:
        """Write keys and values of new columns."""
        cache[..., start : start + new.shape[-1]] = new

    def _attend(
        self, query_BTHD: Tensor, cache: Tensor, stop: int, mask_B1TT: Tensor | None
    ) -> Tensor:
        """[B, T, H * D]: every query over the first `stop` keys."""
        net = self.network
        rows, length = query_BTHD.shape[:2]
        keys_NDS, values_NDS = (x.flatten(0, 1)[..., :stop] for x in cache)
        shared = net.heads // net.groups
        query_NQD = (
            query_BTHD.view(rows, length, net.groups, shared, net.width)
            .permute(0, 2, 3, 1, 4)
            .reshape(rows * net.groups, shared * length, net.width)
        )
        scores = torch.bmm(query_NQD, keys_NDS).mul_(net.scale)
        if mask_B1TT is not None:
            scores.view(rows, net.groups, shared, length, stop).add_(mask_B1TT[:, :, None])
        elif self.bias_b1S is not None:
            scores.view(rows, -1, stop).add_(self.bias_b1S[:, :, :stop])
        mixed_NDQ = torch.bmm(values_NDS, scores.softmax(-1).mT)
        return (
            mixed_NDQ.view(rows, net.groups, net.width, shared, length)
            .permute(0, 4, 1, 3, 2)
            .reshape(rows, length, -1)
        )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn the first 2r of each head's D numbers in place, the i-th with the (r + i)-th."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = torch.addcmul(first * cos, second, sin, value=-1.0)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)


@contextmanager
def _many_small_products(device: torch.device) -> Iterator[None]:
    """On a CPU, a query's batched products by MKL: oneDNN would copy the keys before each."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def lean_network(model: PreTrainedModel) -> Network | None:
    """The model's weights as they are now, laid out for `LeanSteps`; None where the plain path is
    to be taken: another architecture, or one that answers otherwise."""
    read = FAMILIES.get(getattr(model.config, "model_type", ""))
    if read is None or getattr(model, "nplus_lean", True) is False:
        return None
    try:
        network = read(model)  # anew: a fused optimiser step leaves no mark on a tensor
    except NotPlainError:
        return None
    if network is not None and not hasattr(model, "nplus_lean"):
        model.nplus_lean = _same(model, network)
    return network if network is not None and model.nplus_lean else None


def _same(model: PreTrainedModel, network: Network) -> bool:
    """Whether both paths answer two prompts, one of them padded, and a token more, alike."""
    device, vocabulary = model.device, model.config.vocab_size
    tokens_BP = (torch.arange(10, device=device).view(2, 5) * 7 + 3) % vocabulary
    mask_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    mask_BP[0, :2] = False
    next_B = torch.tensor([1, 2], device=device) % vocabulary
    found = []
    for steps in (PlainSteps(model), LeanSteps(network)):
        found.append(torch.stack([steps.prefill(tokens_BP, mask_BP, 1), steps.step(next_B)]))
    return is_alike(found[1], found[0])
