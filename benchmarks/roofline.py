"""How many multiplications the work comes to, and how long this machine takes for those alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

VOCAB = 2048
Sizes = tuple[int, int, int]
"""Hidden size, layers and heads of a GPT-NeoX with a vocabulary of `VOCAB`."""
SIDE, ROUNDS = 1024, 100


def forward(sizes: Sizes, tokens: int, read: int, logits: int) -> float:
    """Multiply-adds for a row of `tokens`, of which the last `read` are wanted after the last
    block and `logits` after the vocabulary head; those that causality spares are left out.

    A layer has 12 h^2 weights, and 2 h multiply-adds for a pair of query and key.
    """
    hidden, layers, _ = sizes
    pairs = tokens * (tokens + 1) / 2
    unread = (tokens - read) * (tokens - read + 1) / 2
    early = (layers - 1) * (12 * hidden**2 * tokens + 2 * hidden * pairs)
    last = 2 * hidden**2 * tokens + 10 * hidden**2 * read + 2 * hidden * (pairs - unread)
    return early + last + VOCAB * hidden * logits


def shared(sizes: Sizes, prompt: int, new: int, samples: int) -> float:
    """Multiply-adds for `samples` responses of `new` tokens behind one prompt, all of them wanted
    after the last block."""
    alone = forward(sizes, prompt, 0, 0)
    return alone + samples * (forward(sizes, prompt + new, new, 0) - alone)


def generation(sizes: Sizes, prompt: int, new: int, samples: int = 1) -> float:
    """Multiply-adds for `samples` responses of `new` tokens to a prompt that is read once."""
    hidden, layers, _ = sizes
    steps = (new - 1) * (12 * hidden**2 * layers + VOCAB * hidden)
    steps += layers * 2 * hidden * sum(range(prompt + 1, prompt + new))
    return forward(sizes, prompt, 1, 1) + samples * steps


def ppo(sizes: Sizes, rows: int, prompt: int, new: int, epochs: int) -> dict[str, float]:
    """Multiply-adds of an update: sampling, what is scored, what is trained.

    Old policy, reference, reward model and critic score; policy and critic train, and a backward
    pass is two forwards.
    """
    trunk, head = forward(sizes, prompt + new, new, 0), VOCAB * sizes[0] * new
    return {
        "generation": rows * generation(sizes, prompt, new),
        "scores": rows * (4 * trunk + 2 * head),
        "training": rows * epochs * 3 * (2 * trunk + head),
    }


@cache
def peak(precision: str, threads: int) -> float:
    """Multiply-adds a second of a large product on all threads, at best: `medium` float32, or
    bfloat16."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium")
    a = torch.randn(SIDE, SIDE, dtype=getattr(torch, precision))
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return SIDE**3 / min(seconds)


def share(products: Mapping[str, float], seconds: float, threads: int) -> float:
    """What part of `seconds` the multiply-adds, by their precision, take at this machine's peak."""
    least = sum(count / peak(precision, threads) for precision, count in products.items())
    return least / seconds


def mark(
    rows: list[dict[str, Any]], products: Mapping[str, Mapping[str, float]], threads: int
) -> None:
    """Add its share of the roofline to each row, from the products of its precision, and print."""
    for row in rows:
        kind = "bfloat16" if "bfloat16" in row["name"] else "float32"
        row["roofline"] = share(products[kind], row["seconds"]["median"], threads)
    told = ", ".join(f"{row['name']} {100 * row['roofline']:.0f}%" for row in rows)
    rates = ", ".join(f"{kind} {2 * peak(kind, threads) / 1e9:.0f}" for kind in products)
    print(f"  share of the products' roofline ({rates} GFLOP/s): {told}")
