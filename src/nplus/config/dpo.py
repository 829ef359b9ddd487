"""Direct preference optimisation (Detail D9) and the losses beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config, unread
from nplus.config.optim import BatchConfig, OptimConfig

LossType = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "bco_pair",
    "sppo_hard",
    "nca_pair",
    "aot",
    "aot_pair",
    "apo_zero",
    "apo_down",
    "simpo",
    "orpo",
    "cpo",
    "kto",
    "raft",
    "cross_entropy",
    "soft_rev_kl",
    "soft_kl",
    "soft_tv",
    "soft_hellinger",
]
SOFT = ("soft_rev_kl", "soft_kl", "soft_tv", "soft_hellinger")
"""Losses that read the comparison's margin."""
OF_LOG_RATIO = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", *SOFT)
"""Losses of the log-ratio h, which can be changed before they read it."""
REFERENCE_FREE = ("simpo", "orpo", "cpo", "raft")
READERS: Mapping[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "robust", "exo_pair", "aot", "aot_pair", "simpo", "cpo"),
    "ipo_length": ("ipo",),
    "f_divergence": OF_LOG_RATIO,
    "rdpo_alpha": OF_LOG_RATIO,
    "dpop_lambda": OF_LOG_RATIO,
    "simpo_gamma_ratio": ("simpo",),
    "margin_scale": SOFT,
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Which losses read a key; with any other it has to be left at its default."""


class DPOConfig(Config):
    """DPO on the comparisons of the reward model. Names are TRL's where they mean the same."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig(batch_size=64, micro_batch_size=8)
    max_rows: int | None = Field(None, ge=1)
    """Use only the first training comparisons."""
    beta: float = Field(0.05, gt=0)
    """Strength of the pull to the reference (Detail D9)."""
    loss_type: LossType = "sigmoid"
    """`sigmoid` is DPO (Detail D9); docs/guides/preference.md has them all. `simpo`, `orpo`, `cpo`
    and `raft` have no reference; `soft_*` read the comparisons' margins."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken for flipped: conservative with `sigmoid`, `aot`, `aot_pair`, `simpo`
    and `cpo`; needed by `robust`; at least 0.001 in `exo_pair`."""
    ipo_length: Literal["sum", "mean"] = "sum"
    """Log-probs of IPO: summed over tokens (the paper, OpenRLHF) or averaged (TRL)."""
    f_divergence: Literal["reverse_kl", "alpha", "js"] = "reverse_kl"
    """What pulls to the reference (Wang et al. 2023): the KL of DPO, the alpha-divergence or the
    Jensen-Shannon divergence."""
    f_alpha: float = Field(1.0, gt=0, le=1)
    """a of `f_divergence=alpha`: 1 is the forward KL, towards 0 it becomes the reverse KL."""
    rdpo_alpha: float = Field(0.0, ge=0)
    """Reward a token that the length of a response costs, score/token (R-DPO, Park et al. 2024)."""
    dpop_lambda: float = Field(0.0, ge=0)
    """Weight of what the chosen response lost against the reference (DPOP, Pal et al. 2024)."""
    rpo_alpha: float | None = Field(None, ge=0)
    """Weight of the chosen response's negative log-likelihood (RPO, Pang et al. 2024); null is the
    loss's own: 1 with `orpo` and `cpo`, else 0."""
    rpo_nll: Literal["response", "token", "sum"] = "response"
    """That likelihood: a token's, averaged within each response and then over pairs (RPO); averaged
    over all chosen tokens (TRL); or summed over a response's tokens and averaged over pairs."""
    xpo_alpha: float = Field(0.0, ge=0)
    """Weight of optimism: the mean log-probability of the designated responses, which is lowered
    (XPO, Xie et al. 2024)."""
    xpo_policy: str = "reference"
    """The policy, as comparisons name it, whose responses are designated."""
    simpo_gamma_ratio: float = Field(0.5, ge=0)
    """SimPO's target margin over beta, nats a token (Meng et al. 2024)."""
    margin_scale: float = Field(1.0, gt=0)
    """What a comparison's margin is multiplied with before it is a soft label's logit."""
    desirable_weight: float = Field(1.0, gt=0)
    """What the chosen response weighs in `kto` (lambda_D, Ethayarajh et al. 2024); names are
    TRL's."""
    undesirable_weight: float = Field(1.0, gt=0)
    """What the rejected response weighs in `kto` (lambda_U)."""
    layout: Literal["separate", "shared"] = "separate"
    """`separate`: both responses are read behind a copy of the query each. `shared`: they share one
    reading of it; the same log-probs but for rounding, for less work."""
    ref_logprobs: Literal["online", "cached"] = "online"
    """The reference's log-probs: computed at every step, or once before the first and kept in the
    stage's directory, where later rounds of the loop find them. Other batch shapes, so the last
    digits differ."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""

    @property
    def has_reference(self) -> bool:
        """Whether the loss reads a reference."""
        return self.loss_type not in REFERENCE_FREE

    @model_validator(mode="after")
    def _read(self) -> Self:
        for key, readers in READERS.items():
            default = type(self).model_fields[key].default
            if getattr(self, key) != default and self.loss_type not in readers:
                raise ValueError(
                    f"{key}={getattr(self, key)} with loss_type={self.loss_type}: only "
                    f"{', '.join(readers)} read it; set {key}={default}"
                )
        if self.loss_type == "robust" and not self.label_smoothing:
            raise ValueError(
                "loss_type=robust without label_smoothing: name the share of flipped labels, as in "
                "label_smoothing=0.1"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        nll = self.rpo_alpha or self.loss_type in ("orpo", "cpo")
        readers = {
            "f_alpha": (
                self.f_divergence == "alpha",
                f"f_divergence={self.f_divergence}",
                "f_divergence=alpha",
            ),
            "rpo_nll": (nll, f"rpo_alpha={self.rpo_alpha}", "rpo_alpha=1.0"),
            "xpo_policy": (self.xpo_alpha, f"xpo_alpha={self.xpo_alpha}", "xpo_alpha=1e-05"),
        }
        for problem in unread(self, readers):
            raise ValueError(problem)
        changes: dict[str, Any] = {
            "f_divergence": "reverse_kl",
            "rdpo_alpha": 0.0,
            "dpop_lambda": 0.0,
        }
        changed = [key for key, none in changes.items() if getattr(self, key) != none]
        if self.ipo_length == "mean" and changed:
            key = changed[0]
            raise ValueError(
                f"{key}={getattr(self, key)} with ipo_length=mean: it changes sums over tokens; "
                f"set ipo_length=sum or {key}={changes[key]}"
            )
        if self.rpo_alpha and self.loss_type == "raft":
            raise ValueError(
                f"rpo_alpha={self.rpo_alpha} with loss_type=raft: the loss is that likelihood "
                "already; set rpo_alpha=null"
            )
        if self.ref_logprobs == "cached" and not self.has_reference:
            raise ValueError(
                f"ref_logprobs=cached with loss_type={self.loss_type}: the loss reads no "
                "reference; set ref_logprobs=online"
            )
        if self.loss_type == "kto" and self.batch.batch_size < 2:
            raise ValueError(
                f"batch.batch_size={self.batch.batch_size} with loss_type=kto: its KL is of "
                "queries with another pair's responses; set batch.batch_size to 2 or more"
            )
        return self
