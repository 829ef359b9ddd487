"""A second copy of a module on the same weights, to train with from another thread."""

from __future__ import annotations

import copy

import torch


class Twin:
    """`module` is `original` with parameters of its own that share the original's memory.

    Both see each optimiser step. Each gathers gradients of its own, so that backward passes in two
    threads add up in the same order every time.
    """

    def __init__(self, original: torch.nn.Module) -> None:
        self.original = original
        shared: dict[int, object] = {
            id(p): torch.nn.Parameter(p.detach(), requires_grad=p.requires_grad)
            for p in original.parameters()
        }
        shared |= {id(buffer): buffer for buffer in original.buffers()}
        self.module: torch.nn.Module = copy.deepcopy(original, shared)

    def give_gradients(self) -> None:
        """Add the twin's gradients to the original's, and drop them."""
        pairs = zip(self.original.parameters(), self.module.parameters(), strict=True)
        for mine, other in pairs:
            if other.grad is not None:
                mine.grad = other.grad if mine.grad is None else mine.grad.add_(other.grad)
            other.grad = None

    def drop_gradients(self) -> None:
        self.module.zero_grad(set_to_none=True)
