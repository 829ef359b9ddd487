"""SFT, reward modelling and DPO against current TRL: batches, losses, implicit rewards, gradients.

Both sides start from text, so tokens and masks are compared too. The vocabulary head of current TRL
computes in float32 whatever the model's type, for SFT and DPO; the DPO trainer of the older TRL
does not, so DPO is compared with both.
"""

from functools import partial

import pytest
import torch

from nplus.algorithms import preference, reward, supervised
from nplus.config import DPOConfig, OptimConfig
from nplus.data.collate import pair_batch, pair_rows, sequence_rows, token_batch
from nplus.data.tokens import Codec
from nplus.models.scalar import ScalarModel
from nplus.ops.losses import target_mask
from nplus.records import Comparison, Demonstration
from nplus.stages.forwards import pair_logprobs, pair_scores, token_objective
from nplus.training.optim import Optimizer
from nplus.training.update import update

PEER, OLDER = "trl-1.16.0", "trl-1.12.0"
ENVIRONMENTS = {PEER: "trl-current", OLDER: OLDER}
BOUNDS = {PEER: 1e-5, OLDER: 1e-6}
"""Of DPO: sums of up to 50 log-probs, of a float32 head and of a float64 one."""
QUERIES = (
    "POST: my dog ate the cake.\n\nTL;DR:",
    "POST: we moved, and the neighbours play drums at night.\n\nTL;DR:",
    "POST: rent.\n\nTL;DR:",
    "POST: I told her twice that the train leaves early.\n\nTL;DR:",
)
RESPONSES = (
    ("Dog ate the cake.", "Cake is good and so are dogs, I think."),
    ("Loud drums next door since we moved.", "Drums."),
    ("Rent is due.", "The rent is too high and nobody cares about it."),
    ("She will miss the train.", "Trains leave early."),
)
MARGINS = (0.5, 0.0, 1.25, 0.25)  # exact in float32, which is what both sides keep them in


def sft(name, **args):
    rows = [
        {"prompt": query, "completion": f" {chosen}"}
        for query, (chosen, _) in zip(QUERIES, RESPONSES, strict=True)
    ]
    return _case(name, "sft", rows, **args)


def pairs(name, kind, *, margins=None, first=None, **args):
    rows = [
        {"prompt": query, "chosen": f" {chosen}", "rejected": f" {rejected}"}
        for query, (chosen, rejected) in zip(QUERIES, RESPONSES, strict=True)
    ]
    if margins is not None:
        rows = [row | {"margin": margin} for row, margin in zip(rows, margins, strict=True)]
    return _case(name, kind, rows[:first], **args)


def _case(name, kind, rows, **args):
    args = {"per_device_train_batch_size": len(rows), "learning_rate": 1e-6} | args
    return {"name": name, "kind": kind, "rows": rows, "args": args}


SFT = [
    sft("sft, completion only", completion_only_loss=True),
    sft("sft, full sequence", completion_only_loss=False),
    sft(
        "sft, accumulated",
        completion_only_loss=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    ),
]
REWARD = [
    pairs("reward", "reward"),
    pairs("reward, margin", "reward", margins=MARGINS),
    pairs("reward, centred", "reward", center_rewards_coefficient=0.3),
    pairs("reward, all", "reward", margins=MARGINS, center_rewards_coefficient=0.01),
]
ROBUST = {"loss_type": "robust", "label_smoothing": 0.2}
DPO = {
    "dpo, sigmoid": ({"loss_type": "sigmoid"}, {}),
    "dpo, hinge": ({"loss_type": "hinge"}, {}),
    "dpo, ipo": ({"loss_type": "ipo"}, {"ipo_length": "mean"}),
    "dpo, robust": (ROBUST, {}),
}
# One pair to a batch makes `aot` the smoothed sigmoid loss: there is nothing to sort.
SMOOTHED = pairs("dpo, smoothed", "dpo", first=1, loss_type=["aot"], label_smoothing=0.2, beta=0.1)
UNSMOOTHED = pairs(
    "dpo, sigmoid with label_smoothing",
    "dpo",
    loss_type=["sigmoid"],
    label_smoothing=0.2,
    beta=0.1,
)
DPO_CASES = [
    pairs(name, "dpo", beta=0.1, **{**args, "loss_type": [args["loss_type"]]})
    for name, (args, _) in DPO.items()
] + [SMOOTHED, UNSMOOTHED]
by_name = {"ids": lambda case: case["name"]}


@pytest.fixture(scope="module")
def peer(run_probe, model_dirs, tokenizer_dir):
    """`peer, case name -> (tensors, log)` of the peers' runs."""
    found = {}
    for name, cases in ((PEER, SFT + REWARD + DPO_CASES), (OLDER, DPO_CASES)):
        spec = {"models": model_dirs, "tokenizer": tokenizer_dir, "cases": cases}
        tensors, logs = run_probe(ENVIRONMENTS[name], "supervised", spec)
        assert f"trl-{logs['version']}" == name
        found |= {(name, case): (tensors[case], logs[case]) for case in tensors}
    return found


@pytest.fixture(scope="module")
def codec(tokenizer_dir):
    return Codec.load(tokenizer_dir)


class Keeping(Optimizer):
    """Keeps the gradient that the step used."""

    def step(self):
        self.gradients = [p.grad.clone() for p in self.parameters]
        super().step()


def step(module, micros, counts, objective):
    """The product's update; its metrics, and the gradient by name."""
    named = list(module.named_parameters())
    optimizer = Keeping(named, OptimConfig())
    metrics = update(micros, counts=counts, objectives=[objective], optimizers=[optimizer])
    names = [name for name, _ in named]
    return metrics, dict(zip(names, optimizer.gradients, strict=True))


def same_gradient(ledger, label, mine, found, peer=PEER, bound=1e-6):
    theirs = {k.split("/", 1)[1]: g for k, g in found.items() if k.startswith("gradient/")}
    assert mine.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in mine.values()) > 1e-3
    for name, gradient in mine.items():
        ledger.same(f"{label}: gradient", peer, gradient, theirs[name], bound=bound)


def batches(found):
    """The peer's micro-batches, in order."""
    grouped = {}
    for key, value in found.items():
        if key.startswith("batch "):
            which, name = key.split("/", 1)
            grouped.setdefault(which, {})[name] = value
    return [grouped[which] for which in sorted(grouped)]


def order(theirs_BT, mask_BT, ours):
    """For each row of the peer's batch, the index of the same ids among our rows."""
    kept = [row[m.bool()].tolist() for row, m in zip(theirs_BT, mask_BT, strict=True)]
    return [ours.index(row) for row in kept]


# --- SFT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SFT, **by_name)
def test_sft(case, peer, model_dirs, codec, load_policy, ledger):
    found, _ = peer[PEER, case["name"]]
    policy = load_policy(model_dirs["policy"])
    posts = [
        Demonstration(str(i), query, chosen)
        for i, (query, (chosen, _)) in enumerate(zip(QUERIES, RESPONSES, strict=True))
    ]
    rows = sequence_rows(codec, posts)
    loss_on = "response" if case["args"]["completion_only_loss"] else "all"
    micros = []
    for theirs in batches(found):
        at = order(theirs["input_ids"], theirs["attention_mask"], [[*q, *r] for q, r in rows])
        micro = token_batch([rows[i] for i in at], pad_id=codec.pad_id, loss_on=loss_on)
        assert torch.equal(micro.tokens_BT, theirs["input_ids"])
        assert torch.equal(micro.mask_BT, theirs["attention_mask"].bool())
        # The first column predicts nothing; the peer shifts it away.
        targets_BT = target_mask(micro.mask_BT, micro.loss_mask_BT)
        assert torch.equal(targets_BT[:, 1:], (theirs["labels"] != -100)[:, 1:])
        micros.append(micro)

    def objective(micro):
        return token_objective(policy, micro)

    metrics, gradient = step(policy, micros, supervised.counts, objective)
    # Over accumulated micro-batches the peer's losses are parts of the mean over all tokens.
    theirs = sum(batch["loss"] for batch in batches(found))
    label = f"{case['name']} (float32 head there)"
    ledger.same(f"{label}: loss", PEER, metrics["loss/train"].value, theirs)
    same_gradient(ledger, label, gradient, found)


def test_the_two_sft_losses_differ(peer, ledger):
    only, full = (batches(peer[PEER, case["name"]][0])[0]["loss"] for case in SFT[:2])
    ledger.apart("sft: loss, completion only against full", PEER, only, full)


# --- pairs --------------------------------------------------------------------------------------


def pair_micro(case, theirs, codec):
    """Our batch of a case's pairs, in the peer's order; ids and masks are equal."""
    found = [
        Comparison(str(i), row["prompt"], (row["rejected"], row["chosen"]), ("a", "b"), 1)
        for i, row in enumerate(case["rows"])
    ]
    rows = [
        row._replace(margin=given.get("margin", 0.0))
        for row, given in zip(pair_rows(codec, found), case["rows"], strict=True)
    ]
    n = len(rows)
    chosen = [[*row.query, *row.chosen] for row in rows]
    at = order(theirs["input_ids"][:n], theirs["attention_mask"][:n], chosen)
    micro = pair_batch([rows[i] for i in at], pad_id=codec.pad_id)
    tokens_2NT, mask_2NT = micro.stacked()
    assert torch.equal(tokens_2NT, theirs["input_ids"])
    assert torch.equal(mask_2NT, theirs["attention_mask"].bool())
    if "completion_mask" in theirs:
        masks = (micro.chosen_response_mask_NT, micro.rejected_response_mask_NT)
        assert torch.equal(torch.cat(masks), theirs["completion_mask"].bool())
    return micro


@pytest.mark.parametrize("case", REWARD, **by_name)
def test_reward(case, peer, model_dirs, codec, ledger):
    found, log = peer[PEER, case["name"]]
    (theirs,) = batches(found)
    micro = pair_micro(case, theirs, codec)
    model = ScalarModel.load(model_dirs["reward"])

    def objective(micro):
        center = case["args"].get("center_rewards_coefficient", 0.0)
        return reward.objective(pair_scores(model, micro), micro, center=center)

    metrics, gradient = step(model, [micro], reward.counts, objective)
    ledger.same(f"{case['name']}: loss", PEER, metrics["loss/train"].value, theirs["loss"])
    gradient = {name.removeprefix("network."): g for name, g in gradient.items()}
    same_gradient(ledger, case["name"], gradient, found)
    for name in ("accuracy", "margin", "mean_reward"):
        ledger.same(f"reward: {name}", PEER, metrics[name].value, log[name])


def test_margin_and_centring_show(peer, ledger):
    plain, *others = (batches(peer[PEER, case["name"]][0])[0]["loss"] for case in REWARD)
    for case, loss in zip(REWARD[1:], others, strict=True):
        ledger.apart(f"{case['name']}: loss, against without", PEER, loss, plain)


@pytest.fixture(params=ENVIRONMENTS)
def dpo(request, peer, model_dirs, codec, load_policy, ledger):
    return DPOSide(request.param, peer, model_dirs, codec, load_policy, ledger)


class DPOSide:
    """One peer's DPO runs, and the same cases with nplus."""

    def __init__(self, name, runs, model_dirs, codec, load_policy, ledger):
        self.name, self.runs, self.ledger = name, runs, ledger
        self.model_dirs, self.codec, self.load_policy = model_dirs, codec, load_policy
        self.bound = BOUNDS[name]

    def found(self, case):
        return self.runs[self.name, case["name"]]

    def label(self, text):
        return f"{text} (float32 head there)" if self.bound > 1e-6 else text

    def same(self, label, ours, theirs, *, bound=None):
        bound = bound or self.bound
        self.ledger.same(self.label(label), self.name, ours, theirs, bound=bound)

    def loss(self, case):
        (theirs,) = batches(self.found(case)[0])
        return theirs["loss"]

    def ours(self, case, **keys):
        """nplus on a case: metrics and gradient."""
        (theirs,) = batches(self.found(case)[0])
        micro = pair_micro(case, theirs, self.codec)
        policy, reference = (
            self.load_policy(self.model_dirs[name]) for name in ("policy", "reference")
        )
        cfg = DPOConfig(beta=case["args"]["beta"], **keys)

        def objective(micro):
            with torch.no_grad():
                ref_logprobs_2N = pair_logprobs(reference, micro)
            return preference.objective(pair_logprobs(policy, micro), ref_logprobs_2N, micro, cfg)

        return step(policy, [micro], partial(preference.counts, cfg=cfg), objective)

    def compare(self, case, **keys):
        """Loss and gradient; returns our metrics."""
        metrics, gradient = self.ours(case, **keys)
        label = case["name"]
        self.same(f"{label}: loss", metrics["loss/train"].value, self.loss(case))
        same_gradient(
            self.ledger,
            self.label(label),
            gradient,
            self.found(case)[0],
            self.name,
            self.bound,
        )
        return metrics


@pytest.mark.parametrize("name", DPO)
def test_dpo(name, dpo):
    case = next(case for case in DPO_CASES if case["name"] == name)
    args, ours = DPO[name]
    metrics, (_, log) = dpo.compare(case, **args, **ours), dpo.found(case)
    told = [f"rewards/{n}" for n in ("chosen", "rejected", "margins", "accuracies")]
    for metric in told:
        dpo.same(f"dpo: {metric}", metrics[metric].value, log[metric])
    for metric in ("logps/chosen", "logps/rejected"):
        # Near -300, where neighbours in float32 are 3e-5 apart.
        bound = 1e-4 if dpo.bound > 1e-6 else None
        dpo.same(f"dpo: {metric}", metrics[metric].value, log[metric], bound=bound)


def test_smoothing(dpo):
    dpo.compare(SMOOTHED, label_smoothing=0.2)


def test_the_peers_sigmoid_loss_ignores_label_smoothing(dpo):
    metrics, _ = dpo.ours(UNSMOOTHED)
    dpo.same(f"{UNSMOOTHED['name']} there: loss", metrics["loss/train"].value, dpo.loss(UNSMOOTHED))
    metrics, _ = dpo.ours(UNSMOOTHED, label_smoothing=0.2)
    label = "dpo, label_smoothing on both sides: loss"
    dpo.ledger.apart(label, dpo.name, metrics["loss/train"].value, dpo.loss(UNSMOOTHED))


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("ipo, log-probs summed", {"loss_type": "ipo", "ipo_length": "sum"}),
        ("sigmoid for ipo", {"loss_type": "sigmoid"}),
    ],
)
def test_another_ipo_shows(label, keys, dpo):
    case = next(case for case in DPO_CASES if case["name"] == "dpo, ipo")
    metrics, _ = dpo.ours(case, **keys)
    dpo.ledger.apart(f"dpo, {label}: loss", dpo.name, metrics["loss/train"].value, dpo.loss(case))
