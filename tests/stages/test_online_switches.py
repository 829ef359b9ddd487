"""The online loop's switches, each in a loop that runs; and that a key covers every setting."""

import itertools
import math

import numpy as np
import pytest
import torch

from nplus.config import OnlineConfig
from nplus.runs.ledger import read_ledger
from nplus.stages import dpo
from nplus.stages.context import Context
from nplus.stages.online import sample, train
from nplus.stages.online.common import weights_hash
from nplus.stages.road import inputs_of, stage_config

QUICK = {"valid_prompts": 1}
"""What the validation of a round costs is of no interest here."""


def ledgers(root):
    return [row for path in root.ledgers() for row in read_ledger(path)]


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def alike(one, other):
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def saved(root, config, stage):
    """The weights that a finished stage left."""
    ctx = Context(config, torch.device("cpu"), None, root.stages())
    return ctx.policy(stage).state_dict()


def first_loss(root, stage):
    rows = root.stages()[stage].journal_rows()
    return next(row["metrics"]["loss/train"] for row in rows if row["step"] == 1)


def two_members(road_config):
    return {**road_config().reward.model_dump(), "members": 2}


# --- scores and pairs -----------------------------------------------------------------------------


def test_a_penalty_a_token_takes_off_tokens(again, loop_config):
    changed = {"length_penalty": 0.5, "length_unit": "tokens"}
    root = again(loop_config(**changed), until="round1_pair")
    rows = read_ledger(root.stages()["round1_pair"].ledger)
    assert {row.length_unit for row in rows} == {"tokens"}
    for row in rows:
        expected = [s - 0.5 * n for s, n in zip(row.scores, row.tokens, strict=True)]
        assert row.penalised == pytest.approx(expected, abs=1e-9)
    assert any(row.tokens != row.characters for row in rows)


def spread(members, one, other):
    """Variance over members of the difference between two responses."""
    return np.var([row[one] - row[other] for row in members])


def favourites(members):
    return [max(range(len(row)), key=row.__getitem__) for row in members]


def test_an_ensemble_picks_two_different_responses(again, loop_config, road_config):
    for pairing in ("thompson", "uncertain"):
        changed = {"scorer": "ensemble", "pairing": pairing, **QUICK}
        config = loop_config(reward=two_members(road_config), **changed)
        root = again(config, until="round1_pair" if pairing == "uncertain" else "round2_pair")
        rows = read_ledger(root.stages()["round1_pair"].ledger)
        if pairing == "thompson":
            rows += read_ledger(root.stages()["round2_pair"].ledger)
        assert {row.pairing for row in rows} == {pairing}
        assert any(not row.reason for row in rows)
        for row in rows:
            pair = {row.chosen, row.rejected}
            assert len(pair) == 2
            if not row.reason:
                assert row.responses[row.chosen] != row.responses[row.rejected]
            wanted = {*favourites(row.member_scores)}
            if pairing == "thompson":
                assert pair == wanted if len(wanted) == 2 else wanted < pair
            else:
                all_pairs = itertools.combinations(range(4), 2)
                most = max(spread(row.member_scores, *each) for each in all_pairs)
                assert spread(row.member_scores, *pair) == pytest.approx(most)


# --- who writes -----------------------------------------------------------------------------------


def test_each_source_writes_with_its_own_weights(again, loop_config, monkeypatch):
    """`previous` is SFT in round 1 and 2, and the first round's policy in round 3."""
    used, original = {}, sample.draw_several

    def seen(model, prompts, sampling, ctx, *, name, **options):
        used[name] = weights(model)
        return original(model, prompts, sampling, ctx, name=name, **options)

    monkeypatch.setattr(sample, "draw_several", seen)
    draw = ("current@1.0", "previous@0.7", "sft@0.5")
    config = loop_config(draw=draw, samples=3, rounds=3, **QUICK)
    root = again(config, until="round3_pair")
    writers = {1: ("sft",) * 3, 2: ("round1", "sft", "sft"), 3: ("round2", "round1", "sft")}
    stages = {"sft": "sft", "round1": "round1_train", "round2": "round2_train"}
    hashes = {name: weights_hash(root.stages()[stage]) for name, stage in stages.items()}
    assert len({*hashes.values()}) == 3
    for number, names in writers.items():
        rows = read_ledger(root.stages()[f"round{number}_pair"].ledger)
        assert {row.policies for row in rows} == {names}
        assert {row.policy_hashes for row in rows} == {tuple(hashes[name] for name in names)}
        assert {row.temperatures for row in rows} == {(1.0, 0.7, 0.5)}
        for source, name in zip(draw, names, strict=True):
            assert alike(used[f"round {number} {source}"], saved(root, config, stages[name]))


# --- where training begins, and what it refers to -------------------------------------------------


@pytest.mark.parametrize(
    ("init", "reference"), [("previous", "previous"), ("sft", "sft"), ("sft", "previous")]
)
def test_where_a_round_begins_and_what_it_refers_to(
    looped, again, loop_config, monkeypatch, init, reference
):
    """A loss of log 2 at the first step says that the policy is the reference still."""
    given, original = {}, train.dpo.train

    def seen(policy, reference, *args, name, **options):
        given[name] = weights(policy), weights(reference)
        return original(policy, reference, *args, name=name, **options)

    monkeypatch.setattr(train.dpo, "train", seen)
    config = loop_config(init=init, reference=reference, **QUICK)
    root = again(config, until="round2_train")
    stages = {"sft": "sft", "previous": "round1_train"}
    for model, key in zip(given["round2"], (init, reference), strict=True):
        assert alike(model, saved(root, config, stages[key]))
    assert not alike(saved(root, config, "sft"), saved(root, config, "round1_train"))
    equal = first_loss(root, "round2_train") == pytest.approx(math.log(2), abs=1e-6)
    assert equal == (init == reference)
    assert first_loss(looped, "round2_train") != pytest.approx(math.log(2), abs=1e-6)
    ours, theirs = (saved(each, config, "round2_train") for each in (root, looped))
    assert not alike(ours, theirs)
    told = {row.reference_hash for row in ledgers(root) if row.round == 2}
    assert told == {weights_hash(root.stages()[stages[reference]])}


# --- optimism -------------------------------------------------------------------------------------


def test_xpo_runs_on_pairs_across_sources(again, loop_config):
    """The best of the policy against the best of SFT, whose likelihood is pushed down."""
    plain = loop_config().online.train.model_dump()
    optimism = {**plain, "xpo_alpha": 0.5, "xpo_policy": "sft"}
    changed = {"pairing": "across", "draw": ("current@1.0", "sft@1.0"), **QUICK}
    root = again(loop_config(**changed, train=optimism), until="round2_train")
    for number in (1, 2):
        rows = read_ledger(root.stages()[f"round{number}_pair"].ledger)
        kept = [row for row in rows if not row.reason]
        assert kept
        for row in kept:
            first, second = sorted((row.chosen, row.rejected))
            assert first < 2 <= second  # two samples a source
            assert row.scores[first] == max(row.scores[:2])
            assert row.scores[second] == max(row.scores[2:])
        writers = {frozenset(row.policies[i] for i in (row.chosen, row.rejected)) for row in kept}
        assert writers == {frozenset({"sft", "round1" if number == 2 else "sft"})}
    config = loop_config(**changed, train=optimism)
    pushed = saved(root, config, "round1_train")
    ctx = Context(config, torch.device("cpu"), None, root.stages())
    pairs = train.pairs_of(ctx, 2)
    for given, row in zip(pairs, dpo.rows_of(pairs, ctx, config.online.train, ""), strict=True):
        assert row.designated == (given.policies[0] == "sft", given.policies[1] == "sft")
        assert any(row.designated)
    config = loop_config(**changed, train=plain)
    root = again(config, until="round1_train")
    assert not alike(pushed, saved(root, config, "round1_train"))


# --- what a key covers ----------------------------------------------------------------------------

OTHER = {
    "rounds": (1, "round2_train"),
    "prompts": (7, "round1_sample"),
    "prompts_data": ("prompts.jsonl", "prompts"),
    "samples": (6, "round1_sample"),
    "draw": (("current@1.0", "sft@0.7"), "round1_sample"),
    "response_length": (49, "round1_sample"),
    "micro_batch_size": (7, "round1_score"),
    "piece": (2, "round1_score"),
    "scorer": ("ensemble", "round1_score"),
    "aggregate": ("min", "round1_pair"),
    "length_penalty": (0.1, "round1_pair"),
    "length_unit": ("tokens", "round1_pair"),
    "missing_eos_penalty": (1.0, "round1_pair"),
    "mask_truncated_completions": (True, "round1_pair"),
    "pairing": ("best_second", "round1_pair"),
    "min_margin": (0.1, "round1_pair"),
    "reference": ("previous", "round1_train"),
    "init": ("sft", "round1_train"),
    "history": ("fresh", "round1_train"),
    "offline_pairs": (3, "round1_train"),
    "train": ({"beta": 0.2}, "round1_train"),
    "valid_prompts": (2, "round1_validate"),
    "choose": ("last", "online"),
}
"""Another value of each setting, and a stage whose key has to change with it."""
BESIDE = {
    "aggregate": {"scorer": "ensemble"},
    "length_unit": {"length_penalty": 0.1},
    "offline_pairs": {"history": "offline-mix"},
}
"""What a setting needs to be read."""


def test_every_setting_has_another_value_here():
    assert {*OTHER} == {*OnlineConfig.model_fields}


@pytest.mark.parametrize("field", OnlineConfig.model_fields)
def test_a_key_covers_every_setting(loop_config, road_config, field):
    """A setting that no key covers would take the results of another run for its own."""
    value, stage = OTHER[field]
    beside = BESIDE.get(field, {})
    keys = []
    for changed in ({}, {field: value}):
        config = loop_config(reward=two_members(road_config), **beside, **changed)
        there = stage in config.stage_names()
        keys.append((stage_config(stage, config), inputs_of(stage, config)) if there else None)
    assert keys[0] != keys[1]
