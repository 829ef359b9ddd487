"""Every pair loss against TRL's own function for it, on given log-probs, in float64.

Loss and gradient agree within 1e-9 where both mean the same; where they do not, the test says by
what they differ (`docs/guides/preference.md` has the table).
"""

import pytest
import torch

from nplus.algorithms import preference
from nplus.config import DPOConfig
from nplus.data.collate import PairRow, pair_batch

PEER, OLDER = "trl-1.16.0", "trl-1.12.0"
BOUND = 1e-9
BETA = 0.2
LENGTHS = ((3, 5), (6, 2), (4, 4), (1, 7), (5, 6), (2, 3))
N = len(LENGTHS)
OWN = [True, False, False, True, True, False]
"""Of XPO: whether the policy wrote the chosen response; the reference wrote the other."""
BEFORE = [[0.3, -0.4, 0.1], [0.7, 0.2, -0.1]]
"""Of BCO: rewards of two steps before."""


def rows():
    return [
        PairRow([5], [7] * chosen, [8] * rejected, designated=(not own, own))
        for (chosen, rejected), own in zip(LENGTHS, OWN, strict=True)
    ]


BATCH = pair_batch(rows(), pad_id=1)
MASK_BT = BATCH.stacked_response_mask()


def drawn():
    generator = torch.Generator().manual_seed(3)
    shape = MASK_BT[:, 1:].shape
    logprobs = -torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 0.05
    logprobs = logprobs.masked_fill(~MASK_BT[:, 1:], 0.0)
    refs = logprobs.sum(1) + 3 * torch.randn(2 * N, generator=generator, dtype=torch.float64)
    kl, ref_kl = -50 * torch.rand(2, 2 * N, generator=generator, dtype=torch.float64)
    if kl.mean() < ref_kl.mean():
        kl, ref_kl = ref_kl, kl
    return {
        "logprobs": logprobs,
        "ref_logprobs": refs,
        "kl_logprobs": kl,
        "ref_kl_logprobs": ref_kl,
    }


DATA = drawn()


def dpo(name, kind, *, ours=None, dtype="float64", **args):
    """A case of the peer's DPO trainer, and the keys of nplus."""
    kinds = kind if isinstance(kind, list) else [kind]
    keys = {"loss_type": kinds[0], "label_smoothing": args.get("label_smoothing", 0.0)}
    args = {"loss_type": kinds, "beta": BETA, **args}
    return {"name": name, "kind": "dpo", "args": args, "dtype": dtype}, keys | (ours or {})


def other(kind, name, args, ours):
    """A case of another trainer of the peer's, and the keys of nplus."""
    return {"name": name, "kind": kind, "args": {"beta": BETA, **args}}, ours


FORWARD = {"f_divergence": "alpha", "f_alpha": 1.0}
SAME = [
    dpo("sigmoid", "sigmoid"),
    dpo("hinge", "hinge"),
    dpo("robust", "robust", label_smoothing=0.2),
    dpo("ipo", "ipo", ours={"ipo_length": "mean"}),
    dpo("exo_pair", "exo_pair", label_smoothing=0.1),
    dpo("exo_pair at the floor", "exo_pair", label_smoothing=0.001),
    dpo("nca_pair", "nca_pair"),
    dpo("sppo_hard", "sppo_hard"),
    dpo("aot", "aot"),
    dpo("aot smoothed", "aot", label_smoothing=0.2),
    dpo("aot_unpaired", "aot_unpaired", ours={"loss_type": "aot_pair"}),
    dpo(
        "aot_unpaired smoothed",
        "aot_unpaired",
        label_smoothing=0.2,
        ours={"loss_type": "aot_pair"},
    ),
    dpo("apo_zero", "apo_zero"),
    dpo("apo_down", "apo_down"),
    dpo("forward KL", "sigmoid", f_divergence_type="forward_kl", ours=FORWARD),
    dpo(
        "robust, forward KL",
        "robust",
        label_smoothing=0.2,
        f_divergence_type="forward_kl",
        ours=FORWARD,
    ),
    dpo(
        "Jensen-Shannon",
        "sigmoid",
        f_divergence_type="js_divergence",
        ours={"f_divergence": "js"},
    ),
    dpo(
        "sigmoid and sft",
        ["sigmoid", "sft"],
        loss_weights=[1.0, 0.7],
        ours={"rpo_alpha": 0.7, "rpo_nll": "token"},
    ),
    other(
        "cpo",
        "cpo",
        {"loss_type": "sigmoid", "label_smoothing": 0.0},
        {"loss_type": "cpo", "rpo_alpha": 0.0},
    ),
    other(
        "cpo",
        "cpo smoothed",
        {"loss_type": "sigmoid", "label_smoothing": 0.2},
        {"loss_type": "cpo", "label_smoothing": 0.2, "rpo_alpha": 0.0},
    ),
    other(
        "cpo",
        "simpo",
        {"loss_type": "simpo", "label_smoothing": 0.1, "simpo_gamma": 0.3},
        {"loss_type": "simpo", "label_smoothing": 0.1, "simpo_gamma_ratio": 0.3 / BETA},
    ),
]
ORPO = other("orpo", "orpo", {}, {"loss_type": "orpo", "rpo_alpha": 0.0})
KTO = other("kto", "kto", {}, {"loss_type": "kto"})
ALPHA = dpo(
    "alpha divergence in float32",
    "sigmoid",
    dtype="float32",
    f_divergence_type="alpha_divergence",
    f_alpha_divergence_coef=0.4,
    ours={"f_divergence": "alpha", "f_alpha": 0.6},
)
PAIR_BCO = dpo("bco_pair", "bco_pair")
SMOOTHED = dpo("sigmoid with label_smoothing", "sigmoid", label_smoothing=0.2)
BCO = other("bco", "bco", {"before": BEFORE}, {"loss_type": "bco_pair"})
XPO = other(
    "xpo",
    "xpo",
    {"alpha": 0.05, "model_is_chosen": OWN},
    {"loss_type": "sigmoid", "xpo_alpha": 0.05},
)
CASES = {
    PEER: [case for case, _ in (*SAME, ORPO, KTO, ALPHA, PAIR_BCO, SMOOTHED)],
    OLDER: [case for case, _ in (BCO, XPO)],
}


@pytest.fixture(scope="module")
def peer(run_probe):
    """`case name -> {loss, gradient}` of the peers."""
    found = {}
    data = {name: x.tolist() for name, x in DATA.items()} | {"mask": MASK_BT.tolist()}
    for name, environment in ((PEER, "trl-current"), (OLDER, OLDER)):
        tensors, logs = run_probe(environment, "preference", {"cases": CASES[name], "data": data})
        assert f"trl-{logs['version']}" == name
        found |= tensors
    return found


def ours(keys, dtype=torch.float64, level=0.0):
    """Loss and gradient of nplus, divided by its counts as `training.update` does."""
    cfg = DPOConfig(beta=BETA, **keys)
    logprobs_BT = DATA["logprobs"].to(dtype, copy=True).requires_grad_()
    logprobs_2N, ref_2N = logprobs_BT.sum(1), DATA["ref_logprobs"].to(dtype)
    shared = {"level": torch.full((N,), level, dtype=dtype)}
    facings = preference.facings(logprobs_2N.detach(), ref_2N, cfg)
    if facings is not None:
        shared |= dict(zip(("chosen_facing", "rejected_facing"), facings, strict=True))
    found = preference.objective(
        logprobs_2N, ref_2N if cfg.has_reference else None, BATCH, cfg, shared
    )
    counts = preference.counts(BATCH, cfg)
    loss = sum(weight * mean.sum / counts[name] for name, (weight, mean) in found.terms.items())
    loss.backward()
    return loss.detach(), logprobs_BT.grad


def compare(ledger, name, peer_name, found, theirs, *, bound=BOUND, factor=1.0):
    loss, gradient = found
    assert gradient.abs().max() > 1e-4
    ledger.same(f"{name}: loss", peer_name, factor * loss, theirs["loss"], bound=bound)
    # Padding holds no log-probs; who sums over it has a gradient there all the same.
    inside = [x[MASK_BT[:, 1:]] for x in (factor * gradient, theirs["gradient"])]
    ledger.same(f"{name}: gradient", peer_name, *inside, bound=bound)


@pytest.mark.parametrize(("case", "keys"), SAME, ids=lambda x: x.get("name"))
def test_the_same_loss_and_gradient(case, keys, peer, ledger):
    compare(ledger, case["name"], PEER, ours(keys), peer[case["name"]])


def test_orpo_there_is_float32(peer, ledger):
    # The peer casts to float32, and adds the likelihood of query and response to this.
    compare(ledger, "orpo (float32 there)", PEER, ours(ORPO[1]), peer["orpo"], bound=1e-6)


def test_kto_there_is_a_mean_over_responses(peer, ledger):
    # A pair here is two responses, and the loss their sum: twice the peer's.
    level = BETA * max(0.0, float((DATA["kl_logprobs"] - DATA["ref_kl_logprobs"]).mean()))
    assert level > 0
    found = ours(KTO[1], level=level)
    compare(ledger, "kto, halved", PEER, found, peer["kto"], factor=0.5)


def test_the_alpha_divergence_there_counts_from_one(peer, ledger):
    # Their coefficient is 1 - a, and the dtypes they know are float32 and smaller.
    found = ours(ALPHA[1], dtype=torch.float32)
    name = ALPHA[0]["name"]
    compare(ledger, name, PEER, found, peer[name], bound=1e-5)


def test_bco_pair_there_has_no_level(peer, ledger):
    compare(ledger, "bco_pair at level 0", PEER, ours(PAIR_BCO[1]), peer["bco_pair"])
    loss, _ = ours(PAIR_BCO[1], level=0.5)
    ledger.apart("bco_pair: loss, against a level", PEER, loss, peer["bco_pair"]["loss"])


def test_bco_with_its_running_mean(peer, ledger):
    # The trainer that has it keeps the mean in float32 and averages over responses.
    mean = preference.RunningMean()
    for step in BEFORE:
        mean.observe(sum(step), len(step))
    rewards = BETA * (DATA["logprobs"].sum(1) - DATA["ref_logprobs"])
    found = ours(BCO[1], level=mean.with_(float(rewards.sum()), 2 * N))
    compare(ledger, "bco, halved (float32 mean)", OLDER, found, peer["bco"], factor=0.5, bound=1e-6)


def test_xpo(peer, ledger):
    compare(ledger, "xpo", OLDER, ours(XPO[1]), peer["xpo"])


def test_the_sigmoid_loss_there_ignores_label_smoothing(peer, ledger):
    theirs = peer[SMOOTHED[0]["name"]]
    compare(ledger, "sigmoid, smoothing ignored there", PEER, ours({}), theirs)
    ledger.apart("sigmoid smoothed: loss", PEER, ours(SMOOTHED[1])[0], theirs["loss"])


def test_length_normalised_ipo_is_not_the_papers(peer, ledger):
    loss, _ = ours({"loss_type": "ipo"})
    ledger.apart("ipo summed: loss, against averaged", PEER, loss, peer["ipo"]["loss"])
