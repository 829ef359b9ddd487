"""Pair losses against numbers written out by hand and against their definitions in plain floats.

With beta = 1 and log-ratios of ln 3 all sigmoids are fractions: s(ln 3) = 3/4, s(ln 9) = 9/10.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nplus.ops.preference import (
    DIVERGENCES,
    EXPONENT,
    PAIR_LOSSES,
    alpha_gain,
    aot_loss,
    facing,
    length_term,
    pair_loss,
    positive_penalty,
    robust_loss,
)

log, exp, sqrt = math.log, math.exp, math.sqrt
L3 = log(3)
NUMBERS = {"beta": 1.0, "label_smoothing": 0.0, "margin_scale": 1.0, "gamma_ratio": 0.0}
NUMBERS |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
# u_w = ln 3, u_l = -ln 3, h = ln 9; a margin of ln 4 is a label of 8/10.
SEEN = {"chosen_gain": L3, "rejected_gain": -L3, "log_ratio": 2 * L3, "margin": log(4)}
SEEN |= {"difference": L3, "chosen_facing": 0.0, "rejected_facing": 0.0, "level": 0.0}
SEEN |= {"chosen": -7.0, "rejected": -9.0, "chosen_mean": -log(2), "rejected_mean": -log(4)}

BY_HAND = [
    ("sigmoid", {}, -log(0.9)),
    ("sigmoid", {"label_smoothing": 0.2}, -0.8 * log(0.9) - 0.2 * log(0.1)),
    ("robust", {"label_smoothing": 0.2}, (-0.8 * log(0.9) + 0.2 * log(0.1)) / 0.6),
    ("hinge", {"beta": 0.25}, 1 - log(9) / 4),
    ("ipo", {"beta": 0.25}, (log(9) - 2) ** 2),
    ("exo_pair", {"label_smoothing": 0.25}, 0.9 * log(0.9 / 0.75) + 0.1 * log(0.1 / 0.25)),
    ("exo_pair", {}, 0.9 * log(0.9 / 0.999) + 0.1 * log(0.1 / 0.001)),
    ("bco_pair", {}, -2 * log(0.75)),
    ("bco_pair", {"level": L3}, log(2) - log(0.9)),
    ("sppo_hard", {"beta": 0.5}, 2 * (L3 - 1) ** 2),
    ("nca_pair", {}, -log(0.75) - 0.5 * log(0.25) - 0.5 * log(0.75)),
    ("aot", {}, -log(0.75)),
    ("aot", {"chosen_facing": -L3, "label_smoothing": 0.2}, -0.8 * log(0.9) - 0.2 * log(0.1)),
    # The value is of the chosen's side; the rejected's adds its gradient alone.
    ("aot_pair", {"chosen_facing": -L3, "rejected_facing": 50.0}, -log(0.9)),
    ("apo_zero", {}, 0.25 + 0.25),
    ("apo_down", {}, 0.75 + 0.1),
    ("simpo", {}, -log(2 / 3)),
    ("simpo", {"gamma_ratio": log(2)}, log(2)),
    ("simpo", {"beta": 2.0, "gamma_ratio": log(2) - L3 / 2}, -log(0.75)),
    # Odds of 1/2 and of 1/4 are 1 and 1/3.
    ("orpo", {}, -log(0.75)),
    ("orpo", {"beta": 0.2}, -0.2 * log(0.75)),
    ("cpo", {}, -log(0.75)),
    ("kto", {}, 0.25 + 0.25),
    ("kto", {"level": L3}, 0.5 + 0.1),
    ("kto", {"level": L3, "desirable_weight": 3.0}, 1.5 + 0.1),
    ("kto", {"level": L3, "undesirable_weight": 0.5}, 0.5 + 0.05),
    ("raft", {}, 7.0),
    ("cross_entropy", {}, -log(0.75)),
    ("soft_rev_kl", {}, -0.8 * log(0.9) - 0.2 * log(0.1)),
    ("soft_kl", {}, 0.9 * log(0.9 / 0.8) + 0.1 * log(0.1 / 0.2)),
    ("soft_tv", {}, 0.1),
    ("soft_hellinger", {}, ((sqrt(0.9) - sqrt(0.8)) ** 2 + (sqrt(0.1) - sqrt(0.2)) ** 2) / 2),
    ("soft_tv", {"margin_scale": 0.5}, 0.9 - 2 / 3),
]


def numbers_of(changed):
    return NUMBERS | {key: value for key, value in changed.items() if key in NUMBERS}


def value(kind, seen, **numbers):
    table = {key: torch.tensor([x], dtype=torch.float64) for key, x in seen.items()}
    return pair_loss(kind, table, **{**NUMBERS, **numbers}).item()


@pytest.mark.parametrize(("kind", "changed", "expected"), BY_HAND)
def test_by_hand(kind, changed, expected):
    seen = SEEN | {key: x for key, x in changed.items() if key in SEEN}
    assert value(kind, seen, **numbers_of(changed)) == pytest.approx(expected, rel=1e-12)


def test_every_loss_has_its_numbers():
    assert {kind for kind, _, _ in BY_HAND} == set(PAIR_LOSSES)


def s(x):
    return 1 / (1 + exp(-x))


def mixed(x, e):
    return -(1 - e) * log(s(x)) - e * log(s(-x))


def odds(x):
    return exp(x) / (1 - exp(x))


# From probabilities, with readings u, v (gains), h, m (margin), d (level), b (beta), e (smoothing).
DEFINITIONS = {
    "sigmoid": lambda x: mixed(x.b * x.h, x.e),
    "robust": lambda x: (-(1 - x.e) * log(s(x.b * x.h)) + x.e * log(s(-x.b * x.h))) / (1 - 2 * x.e),
    "hinge": lambda x: max(0, 1 - x.b * x.h),
    "ipo": lambda x: x.h**2 - x.h / x.b + 1 / (4 * x.b**2),
    "exo_pair": lambda x: (
        s(x.b * x.h) * log(s(x.b * x.h) / (1 - x.e)) + s(-x.b * x.h) * log(s(-x.b * x.h) / x.e)
    ),
    "bco_pair": lambda x: -log(s(x.b * x.u - x.d)) - log(1 - s(x.b * x.v - x.d)),
    "sppo_hard": lambda x: ((x.b * x.u - 0.5) ** 2 + (x.b * x.v + 0.5) ** 2) / x.b**2,
    "nca_pair": lambda x: -log(s(x.b * x.u)) - (log(1 - s(x.b * x.u)) + log(1 - s(x.b * x.v))) / 2,
    "aot": lambda x: mixed(x.b * (x.p - x.q - x.f), x.e),
    "aot_pair": lambda x: mixed(x.b * (x.u - x.f), x.e),
    "apo_zero": lambda x: 1 - s(x.b * x.u) + s(x.b * x.v),
    "apo_down": lambda x: s(x.b * x.u) + 1 - s(x.b * x.u - x.b * x.v),
    "simpo": lambda x: mixed(x.b * (x.pm - x.qm) - x.b * x.g, x.e),
    "orpo": lambda x: x.b * log(1 + odds(x.qm) / odds(x.pm)),
    "cpo": lambda x: mixed(x.b * (x.p - x.q), x.e),
    "kto": lambda x: x.wd * (1 - s(x.b * x.u - x.d)) + x.wu * (1 - s(x.d - x.b * x.v)),
    "raft": lambda x: -x.p,
    "cross_entropy": lambda x: log(1 + exp(-x.b * x.u)),
    "soft_rev_kl": lambda x: -s(x.m) * log(s(x.b * x.h)) - s(-x.m) * log(s(-x.b * x.h)),
    "soft_kl": lambda x: (
        s(x.b * x.h) * log(s(x.b * x.h) / s(x.m)) + s(-x.b * x.h) * log(s(-x.b * x.h) / s(-x.m))
    ),
    "soft_tv": lambda x: abs(s(x.b * x.h) - s(x.m)),
    "soft_hellinger": lambda x: 1 - sqrt(s(x.b * x.h) * s(x.m)) - sqrt(s(-x.b * x.h) * s(-x.m)),
}
some = st.floats(-6, 6)
below = st.floats(-6, -0.05)


class Drawn:
    def __init__(self, draw):
        for name in "uvhmdf":
            setattr(self, name, draw(some))
        self.p, self.q, self.pm, self.qm = (draw(below) for _ in range(4))
        self.b, self.e, self.g = draw(st.floats(0.05, 2)), draw(st.floats(0.01, 0.4)), 0.3
        self.wd, self.wu = draw(st.floats(0.1, 3)), draw(st.floats(0.1, 3))

    def seen(self):
        names = {"chosen_gain": "u", "rejected_gain": "v", "log_ratio": "h", "level": "d"}
        names |= {"chosen_facing": "f", "rejected_facing": "f", "chosen": "p", "rejected": "q"}
        names |= {"chosen_mean": "pm", "rejected_mean": "qm"}
        found = {name: getattr(self, short) for name, short in names.items()}
        return found | {"difference": self.p - self.q, "margin": self.m / 2}


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_against_its_definition(kind, data):
    x = Drawn(data.draw)
    strengths = {"beta": x.b, "label_smoothing": x.e, "margin_scale": 2.0, "gamma_ratio": x.g}
    strengths |= {"desirable_weight": x.wd, "undesirable_weight": x.wu}
    found = value(kind, x.seen(), **strengths)
    assert found == pytest.approx(DEFINITIONS[kind](x), rel=1e-9, abs=1e-9)


@pytest.mark.detail("D9")
def test_at_equal_policies():
    # Gains, level and margin of 0: where nothing is known, -log of 1/2 and its kin.
    nothing = dict.fromkeys(SEEN, 0.0) | {"chosen_mean": -1.0, "rejected_mean": -1.0}
    expected = dict.fromkeys(("sigmoid", "robust", "aot", "aot_pair", "simpo", "cpo"), log(2))
    expected |= dict.fromkeys(("cross_entropy", "soft_rev_kl", "orpo"), log(2))
    expected |= {"hinge": 1.0, "ipo": 0.25, "sppo_hard": 0.5, "raft": 0.0}
    expected |= {"bco_pair": 2 * log(2), "nca_pair": 2 * log(2)}
    expected |= {"apo_zero": 1.0, "apo_down": 1.0, "kto": 1.0}
    expected |= dict.fromkeys(("soft_kl", "soft_tv", "soft_hellinger"), 0.0)
    expected["exo_pair"] = -0.5 * log(4 * 0.001 * 0.999)
    assert {kind: value(kind, nothing) for kind in PAIR_LOSSES} == pytest.approx(expected)


@pytest.mark.parametrize("kind", [k for k in PAIR_LOSSES if k != "aot_pair"])
def test_gradients_against_finite_differences(kind):
    entry = PAIR_LOSSES[kind]
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for name in entry.reads:
        x = torch.randn(6, generator=generator, dtype=torch.float64)
        x = -x.abs() - 0.1 if name.endswith("mean") else 2 * x
        fixed = name in ("level", "margin") or name.endswith("facing")
        inputs.append(x.requires_grad_(not fixed))
    numbers = {name: {**NUMBERS, "beta": 0.3, "label_smoothing": 0.1}[name] for name in entry.takes}
    assert torch.autograd.gradcheck(lambda *x: entry.loss(*x, **numbers), tuple(inputs))


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@pytest.mark.parametrize("size", [40.0, 400.0, 4000.0])
def test_far_from_the_reference_nothing_overflows(kind, size):
    for sign in (1.0, -1.0):
        seen = dict.fromkeys(SEEN, sign * size) | {"margin": size / 100}
        seen |= {"chosen_mean": -size, "rejected_mean": -1 / size}
        table = {k: torch.tensor([x], requires_grad=True) for k, x in seen.items()}
        loss = pair_loss(kind, table, **NUMBERS)
        loss.sum().backward()
        grads = [x.grad for x in table.values() if x.grad is not None]
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(g).all() for g in grads)


def test_a_response_that_is_certain_has_finite_odds():
    means = torch.zeros(2, requires_grad=True)
    loss = pair_loss("orpo", {"chosen_mean": means, "rejected_mean": means - 1.0}, beta=1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(means.grad).all()


def test_robust_loss_forgets_flipped_labels():
    # Chowdhury et al. 2024: over labels flipped with probability e it averages to the clean loss.
    e, h = 0.2, torch.tensor([3.0, -1.0])
    noisy = (1 - e) * robust_loss(h, beta=0.5, label_smoothing=e) + e * robust_loss(
        -h, beta=0.5, label_smoothing=e
    )
    assert noisy.tolist() == pytest.approx([log(1 + exp(-0.5 * x)) for x in (3.0, -1.0)])
    with pytest.raises(ValueError, match="1/2"):
        robust_loss(h, beta=0.5, label_smoothing=0.5)


def test_unknown_pair_loss():
    with pytest.raises(ValueError, match="sigmoid"):
        pair_loss("x", {}, beta=0.1)


# --- what is coupled ------------------------------------------------------------------------------


def test_facing_has_the_same_rank():
    values, others = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([10.0, 40.0, 30.0, 20.0])
    assert facing(values, others).tolist() == [40.0, 10.0, 30.0, 20.0]


def test_aot_sums_over_sorted_values():
    differences, others = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([0.5, 4.0, -2.0])
    found = aot_loss(differences, facing(differences, others), beta=0.5, label_smoothing=0.0)
    sorted_pairs = [(-1.0, -2.0), (2.0, 0.5), (3.0, 4.0)]
    expected = sum(log(1 + exp(-0.5 * (a - b))) for a, b in sorted_pairs)
    assert found.sum().item() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_aot_pair_has_the_gradient_of_the_sorted_sum(smoothing):
    generator = torch.Generator().manual_seed(1)
    gains = torch.randn(2, 9, generator=generator, dtype=torch.float64)

    def by_definition(gains):
        first, second = gains[0].sort().values, gains[1].sort().values
        return sum(mixed(0.7 * float(a - b), smoothing) for a, b in zip(first, second, strict=True))

    rows = gains.clone().requires_grad_()
    table = {"chosen_gain": rows[0], "rejected_gain": rows[1]}
    table["chosen_facing"] = facing(gains[0], gains[1])
    table["rejected_facing"] = facing(gains[1], gains[0])
    loss = pair_loss("aot_pair", table, beta=0.7, label_smoothing=smoothing).sum()
    loss.backward()
    assert loss.item() == pytest.approx(by_definition(gains), rel=1e-12)
    step = 1e-6
    for i in range(2):
        for j in range(9):
            up, down = gains.clone(), gains.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (by_definition(up) - by_definition(down)) / (2 * step)
            assert rows.grad[i, j].item() == pytest.approx(slope, abs=1e-7)


# --- what changes the log-ratio -------------------------------------------------------------------


def test_divergences_by_hand():
    half, double = torch.tensor([log(0.5)]).double(), torch.tensor([log(2.0)]).double()
    # Forward KL: f'(t) = 1 - 1/t at t = 1/2 and t = 2.
    assert alpha_gain(half, alpha=1.0).item() == pytest.approx(-1.0)
    assert alpha_gain(double, alpha=1.0).item() == pytest.approx(0.5)
    # f'(t) = (1 - t^-a)/a.
    assert alpha_gain(double, alpha=0.5).item() == pytest.approx((1 - 1 / sqrt(2)) / 0.5)
    # Jensen-Shannon: log(2t / (1 + t)), here without its log 2.
    js = [DIVERGENCES["js"](x, 0.0).item() for x in (half, double)]
    assert js == pytest.approx([log(1 / 3), log(2 / 3)])
    u, v = 1.3, -0.4
    softplus = [log(1 + exp(x)) for x in (u, v)]
    first, second = (DIVERGENCES["js"](torch.tensor([x]).double(), 0.0).item() for x in (u, v))
    assert first - second == pytest.approx((u - v) - (softplus[0] - softplus[1]))


def test_a_small_alpha_is_the_reverse_kl():
    gains = torch.linspace(-8, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(alpha_gain(gains, alpha=1e-7), gains, rtol=1e-5, atol=1e-5)
    assert DIVERGENCES["reverse_kl"](gains, 0.3) is gains


def test_an_exponent_stays_finite():
    far = torch.tensor([-500.0], requires_grad=True)
    found = alpha_gain(far, alpha=1.0)
    found.backward()
    assert found.item() == pytest.approx(1 - exp(EXPONENT), rel=1e-5)
    assert far.grad.item() == 0.0


def test_length_is_a_cost_and_not_a_reward():
    # R-DPO: with r = r~ - alpha |y|, Bradley-Terry on r~ reads beta h + alpha (|w| - |l|). Where a
    # longer response is preferred, its likelihood needs less of a push; never the other way round.
    lengths = torch.tensor([10.0, 4.0, 7.0]), torch.tensor([4.0, 10.0, 7.0])
    added = length_term(*lengths, beta=0.1, alpha=0.02)
    assert added.tolist() == pytest.approx([1.2, -1.2, 0.0])
    slopes = []
    for term in added:
        h = torch.zeros((), requires_grad=True)
        pair_loss("sigmoid", {"log_ratio": h + term}, **NUMBERS).backward()
        slopes.append(abs(h.grad.item()))
    assert slopes[0] < slopes[2] < slopes[1]


def test_the_penalty_is_on_what_the_chosen_response_lost():
    gains = torch.tensor([-2.0, 0.0, 3.0])
    assert positive_penalty(gains, weight=5.0).tolist() == [10.0, 0.0, 0.0]
