"""Profile `trl` against the last TRL that has PPO: from scripted responses to trained weights."""

import pytest
import torch

from nplus.algorithms import ppo
from nplus.batches import Generation, PromptBatch
from nplus.config import PPOConfig
from nplus.config.profiles import profile_tree
from nplus.models.scalar import ScalarModel
from nplus.ops.responses import response_mask_BR
from nplus.rollout import Scores, add_values, collect, logprobs_of, rm_scores
from nplus.stages import ppo as stage
from nplus.training.optim import Optimizer, schedule

PEER = "trl-1.12.0"
EOS, PAD, VOCAB = 0, 1, 300
WIDTH = 6
# Where the EOS of a response stands: in the middle, in the last slot, nowhere, or first.
ENDS = (2, WIDTH - 1, None, 0)

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 3,
    "response_length": WIDTH,
    "temperature": 0.7,
    "learning_rate": 2e-3,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.3,
    "seed": 1,
}
ACCUMULATES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def case(name, *, ends=ENDS, batches=3, updates=1, **args):
    """A case of the probe: `batches` batches of named prompts, each with a fixed response."""
    args = DEFAULTS | args
    size = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
    generator = torch.Generator().manual_seed(args["seed"])

    def words(n):
        return torch.randint(2, VOCAB, (n,), generator=generator).tolist()

    queries = [[*words(2 + i % 4), 2 + i] for i in range(batches * size)]
    responses = [words(WIDTH) for _ in queries]
    for i, response in enumerate(responses):
        if ends[i % len(ends)] is not None:
            response[ends[i % len(ends)]] = EOS  # words go on behind it
    args["total_episodes"] = updates * size
    return {"name": name, "args": args, "queries": queries, "responses": responses}


CASES = [
    case("seed 1"),
    case("seed 2", seed=2, kl_estimator="k3"),
    case("seed 3", seed=3, gamma=0.96, lam=0.8, missing_eos_penalty=None),
    case("whitened rewards", whiten_rewards=True, kl_estimator="k3"),
    case("whitened rewards, seed 2", whiten_rewards=True, seed=2, gamma=0.9, lam=1.0),
    case("accumulation", **ACCUMULATES),
    case("two minibatches", num_mini_batches=2),
    case("two updates", updates=2, learning_rate=1e-3, **ACCUMULATES),
    case("no stop token", stop_token=None, missing_eos_penalty=0.5, temperature=1.3),
]
MINIBATCHES_ACCUMULATED = case("minibatches, accumulated", num_mini_batches=2, **ACCUMULATES)
LAST_OF_THE_PASS = case("last batch of the pass", batches=1, **ACCUMULATES)
ALL_STOP_EARLY = case("all stop early", ends=(2, 0, 3))
ODD_CASES = [MINIBATCHES_ACCUMULATED, LAST_OF_THE_PASS, ALL_STOP_EARLY]


@pytest.fixture(scope="module")
def peer(run_probe, model_dirs, tokenizer_dir):
    """`case name -> (tensors, log)` of the peer's runs."""
    spec = {"models": model_dirs, "tokenizer": tokenizer_dir, "cases": CASES + ODD_CASES}
    tensors, logs = run_probe(PEER, "ppo", spec)
    assert f"trl-{logs['version']}" == PEER
    return {name: (tensors[name], logs[name]) for name in tensors}


# --- the same with nplus ------------------------------------------------------------------------


def config(case, *, profile="trl", **changed):
    """A profile with the settings of a case, all under their own names; `changed` wins."""
    args = case["args"]
    tree = PPOConfig().model_dump()
    for key, value in profile_tree(profile).items():
        tree[key] = tree[key] | value if isinstance(value, dict) else value
    size = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
    tree["optim"]["learning_rate"] = args["learning_rate"]
    tree["sampling"] |= {k: args[k] for k in ("temperature", "response_length")}
    tree |= {"batch_size": size, "total_episodes": args["total_episodes"]}
    tree["micro_batch_size"] = min(
        args["per_device_train_batch_size"], size // args["num_mini_batches"]
    )
    if args["stop_token"] is None:
        tree["stop_token"] = "none"
        tree["sampling"]["stop"] = "length"
    named = ("num_mini_batches", "num_ppo_epochs", "kl_coef", "missing_eos_penalty", "kl_estimator")
    for name in (*named, "gamma", "lam", "whiten_rewards"):
        tree[name] = args.get(name, tree[name])
    if tree["missing_eos_penalty"] is None:
        tree["missing_eos"] = "replace"  # which of the two means nothing without a penalty
    for key, value in changed.items():
        tree[key] = tree[key] | value if isinstance(value, dict) else value
    return PPOConfig.model_validate(tree)


class Scripted:
    """An engine that gives each prompt its scripted response and the peer's sampled log-probs."""

    def __init__(self, generation):
        self.generation = generation
        self.row = {key: i for i, key in enumerate(generation.prompts.keys)}

    def generate(self, prompts, sampling, noise_BR):
        return self.generation.rows(torch.tensor([self.row[key] for key in prompts.keys]))


def generation(case, found, step, width):
    """The responses of one update, by the script, in the peer's order of prompts."""
    tokens_BP = found["queries"][step]
    mask_BP = tokens_BP != PAD
    kept = [tuple(row[mask].tolist()) for row, mask in zip(tokens_BP, mask_BP, strict=True)]
    script = {tuple(q): r for q, r in zip(case["queries"], case["responses"], strict=True)}
    tokens_BR = torch.tensor([script[row] for row in kept])[:, :width]
    mask_BR = response_mask_BR(tokens_BR, EOS)
    if case["args"]["stop_token"] == "eos":
        tokens_BR = tokens_BR.masked_fill(~mask_BR, PAD)
    logprobs_BR = torch.zeros(tokens_BR.shape, dtype=torch.float64)
    theirs_BR = found["logprobs"][step].double()
    logprobs_BR[:, : theirs_BR.shape[1]] = theirs_BR[:, :width]
    keys = tuple(" ".join(map(str, row)) for row in kept)
    return Generation(PromptBatch(tokens_BP, mask_BP, keys), tokens_BR, mask_BR, logprobs_BR)


class Ours:
    """nplus on one case, update by update."""

    def __init__(self, case, found, dirs, load_policy, cfg, stage_context, monkeypatch):
        self.case, self.found, self.cfg = case, found, cfg
        self.policy = load_policy(dirs["policy"])
        self.reference = load_policy(dirs["reference"])
        self.reward = ScalarModel.load(dirs["reward"])
        self.critic = ScalarModel.load(dirs["critic"])
        self.optimizers = {
            name: Optimizer(module.named_parameters(), cfg.optim)
            for name, module in (("policy", self.policy), ("critic", self.critic))
        }
        self.ctx = stage_context(ppo=cfg.model_dump(), data={"max_response_tokens": WIDTH})
        self.monkeypatch = monkeypatch
        self.losses = {"policy_avg": [], "value_avg": []}

    def rollout(self, step, width=WIDTH):
        """The scored and valued rollout of update `step`, by the product's own loop."""
        whole, cfg = generation(self.case, self.found, step, width), self.cfg
        rollout = collect(
            Scripted(whole),
            whole.prompts,
            cfg.sampling,
            torch.zeros(whole.tokens_BR.shape),
            policy=self.policy,
            reference=self.reference,
            score=lambda g: Scores.of(rm_scores(self.reward, g)),
            eos_id=EOS,
            size=64,
            old_logprobs=cfg.old_logprobs,
            tempered=cfg.tempered,
            stop_token=cfg.stop_token,
        )
        return add_values(rollout, self.critic, size=64)

    def credit(self, step, width=WIDTH):
        return ppo.credit(self.rollout(step, width), self.cfg)

    def train(self, batch, step):
        """All optimiser steps of an update, in the peer's permutations."""
        cfg = self.cfg

        def told(objective):
            def tell(*args):
                found = objective(*args)
                for name, (_, mean) in found.terms.items():
                    self.losses[name].append(mean.sum / mean.count)
                return found

            return tell

        orders = self.found["b_inds"][step * cfg.num_ppo_epochs :]
        updates = cfg.total_episodes // cfg.batch_size
        for optimizer in self.optimizers.values():
            optimizer.set_factor(schedule(cfg.optim.lr_scheduler_type, step, updates))
        with self.monkeypatch.context() as patch:
            patch.setattr(stage, "epoch_order", lambda seed, name, epoch, n: orders[epoch].numpy())
            for name in ("policy_objective", "value_objective"):
                patch.setattr(ppo, name, told(getattr(ppo, name)))
            metrics, _ = stage.train_on(
                batch, self.policy, self.critic, self.optimizers, self.ctx, step
            )
        return metrics


@pytest.fixture
def ours(peer, model_dirs, load_policy, stage_context, monkeypatch):
    """`ours(case, **changed)`: nplus on what the peer ran, profile `trl` but for `changed`."""

    def build(case, **changed):
        return Ours(
            case,
            peer[case["name"]][0],
            model_dirs,
            load_policy,
            config(case, **changed),
            stage_context,
            monkeypatch,
        )

    return build


def same_weights(ledger, mine, found, label=""):
    """Every parameter of policy and critic."""
    for kind, module in (("policy", mine.policy), ("critic", mine.critic.network)):
        theirs = {
            name.split("/", 1)[1]: p for name, p in found.items() if name.startswith(f"{kind}/")
        }
        named = dict(module.named_parameters())
        assert named.keys() == theirs.keys()
        for name, p in named.items():
            ledger.same(f"{kind} weights{label}", PEER, p.detach(), theirs[name])


# --- agreement ----------------------------------------------------------------------------------

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


@by_name
def test_the_peer_trained_on_the_script(case, peer):
    found, _ = peer[case["name"]]
    updates = case["args"]["total_episodes"] // len(found["queries"][0])
    for step in range(updates):
        scripted = generation(case, found, step, WIDTH)
        assert torch.equal(found["query_responses"][step], scripted.sequences()[0])
        ends = scripted.response_mask_BR.sum(1)
        has_eos = (scripted.tokens_BR == EOS).any(1)
        # EOS in the middle, in the last slot, and nowhere.
        assert (ends < WIDTH).any()
        assert (has_eos & (ends == WIDTH)).any()
        assert (~has_eos).any()


@by_name
def test_rollout_and_credit(case, peer, ours, ledger):
    found, log = peer[case["name"]]
    mine = ours(case)
    valued = mine.rollout(0)
    rollout, mask_BR = valued.rollout, valued.rollout.generation.response_mask_BR
    fresh_BR = logprobs_of(mine.policy, rollout.generation, mine.cfg.sampling.temperature)
    # transformers keeps the scores of a generation in float32.
    theirs_BR = found["logprobs"][0].double().masked_fill(~mask_BR, 0.0)
    ledger.same("sampled log-probs (float32 there)", PEER, fresh_BR, theirs_BR, bound=1e-5)
    theirs_BR = found["ref_logprobs"][0].masked_fill(~mask_BR, 0.0)
    ledger.same("reference log-probs", PEER, rollout.ref_logprobs_BR, theirs_BR)
    ledger.same("values", PEER, valued.values_BR, found["values"][0])
    batch, metrics = ppo.credit(valued, mine.cfg)
    ledger.same("advantages", PEER, batch.advantages_BR, found["advantages"][0])
    ledger.same("returns", PEER, batch.returns_BR, found["returns"][0])
    if case["args"]["total_episodes"] == len(rollout):
        for name in ("kl", "non_score_reward", "rlhf_reward"):
            name = f"objective/{name}"
            ledger.same(name, PEER, metrics[name].value, log[name])
        # The peer's scores are those after the penalty; its entropy is summed in float32.
        penalised = metrics["objective/scores_penalised"].value
        ledger.same("objective/scores", PEER, penalised, log["objective/scores"])
        name = "objective/entropy"
        label = f"{name} (float32 there)"
        ledger.same(label, PEER, metrics[name].value, log[name], bound=1e-5)


@by_name
def test_the_update(case, peer, ours, ledger):
    found, _ = peer[case["name"]]
    mine = ours(case)
    norms = []
    for step in range(case["args"]["total_episodes"] // mine.cfg.batch_size):
        batch, _ = mine.credit(step)
        ledger.same("advantages", PEER, batch.advantages_BR, found["advantages"][step])
        metrics = mine.train(batch, step)
        norms.append(metrics["grad_norm"].value)
        assert metrics["policy/clipfrac_avg"].value > 0.0
        assert metrics["val/clipfrac_avg"].value > 0.0
    for name, theirs in (("policy_avg", "pg_loss"), ("value_avg", "vf_loss")):
        losses = torch.stack(mine.losses[name]).detach()
        ledger.same(f"loss/{name}, every micro-batch", PEER, losses, found[theirs])
    same_weights(ledger, mine, found)


# --- where the peer does otherwise --------------------------------------------------------------


def test_minibatches_with_accumulation_are_one_step_in_the_peer(peer, ours, ledger):
    # The peer accumulates over its minibatches: two of them, of one micro-batch each, make one
    # optimiser step an epoch. nplus takes a step for each.
    case, (found, _) = MINIBATCHES_ACCUMULATED, peer[MINIBATCHES_ACCUMULATED["name"]]
    epochs = case["args"]["num_ppo_epochs"]
    assert len(found["grad_norms"]) == epochs
    mine = ours(case, num_mini_batches=1)
    mine.train(mine.credit(0)[0], 0)
    same_weights(ledger, mine, found, ", accumulated over minibatches")
    other = ours(case)
    other.train(other.credit(0)[0], 0)
    name = "gpt_neox.embed_in.weight"
    weights = other.policy.get_parameter(name).detach()
    ledger.apart("policy weights, a step a minibatch", PEER, weights, found[f"policy/{name}"])


def test_the_last_batch_of_a_pass_is_not_accumulated_in_the_peer(peer, ours, ledger):
    # accelerate steps at the end of a data loader, and the peer's loader is at its end all through
    # the update of the last batch of a pass: every micro-batch is an optimiser step.
    case, (found, _) = LAST_OF_THE_PASS, peer[LAST_OF_THE_PASS["name"]]
    parts = case["args"]["gradient_accumulation_steps"]
    assert len(found["grad_norms"]) == parts * case["args"]["num_ppo_epochs"]
    # Each step's loss is divided by the accumulation all the same, which Adam sees by its epsilon.
    epsilon = parts * config(case).optim.adam_epsilon
    mine = ours(case, num_mini_batches=parts, optim={"adam_epsilon": epsilon})
    mine.train(mine.credit(0)[0], 0)
    same_weights(ledger, mine, found, ", last batch of a pass")


def test_the_longest_response_loses_its_value_slot_in_the_peer(peer, ours, ledger):
    # Where every response ends early the peer's rollout is as wide as the longest, whose score then
    # lands on the EOS; nplus keeps the slot behind it, as the paper does (details F1, F4).
    case, (found, _) = ALL_STOP_EARLY, peer[ALL_STOP_EARLY["name"]]
    theirs_BR, width = found["advantages"][0], 4
    assert theirs_BR.shape[1] == width
    batch, _ = ours(case).credit(0, width)
    ledger.same("advantages, cut at the longest response", PEER, batch.advantages_BR, theirs_BR)
    batch, _ = ours(case).credit(0)
    assert batch.advantages_BR.shape[1] == width + 1
    kept_BR = batch.advantages_BR[:, :-1]
    label = "advantages, slot after the longest response"
    ledger.apart(label, PEER, kept_BR, theirs_BR, least=1e-4)


# --- contrasts ----------------------------------------------------------------------------------


def test_the_biased_variance_scales_the_advantages(peer, ours, ledger):
    # Without a penalty for a missing EOS, profile `paper` differs from `trl` before the update in
    # the variance alone: its standard deviation is sqrt((n - 1) / n) of the peer's.
    case = next(case for case in CASES if case["args"]["missing_eos_penalty"] is None)
    theirs_BR = peer[case["name"]][0]["advantages"][0]
    batch, _ = ours(case, profile="paper").credit(0)
    n = int(batch.response_mask_BR.sum())
    ledger.apart("advantages, profile paper", PEER, batch.advantages_BR, theirs_BR)
    scaled_BR = batch.advantages_BR * ((n - 1) / n) ** 0.5
    ledger.same("advantages, profile paper, times sqrt((n-1)/n)", PEER, scaled_BR, theirs_BR)


@pytest.mark.parametrize(
    ("label", "changed"),
    [
        ("missing_eos=replace", {"missing_eos": "replace"}),
        ("score_step=eos", {"score_step": "eos", "value_mask": "response"}),
        ("kl_estimator=k3", {"kl_estimator": "k3"}),
        ("whiten_rewards=true", {"whiten_rewards": True}),
        ("tempered without reference", {"tempered": ("old", "new")}),
    ],
)
def test_another_value_of_a_key_shows(label, changed, peer, ours, ledger):
    case, (found, _) = CASES[0], peer[CASES[0]["name"]]
    batch, _ = ours(case, **changed).credit(0)
    ledger.apart(f"advantages, {label}", PEER, batch.advantages_BR, found["advantages"][0])


@pytest.mark.parametrize(
    ("label", "changed"),
    [
        ("normalise=global", {"normalise": "global"}),
        ("optim.adam_epsilon=1e-5", {"optim": {"adam_epsilon": 1e-5}}),
        ("optim.weight_decay=0.01", {"optim": {"weight_decay": 0.01}}),
        ("optim.max_grad_norm=1", {"optim": {"max_grad_norm": 1.0}}),
        ("log_ratio_clamp=0.05", {"log_ratio_clamp": 0.05}),
    ],
)
def test_another_value_of_a_key_shows_in_the_weights(label, changed, peer, ours, ledger):
    case = next(case for case in CASES if case["name"] == "accumulation")
    found, _ = peer[case["name"]]
    mine = ours(case, **changed)
    mine.train(mine.credit(0)[0], 0)
    moved = max(
        float((p.detach() - found[f"policy/{name}"]).abs().max())
        for name, p in mine.policy.named_parameters()
    )
    ledger.apart(f"policy weights, {label}", PEER, moved, 0.0, least=1e-5)


def test_the_peer_does_not_clip_gradients(peer):
    # It inherits `max_grad_norm: 1.0`; the profile has none, and the weights above agree.
    norms = torch.cat([found["grad_norms"] for found, _ in peer.values()])
    assert norms.max() > 1.0
