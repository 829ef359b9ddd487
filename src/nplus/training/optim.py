"""Optimisers and schedules (details B2, B3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nplus.config import OptimConfig


def schedule(kind: str, step: int, total: int, *, warmup: int = 0) -> float:
    """Factor on the peak learning rate of optimiser step `step` (0-based) out of `total`.

    Detail B3: cosine is `0.5 * (1 + cos(pi * step / total))`, linear is `1 - step / total`; neither
    reaches 0 within the run. Warm-up is linear over the first `warmup` steps, on top.
    """
    progress = step / max(1, total)
    factors = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
    }
    if kind not in factors:
        raise ValueError(f"unknown schedule {kind!r}; known: {sorted(factors)}")
    return factors[kind] * min(1.0, (step + 1) / (warmup + 1))


class Optimizer:
    """One or two torch optimisers behind one step, with a schedule factor on every peak rate.

    Detail B2: AdamW with eps 1e-5 and weight decay 0.01 on every parameter, one group.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig
    ) -> None:
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        matrices = [p for name, p in named if _moves_by_muon(name, p)] if cfg.name == "muon" else []
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.parameters = [p for _, p in named]
        self.parts: list[torch.optim.Optimizer] = []
        self.peaks: list[float] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=cfg.muon_learning_rate, weight_decay=cfg.weight_decay, momentum=0.95
            )
            self._add(muon, cfg.muon_learning_rate)
        if others:
            adamw = torch.optim.AdamW(
                others,
                lr=cfg.learning_rate,
                betas=(cfg.adam_beta1, cfg.adam_beta2),
                eps=cfg.adam_epsilon,
                weight_decay=cfg.weight_decay,
                fused=True,
            )
            self._add(adamw, cfg.learning_rate)
        self.cfg = cfg

    def _add(self, part: torch.optim.Optimizer, peak: float) -> None:
        self.parts.append(part)
        self.peaks.append(peak)

    def set_factor(self, factor: float) -> float:
        """Scale every peak rate by `factor`; returns AdamW's resulting rate."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor
        return self.peaks[-1] * factor

    def follow(self, step: int, total: int) -> float:
        """Set the rates of optimiser step `step` (0-based) out of `total` as the settings have it;
        returns AdamW's."""
        cfg = self.cfg
        return self.set_factor(
            schedule(cfg.lr_scheduler_type, step, total, warmup=cfg.warmup(total))
        )

    def clip(self) -> float:
        """Clip the gradients if asked (Detail B4: the paper does not); returns the norm before."""
        limit = self.cfg.max_grad_norm
        return float(
            nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        )

    def step(self) -> None:
        """Move the weights and drop the gradients."""
        for part in self.parts:
            part.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All state as flat tensors, for safetensors."""
        flat = {}
        for i, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                for name, value in state.items():
                    flat[f"{i}.{index}.{name}"] = torch.as_tensor(value).contiguous()
        return flat

    def load_tensors(self, flat: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for i, part in enumerate(self.parts):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in flat.items():
                which, index, name = key.split(".", 2)
                if int(which) == i:
                    state.setdefault(int(index), {})[name] = value
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )


def _moves_by_muon(name: str, parameter: nn.Parameter) -> bool:
    """Matrices inside the blocks; embeddings, heads, norms and biases stay with AdamW."""
    outside = ("embed", "lm_head", "score", "wte", "wpe")
    return parameter.ndim == 2 and not any(word in name for word in outside)
