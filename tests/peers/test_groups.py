"""RLOO, GRPO and their relatives against current TRL: advantages, loss, gradient by log-probs.

Both sides get the same responses, rewards and log-probs. Where they differ by design: TRL has no
missing-EOS trick here, so ours is off; and a group of equals, whose mean may miss it by an ulp, has
advantages of exactly 0 with us.
"""

import pytest
import torch

from nplus.algorithms import reinforce
from nplus.batches import Generation, GroupRollout, PromptBatch, Rollout
from nplus.config import ReinforceConfig

PEER = "trl-1.16.0"
ENVIRONMENT = "trl-current"
EOS, PAD, WIDTH = 0, 1, 7
LENGTHS = (7, 3, 1, 5, 2, 6, 4, 7)
TRUNCATED = (0, 7)
"""Rows without EOS."""


def case(name, kind, ours, *, rewards=None, seed=0, **args):
    """`args` are the peer's settings, `ours` those of nplus that mean the same."""
    g = torch.Generator().manual_seed(seed)
    responses = [torch.randint(2, 300, (n,), generator=g).tolist() for n in LENGTHS]
    for b, response in enumerate(responses):
        if b not in TRUNCATED:
            response[-1] = EOS
    shape = (len(LENGTHS), WIDTH)

    def drawn(spread):
        return (-spread * torch.rand(shape, generator=g, dtype=torch.float64)).tolist()

    return {
        "name": name,
        "kind": kind,
        "responses": responses,
        "rewards": rewards or torch.randn(len(LENGTHS), generator=g, dtype=torch.float64).tolist(),
        "old": drawn(1.0),
        "reference": drawn(1.0),
        "new": drawn(1.0),
        "args": {"num_generations": 4, "max_completion_length": WIDTH, "beta": 0.0}
        | ({"use_bias_correction_kl": False} if kind == "grpo" else {})
        | args,
        "ours": ours,
    }


GRPO = {"algorithm": "grpo", "kl_coef": 0.0}
KL = {"kl_coef": 0.3}
CASES = [
    case("rloo", "rloo", {"kl_coef": 0.0}),
    case("rloo, kl", "rloo", KL, beta=0.3),
    case("rloo, pairs", "rloo", KL, beta=0.3, num_generations=2, seed=1),
    case(
        "rloo, normalised",
        "rloo",
        {"whitening": "sequence"} | KL,
        beta=0.3,
        normalize_advantages=True,
    ),
    case(
        "rloo, clip",
        "rloo",
        {"cliprange": 0.4, "cliprange_high": 0.9, "kl_coef": 0.0},
        epsilon=0.4,
        epsilon_high=0.9,
    ),
    case("grpo", "grpo", GRPO, loss_type="grpo"),
    case("grpo, kl", "grpo", GRPO | KL, loss_type="grpo", beta=0.3),
    case(
        "grpo, batch",
        "grpo",
        GRPO | {"scale": "batch_std"},
        loss_type="grpo",
        scale_rewards="batch",
    ),
    case(
        "grpo, unscaled", "grpo", GRPO | {"scale": "none"}, loss_type="grpo", scale_rewards="none"
    ),
    case("grpo, tokens", "grpo", GRPO | KL | {"aggregation": "token"}, loss_type="bnpo", beta=0.3),
    case(
        "grpo, truncated out",
        "grpo",
        GRPO | KL | {"mask_truncated_completions": True},
        loss_type="grpo",
        beta=0.3,
        mask_truncated_completions=True,
    ),
    case(
        "grpo, a group of equals",
        "grpo",
        GRPO,
        loss_type="grpo",
        rewards=[0.1] * 4 + [1.0, 0.0, 2.0, 0.0],
    ),
    case(
        "grpo, corrected kl",
        "grpo",
        GRPO | KL | {"use_bias_correction_kl": True},
        loss_type="grpo",
        beta=0.3,
        use_bias_correction_kl=True,
    ),
    case(
        "dr grpo",
        "grpo",
        {"algorithm": "dr_grpo"} | KL,
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.3,
    ),
    case(
        "dapo",
        "grpo",
        {"algorithm": "dapo", "overlong_share": None},
        loss_type="dapo",
        epsilon_high=0.28,
    ),
    case(
        "gspo",
        "grpo",
        {"algorithm": "gspo", "cliprange": 0.05, "cliprange_high": 0.1},
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon=0.05,
        epsilon_high=0.1,
    ),
]


@pytest.fixture(scope="module")
def peer(run_probe, model_dirs, tokenizer_dir):
    """`case name -> tensors`."""
    cases = [{k: v for k, v in each.items() if k != "ours"} for each in CASES]
    spec = {"models": model_dirs, "tokenizer": tokenizer_dir, "cases": cases}
    tensors, logs = run_probe(ENVIRONMENT, "groups", spec)
    assert f"trl-{logs['version']}" == PEER
    return tensors


def of_case(each):
    """The scripted rollout, and its settings."""
    rows = len(LENGTHS)
    cfg = ReinforceConfig.model_validate(
        {
            "num_generations": each["args"]["num_generations"],
            "batch_size": rows,
            "micro_batch_size": rows,
            "total_episodes": rows,
            "missing_eos_penalty": None,
            "sampling": {"response_length": WIDTH},
            "algorithm": "rloo",
        }
        | each["ours"]
    )
    mask = torch.tensor([[r < n for r in range(WIDTH)] for n in LENGTHS])
    tokens = torch.full((rows, WIDTH), PAD)
    for b, response in enumerate(each["responses"]):
        tokens[b, : len(response)] = torch.tensor(response)
    prompts = PromptBatch(
        torch.tensor([[5, 6]] * rows), torch.ones(rows, 2).bool(), tuple(map(str, range(rows)))
    )
    old, reference = (
        torch.tensor(each[name], dtype=torch.float64) for name in ("old", "reference")
    )
    rollout = Rollout(
        Generation(prompts, tokens, mask, old),
        old,
        reference,
        torch.tensor(each["rewards"], dtype=torch.float64),
        torch.tensor([b not in TRUNCATED for b in range(rows)]),
        torch.zeros(rows, dtype=torch.long),
    )
    none_B = torch.zeros(rows, dtype=torch.float64)
    return GroupRollout(rollout, none_B, none_B == 0), cfg


@pytest.mark.parametrize("each", CASES, ids=lambda each: each["name"])
def test_advantages_loss_and_gradient(each, peer, ledger):
    theirs, (grouped, cfg) = peer[each["name"]], of_case(each)
    batch, _ = reinforce.credit(grouped, cfg)
    if len(batch) != len(LENGTHS):
        pytest.fail("no group was to be left out")
    first = batch.advantages_BR[:, 0]
    ledger.same(f"{each['kind']} advantages", PEER, first, theirs["advantages"], bound=1e-9)
    new = torch.tensor(each["new"], dtype=torch.float64, requires_grad=True)
    found = reinforce.objective(new, torch.zeros_like(new), batch, cfg)
    loss = sum(weight * mean.sum / mean.count for weight, mean in found.terms.values())
    loss.backward()
    ledger.same(f"{each['kind']} loss", PEER, loss.detach(), theirs["loss"], bound=1e-9)
    ledger.same(f"{each['kind']} gradient", PEER, new.grad, theirs["gradient"], bound=1e-9)
