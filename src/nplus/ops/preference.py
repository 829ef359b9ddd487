"""Losses on preference pairs, and what changes the log-ratio that they read.

`u = log p - log p_ref` is a response's *gain*, summed over its tokens, EOS included; w is the
chosen response, l the rejected one; `h = u_w - u_l` is the *log-ratio*; s is the sigmoid. Every
loss is a function of [N] tensors and numbers, and an entry of `PAIR_LOSSES` says which. Nothing
here divides by the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EXPONENT = 80.0
"""The largest exponent that is raised: e^80 is finite in float32 and bfloat16."""
EXO_FLOOR = 1e-3
"""The least label smoothing of `exo_pair`, whose divergence is infinite at 0."""
SURE = -1e-6
"""The largest mean log-probability of `orpo`: the odds of a probability of 1 are infinite."""


# --- losses of the log-ratio ----------------------------------------------------------------------


def sigmoid_loss(log_ratio_N: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """[N] `-log sigmoid(beta h)`; with label smoothing the conservative DPO mixture (Detail D9)."""
    wanted_N = -F.logsigmoid(beta * log_ratio_N)
    if label_smoothing == 0.0:
        return wanted_N
    flipped_N = -F.logsigmoid(-beta * log_ratio_N)
    return (1.0 - label_smoothing) * wanted_N + label_smoothing * flipped_N


def ipo_loss(log_ratio_N: Tensor, *, beta: float) -> Tensor:
    """[N] `(h - 1 / (2 beta))^2` (Detail D9; Azar et al. 2023, equation 17)."""
    return (log_ratio_N - 1.0 / (2.0 * beta)).square()


def hinge_loss(log_ratio_N: Tensor, *, beta: float) -> Tensor:
    """[N] `max(0, 1 - beta h)` (SLiC; RSO, Liu et al. 2023)."""
    return torch.relu(1.0 - beta * log_ratio_N)


def robust_loss(log_ratio_N: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """[N] unbiased under labels flipped with probability e = `label_smoothing`:
    `((1 - e) * -log sigmoid(beta h) - e * -log sigmoid(-beta h)) / (1 - 2 e)`.

    Source: Chowdhury et al. 2024, equation 12. Raises ValueError unless e < 1/2.
    """
    if not label_smoothing < 0.5:
        raise ValueError(f"label smoothing below 1/2, not {label_smoothing}")
    wanted_N, flipped_N = -F.logsigmoid(beta * log_ratio_N), -F.logsigmoid(-beta * log_ratio_N)
    mixed_N = (1.0 - label_smoothing) * wanted_N - label_smoothing * flipped_N
    return mixed_N / (1.0 - 2.0 * label_smoothing)


def exo_loss(log_ratio_N: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """[N] `KL(sigmoid(beta h) || 1 - e)` of two outcomes, e = max(`label_smoothing`, 0.001).

    Source: Ji et al. 2024, equation 16.
    """
    wrong = max(label_smoothing, EXO_FLOOR)
    return _bernoulli_kl(beta * log_ratio_N, math.log1p(-wrong), math.log(wrong))


def _bernoulli_kl(logit_N: Tensor, log_yes: Tensor | float, log_no: Tensor | float) -> Tensor:
    """[N] `KL(sigmoid(logit) || q)` with log q and log(1 - q) given."""
    yes_N, no_N = F.logsigmoid(logit_N), F.logsigmoid(-logit_N)
    return yes_N.exp() * (yes_N - log_yes) + no_N.exp() * (no_N - log_no)


# --- soft labels: p = sigmoid(beta h) against q = sigmoid(scale * margin) -------------------------


def soft_rev_kl_loss(
    log_ratio_N: Tensor, margin_N: Tensor, *, beta: float, margin_scale: float
) -> Tensor:
    """[N] `-q log p - (1 - q) log(1 - p)`: KL(q || p) but for a constant."""
    logit_N, target_N = beta * log_ratio_N, torch.sigmoid(margin_scale * margin_N)
    return -target_N * F.logsigmoid(logit_N) - (1.0 - target_N) * F.logsigmoid(-logit_N)


def soft_kl_loss(
    log_ratio_N: Tensor, margin_N: Tensor, *, beta: float, margin_scale: float
) -> Tensor:
    """[N] `KL(p || q)`."""
    wanted_N = margin_scale * margin_N
    return _bernoulli_kl(beta * log_ratio_N, F.logsigmoid(wanted_N), F.logsigmoid(-wanted_N))


def soft_tv_loss(
    log_ratio_N: Tensor, margin_N: Tensor, *, beta: float, margin_scale: float
) -> Tensor:
    """[N] `|p - q|`, the total variation."""
    return (torch.sigmoid(beta * log_ratio_N) - torch.sigmoid(margin_scale * margin_N)).abs()


def soft_hellinger_loss(
    log_ratio_N: Tensor, margin_N: Tensor, *, beta: float, margin_scale: float
) -> Tensor:
    """[N] `((sqrt p - sqrt q)^2 + (sqrt(1-p) - sqrt(1-q))^2) / 2`, Hellinger's distance squared."""
    logit_N, wanted_N = beta * log_ratio_N, margin_scale * margin_N
    apart = [
        # sqrt(sigmoid(x)); the root of a rounded 0 would have an infinite slope.
        (0.5 * F.logsigmoid(sign * logit_N)).exp() - (0.5 * F.logsigmoid(sign * wanted_N)).exp()
        for sign in (1.0, -1.0)
    ]
    return 0.5 * (apart[0].square() + apart[1].square())


# --- losses of each response's gain ---------------------------------------------------------------


def sppo_loss(chosen_gain_N: Tensor, rejected_gain_N: Tensor, *, beta: float) -> Tensor:
    """[N] `(u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2` (Wu et al. 2024, equation 4.7, hard)."""
    half = 0.5 / beta
    return (chosen_gain_N - half).square() + (rejected_gain_N + half).square()


def nca_loss(chosen_gain_N: Tensor, rejected_gain_N: Tensor, *, beta: float) -> Tensor:
    """[N] `-log s(beta u_w) - log s(-beta u_w) / 2 - log s(-beta u_l) / 2` (Chen et al. 2024)."""
    chosen_N, rejected_N = beta * chosen_gain_N, beta * rejected_gain_N
    against_N = F.logsigmoid(-chosen_N) + F.logsigmoid(-rejected_N)
    return -F.logsigmoid(chosen_N) - 0.5 * against_N


def apo_zero_loss(chosen_gain_N: Tensor, rejected_gain_N: Tensor, *, beta: float) -> Tensor:
    """[N] `(1 - s(beta u_w)) + s(beta u_l)` (D'Oosterlinck et al. 2024, equation 7)."""
    return torch.sigmoid(-beta * chosen_gain_N) + torch.sigmoid(beta * rejected_gain_N)


def apo_down_loss(chosen_gain_N: Tensor, rejected_gain_N: Tensor, *, beta: float) -> Tensor:
    """[N] `s(beta u_w) + (1 - s(beta (u_w - u_l)))` (D'Oosterlinck et al. 2024, equation 8)."""
    apart_N = chosen_gain_N - rejected_gain_N
    return torch.sigmoid(beta * chosen_gain_N) + torch.sigmoid(-beta * apart_N)


def cross_entropy_loss(chosen_gain_N: Tensor, *, beta: float) -> Tensor:
    """[N] `-log sigmoid(beta u_w)`: the chosen response against the reference alone."""
    return -F.logsigmoid(beta * chosen_gain_N)


# --- losses coupled across a minibatch ------------------------------------------------------------


def bco_loss(
    chosen_gain_N: Tensor, rejected_gain_N: Tensor, level_N: Tensor, *, beta: float
) -> Tensor:
    """[N] `-log s(beta u_w - d) - log s(-(beta u_l - d))`, d the running mean of all rewards.

    `level_N` is d, without gradient. Source: Jung et al. 2024.
    """
    above_N, below_N = beta * chosen_gain_N - level_N, level_N - beta * rejected_gain_N
    return -F.logsigmoid(above_N) - F.logsigmoid(below_N)


def kto_loss(
    chosen_gain_N: Tensor,
    rejected_gain_N: Tensor,
    level_N: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """[N] `l_w (1 - s(beta u_w - d)) + l_l (1 - s(d - beta u_l))`, d = beta * KL of mismatched
    pairs.

    The chosen response is desirable, with weight l_w, the rejected one undesirable, with l_l;
    `level_N` is d, at least 0 and without gradient. Source: Ethayarajh et al. 2024, equation 7.
    """
    above_N, below_N = beta * chosen_gain_N - level_N, level_N - beta * rejected_gain_N
    return desirable_weight * torch.sigmoid(-above_N) + undesirable_weight * torch.sigmoid(-below_N)


def aot_loss(
    difference_N: Tensor, facing_N: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """[N] `sigmoid_loss` between sorted differences `log p(w) - log p(l)` of policy and reference.

    `facing_N` is the reference's difference of the same rank in the minibatch (`facing`).
    Source: Melnyk et al. 2024, paired.
    """
    return sigmoid_loss(difference_N - facing_N, beta=beta, label_smoothing=label_smoothing)


def aot_pair_loss(
    chosen_gain_N: Tensor,
    rejected_gain_N: Tensor,
    chosen_facing_N: Tensor,
    rejected_facing_N: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """[N] `sigmoid_loss` between sorted gains of the chosen and sorted gains of the rejected.

    `chosen_facing_N` is, of a pair's chosen response, the rejected gain of the same rank in the
    minibatch, `rejected_facing_N` the other way round (`facing`). Source: Melnyk et al. 2024,
    unpaired.
    """
    strengths = {"beta": beta, "label_smoothing": label_smoothing}
    loss_N = sigmoid_loss(chosen_gain_N - chosen_facing_N, **strengths)
    # The same terms, each seen from its rejected response: they add their gradient and no value.
    again_N = sigmoid_loss(rejected_facing_N - rejected_gain_N, **strengths)
    return loss_N + (again_N - again_N.detach())


def facing(values_N: Tensor, others_N: Tensor) -> Tensor:
    """[N] for each of `values_N` the entry of `others_N` of its rank; ties keep their order."""
    ranks_N = values_N.argsort(stable=True).argsort(stable=True)
    return others_N.sort(stable=True).values[ranks_N]


# --- losses without a reference -------------------------------------------------------------------


def raft_loss(chosen_N: Tensor) -> Tensor:
    """[N] `-log p(w)`, summed over tokens: likelihood of the chosen response (Dong et al. 2023)."""
    return -chosen_N


def simpo_loss(
    chosen_mean_N: Tensor,
    rejected_mean_N: Tensor,
    *,
    beta: float,
    gamma_ratio: float,
    label_smoothing: float,
) -> Tensor:
    """[N] `sigmoid_loss` of the difference of log-probs a token, less gamma/beta.

    Source: Meng et al. 2024.
    """
    apart_N = chosen_mean_N - rejected_mean_N - gamma_ratio
    return sigmoid_loss(apart_N, beta=beta, label_smoothing=label_smoothing)


def orpo_loss(chosen_mean_N: Tensor, rejected_mean_N: Tensor, *, beta: float) -> Tensor:
    """[N] `-beta log sigmoid(log odds(w) - log odds(l))`, odds of the mean probability a token.

    `odds = p / (1 - p)` with log p the mean over tokens, which is below 0; the likelihood of the
    chosen response comes on top. Source: Hong et al. 2024, equations 4 to 7, beta their lambda.
    """
    means = (x_N.clamp(max=SURE) for x_N in (chosen_mean_N, rejected_mean_N))
    odds = [x_N - torch.log(-torch.expm1(x_N)) for x_N in means]
    return -beta * F.logsigmoid(odds[0] - odds[1])


# --- what changes the log-ratio -------------------------------------------------------------------


def alpha_gain(gain_N: Tensor, *, alpha: float) -> Tensor:
    """[N] `(1 - e^(-a u)) / a`: u of the alpha-divergence, a = 1 forward KL, a -> 0 reverse KL.

    Source: Wang et al. 2023, table 1.
    """
    return (1.0 - (-alpha * gain_N).clamp(max=EXPONENT).exp()) / alpha


def js_gain(gain_N: Tensor) -> Tensor:
    """[N] `u - softplus(u)`: u of the Jensen-Shannon divergence, but for a constant."""
    return F.logsigmoid(gain_N)


DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda gain_N, alpha: gain_N,
    "alpha": lambda gain_N, alpha: alpha_gain(gain_N, alpha=alpha),
    "js": lambda gain_N, alpha: js_gain(gain_N),
}
"""A gain as each f-divergence has it: f'(p / p_ref)."""


def length_term(
    chosen_tokens_N: Tensor, rejected_tokens_N: Tensor, *, beta: float, alpha: float
) -> Tensor:
    """[N] `(alpha / beta) (|w| - |l|)`, added to h: a reward of `-alpha` a token.

    A longer chosen response has to gain less, so length alone is not learned. Counts are of real
    tokens. Source: Park et al. 2024 (R-DPO).
    """
    return (alpha / beta) * (chosen_tokens_N - rejected_tokens_N)


def positive_penalty(chosen_gain_N: Tensor, *, weight: float) -> Tensor:
    """[N] `weight * max(0, -u_w)`, taken from h where the chosen response lost probability.

    Source: Pal et al. 2024 (DPOP).
    """
    return weight * torch.relu(-chosen_gain_N)


# --- the table ------------------------------------------------------------------------------------

Statistics = Literal["none", "own", "mismatched"]


@dataclass(frozen=True, slots=True)
class PairKind:
    """A loss: `loss(*reads, **takes)` of the tensors and numbers that it names."""

    loss: Callable[..., Tensor]
    reads: tuple[str, ...]
    takes: tuple[str, ...] = ("beta",)
    reference: bool = True
    """Whether there is one; without, a gain is the response's log-probability."""
    reward: str = "gain"
    """`beta` times this reading of a response is its implicit reward: `gain` or `mean`."""
    statistics: Statistics = "none"
    """What a first pass over the whole minibatch reads: its `own` pairs, or `mismatched` ones."""
    likelihood: float = 0.0
    """The loss's own weight of the chosen response's negative log-likelihood."""


H, MARGIN = "log_ratio", "margin"
GAINS = ("chosen_gain", "rejected_gain")
MEANS = ("chosen_mean", "rejected_mean")
SMOOTHED = ("beta", "label_smoothing")
SOFT = ("beta", "margin_scale")
WEIGHED = ("beta", "desirable_weight", "undesirable_weight")
PAIR_LOSSES: dict[str, PairKind] = {
    "sigmoid": PairKind(sigmoid_loss, (H,), SMOOTHED),
    "robust": PairKind(robust_loss, (H,), SMOOTHED),
    "hinge": PairKind(hinge_loss, (H,)),
    "ipo": PairKind(ipo_loss, (H,)),
    "exo_pair": PairKind(exo_loss, (H,), SMOOTHED),
    "bco_pair": PairKind(bco_loss, (*GAINS, "level"), statistics="own"),
    "sppo_hard": PairKind(sppo_loss, GAINS),
    "nca_pair": PairKind(nca_loss, GAINS),
    "aot": PairKind(aot_loss, ("difference", "chosen_facing"), SMOOTHED, statistics="own"),
    "aot_pair": PairKind(
        aot_pair_loss, (*GAINS, "chosen_facing", "rejected_facing"), SMOOTHED, statistics="own"
    ),
    "apo_zero": PairKind(apo_zero_loss, GAINS),
    "apo_down": PairKind(apo_down_loss, GAINS),
    "simpo": PairKind(
        simpo_loss, MEANS, (*SMOOTHED, "gamma_ratio"), reference=False, reward="mean"
    ),
    "orpo": PairKind(orpo_loss, MEANS, reference=False, reward="mean", likelihood=1.0),
    "cpo": PairKind(sigmoid_loss, ("difference",), SMOOTHED, reference=False, likelihood=1.0),
    "kto": PairKind(kto_loss, (*GAINS, "level"), WEIGHED, statistics="mismatched"),
    "raft": PairKind(raft_loss, ("chosen",), (), reference=False),
    "cross_entropy": PairKind(cross_entropy_loss, ("chosen_gain",)),
    "soft_rev_kl": PairKind(soft_rev_kl_loss, (H, MARGIN), SOFT),
    "soft_kl": PairKind(soft_kl_loss, (H, MARGIN), SOFT),
    "soft_tv": PairKind(soft_tv_loss, (H, MARGIN), SOFT),
    "soft_hellinger": PairKind(soft_hellinger_loss, (H, MARGIN), SOFT),
}
"""By name. What they read, [N] each: `log_ratio` (h, as changed), `chosen`, `rejected` (log p),
`difference` (log p(w) - log p(l)), `*_gain` (u), `*_mean` (log p a token), `margin` (a reward
model's), and of the whole minibatch `level` and `*_facing`."""


def pair_loss(kind: str, readings: Mapping[str, Tensor], **numbers: float) -> Tensor:
    """[N] the loss `kind` of `readings`, [N] each; raises ValueError for an unknown kind."""
    if kind not in PAIR_LOSSES:
        raise ValueError(f"unknown pair loss {kind!r}; known: {sorted(PAIR_LOSSES)}")
    entry = PAIR_LOSSES[kind]
    strengths = {name: numbers[name] for name in entry.takes}
    return entry.loss(*(readings[name] for name in entry.reads), **strengths)
