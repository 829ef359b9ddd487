"""Updates on groups: the same on any processes, in any micro-batches, after any resume."""

import math

import numpy as np
import pytest
import torch

from nplus.algorithms import reinforce
from nplus.batches import ReinforceBatch
from nplus.config import SamplingConfig
from nplus.config.relatives import ALGORITHMS
from nplus.engines.steps import PlainSteps
from nplus.runs import StageDir
from nplus.seeding import uniforms
from nplus.stages import compute, scoring
from nplus.stages.drawing import noise
from nplus.stages.keeping import Keeper
from nplus.training.update import NonFiniteLossError

UPDATES = 4
TIMES = {"seconds", "tokens_per_second"}
BOUND = 1e-7
"""Rounding grows from step to step."""
STEERED = {"kl_target": 1.0, "kl_horizon": 64}
"""With a price in the loss that changes after every update."""


def told(metrics):
    return {name: value for name, value in metrics.items() if name not in TIMES}


def run(trainer, steps=range(UPDATES)):
    """Metrics and tokens of every update, and the weights at the end."""
    found = []
    for step in steps:
        made = trainer.update(step)
        generation = made.rollout.generation
        found.append((told(made.metrics), generation.tokens_BR.tolist(), generation.prompts.keys))
    return found, torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]).numpy()


def assert_same_run(found, expected):
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours[1:] == theirs[1:]
        assert ours[0] == pytest.approx(theirs[0], rel=BOUND, abs=BOUND, nan_ok=True)
    np.testing.assert_allclose(found[1], expected[1], rtol=BOUND, atol=BOUND)


@pytest.fixture(scope="module")
def alone(group_trainer_of):
    """`alone(algorithm, **changed)`: the run of one process, once for each."""
    kept = {}

    def of(algorithm, **changed):
        name = algorithm, repr(changed)
        if name not in kept:
            kept[name] = run(group_trainer_of(algorithm, **changed))
        return kept[name]

    return of


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "online_dpo"])
def test_micro_batches_change_nothing(algorithm, alone, group_trainer_of):
    assert_same_run(run(group_trainer_of(algorithm, micro_batch_size=1)), alone(algorithm))


@pytest.mark.parametrize(
    ("world", "algorithm", "changed"),
    [
        (2, "rloo", {}),
        (2, "grpo", STEERED),
        (2, "remax", {}),
        (2, "nash_md", {}),
        (2, "reinforce++", {}),
        (4, "dapo", {"missing_eos_penalty": 1.0, "overlong_share": None}),  # groups are left out
        (2, "online_dpo", {}),
    ],
)
def test_any_number_of_processes(world, algorithm, changed, alone, group_trainer_of, in_ranks):
    found = in_ranks(world, lambda topology: run(group_trainer_of(algorithm, topology, **changed)))
    for each in found:
        assert_same_run(each, alone(algorithm, **changed))
    assert all((each[1] == found[0][1]).all() for each in found)  # to the bit: none drifts


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("algorithm", "changed"), [("grpo", STEERED), ("remax", {}), ("online_dpo", {})]
)
def test_a_second_process_that_shares_the_work(
    algorithm, changed, alone, group_trainer_of, monkeypatch
):
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)
    trainer = group_trainer_of(algorithm, compute={"side_by_side": True}, **changed)
    try:
        found = run(trainer)
        assert trainer.beside is not None
    finally:
        trainer.close()
    assert_same_run(found, alone(algorithm, **changed))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "online_dpo"])
def test_responses_that_share_a_reading_of_their_prompt(algorithm, alone, group_trainer_of):
    whole = {"num_mini_batches": 1}  # parts of a pass are other ones: prompts are shuffled
    found = run(group_trainer_of(algorithm, layout="shared", **whole))
    assert_same_run(found, alone(algorithm, **whole))


@pytest.mark.parametrize("world", [2, 4])
def test_they_do_so_on_any_number_of_processes(world, group_trainer_of, in_ranks):
    changed = {"layout": "shared", "num_mini_batches": 2}
    expected = run(group_trainer_of("grpo", **changed))
    for found in in_ranks(world, lambda ranks: run(group_trainer_of("grpo", ranks, **changed))):
        assert_same_run(found, expected)


def test_the_price_in_the_loss_is_steered(alone):
    prices = [metrics["objective/kl_coef"] for metrics, *_ in alone("grpo", **STEERED)[0]]
    assert len(set(prices)) == UPDATES


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "nash_md", "online_dpo"])
def test_a_resumed_run_is_the_whole_one_to_the_bit(algorithm, group_trainer_of, tmp_path):
    def kept(trainer, steps):
        where = StageDir(tmp_path)
        optimizers = {"policy": trainer.optimizer}
        keeper = Keeper(where, trainer.ctx, trainer.modules(), optimizers, 1, 3)
        first = keeper.begin()
        found = []
        for step in range(first, steps):
            found += run(trainer, [step])[0]
            keeper.after(step + 1)
        return first, found, run(trainer, [])[1]

    changed = {} if algorithm == "online_dpo" else STEERED
    whole = run(group_trainer_of(algorithm, **changed))
    _, before, _ = kept(group_trainer_of(algorithm, **changed), 2)
    first, after, weights = kept(group_trainer_of(algorithm, **changed), UPDATES)
    assert first == 2
    assert before + after == whole[0]
    assert (weights == whole[1]).all()


# --- groups -------------------------------------------------------------------------------------


def test_noise_hangs_on_prompt_and_sample_alone():
    sampling = SamplingConfig(response_length=5)
    found = noise(7, "here", ["b", "a"], sampling, range(3))
    for row, (key, sample) in enumerate((k, s) for k in "ba" for s in range(3)):
        assert found[row].tolist() == uniforms(7, "here", key, sample, n=5).tolist()


def test_responses_of_a_prompt_differ_and_stand_side_by_side(group_trainer_of):
    trainer = group_trainer_of("grpo", num_generations=4)
    rollout = trainer.groups().gather(trainer.posts[:2], 0).rollout
    keys = [post.id for post in trainer.posts[:2] for _ in range(4)]
    assert list(rollout.generation.prompts.keys) == keys
    rows = [tuple(row) for row in rollout.generation.tokens_BR.tolist()]
    assert len(set(rows[:4])) == len(set(rows[4:])) == 4


def test_the_prompts_beside_a_prompt_change_nothing(group_trainer_of):
    gather = group_trainer_of("nash_md", num_generations=2).groups().gather
    posts = group_trainer_of("nash_md").posts[:4]
    whole, part = gather(posts, 0), gather(posts[2:], 0)
    for name in ("rival_scores_B", "rival_has_eos_B"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[4:])
    torch.testing.assert_close(part.rollout.scores_B, whole.rollout.scores_B[4:])


def test_a_prompt_is_read_once_for_all_its_responses(group_trainer_of, monkeypatch):
    trainer = group_trainer_of("grpo", num_generations=8)
    read = []

    class Counting(PlainSteps):
        def prefill(self, tokens_BP, mask_BP, room):
            read.append(len(tokens_BP))
            return super().prefill(tokens_BP, mask_BP, room)

    engine = trainer.ctx.engine(trainer.policy)
    engine.make_steps = lambda: Counting(trainer.policy)
    monkeypatch.setattr(type(trainer.ctx), "engine", lambda self, model, version: engine)
    grouped = trainer.groups().gather(trainer.posts[:3], 0)
    assert len(grouped) == 24
    assert read == [3]


@pytest.mark.parametrize("algorithm", ["grpo", "online_dpo"])
def test_training_reads_less_where_prompts_are_shared(algorithm, group_trainer_of):
    def tokens_read(layout):
        trainer = group_trainer_of(algorithm, layout=layout, num_generations=4, num_mini_batches=1)
        read = []
        trainer.policy.get_input_embeddings().register_forward_hook(
            lambda _, given, __: read.append(given[0].numel())
        )
        minibatches, _ = trainer.method.minibatches(
            trainer.groups().gather(trainer.posts[7:9], 0), 0, 0.0, 1
        )
        read.clear()
        for micros in minibatches:
            for micro in micros:
                trainer.method.objective(micro)
        return sum(read)

    assert 0 < tokens_read("shared") < tokens_read("separate")


def test_the_greedy_rival_is_the_argmax_response(group_trainer_of):
    trainer = group_trainer_of("remax")
    posts = trainer.posts[:3]
    found = trainer.groups().gather(posts, 0)
    for b, post in enumerate(posts):
        ids = trainer.ctx.codec.encode_queries([post.query])[0]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            for _ in range(7):
                best = trainer.policy(tokens).logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, best], dim=1)
                if int(best) == 0:
                    break
            score = trainer.reward_model.scores(tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert float(found.rival_scores_B[b]) == pytest.approx(float(score), abs=1e-6)


def test_an_update_without_any_group_left_moves_nothing(group_trainer_of, monkeypatch):
    trainer = group_trainer_of("dapo", missing_eos_penalty=None, overlong_share=None)
    monkeypatch.setattr(
        scoring, "rm_scores", lambda model, generation, _: torch.zeros(len(generation)).double()
    )
    before = run(trainer, [])[1].copy()
    found = trainer.update(0).metrics
    assert (found["groups/steps"], found["groups/dropped"], found["groups/equal"]) == (
        0.0,
        4.0,
        1.0,
    )
    assert (run(trainer, [])[1] == before).all()


def test_a_pair_of_equal_texts_teaches_nothing(group_trainer_of, monkeypatch):
    """Scored in other batches, equal texts may differ in the last digit."""
    trainer = group_trainer_of("online_dpo")

    def nearly(model, generation, _):
        return torch.arange(len(generation)).double() * 1e-16

    monkeypatch.setattr(scoring, "rm_scores", nearly)
    grouped = trainer.groups().gather(trainer.posts[:4], 0)
    generation = grouped.rollout.generation
    generation.tokens_BR[1] = generation.tokens_BR[0]
    generation.response_mask_BR[1] = generation.response_mask_BR[0]
    minibatches, metrics = trainer.method.minibatches(grouped, 0, 0.0, 1)
    passes = trainer.cfg.num_iterations
    assert sum(len(micro) for micros in minibatches for micro in micros) == 3 * passes
    assert (metrics["groups/dropped"].value, metrics["groups/equal"].value) == (1.0, 0.0)


def test_a_score_that_is_no_number_spoils_a_step_of_pairs_too(group_trainer_of, monkeypatch):
    trainer = group_trainer_of("online_dpo", num_mini_batches=1, num_iterations=1)

    def with_nan(model, generation, _):
        found = torch.arange(len(generation)).double()
        return found.index_fill(0, torch.tensor([3]), math.nan)

    monkeypatch.setattr(scoring, "rm_scores", with_nan)
    before = run(trainer, [])[1].copy()
    with pytest.raises(NonFiniteLossError, match="loss is nan"):
        trainer.update(0)
    assert (run(trainer, [])[1] == before).all()


def numbered(trainer):
    """A batch of 8 rows, two of each prompt, whose advantages are their numbers."""
    batch, _ = reinforce.credit(trainer.groups().gather(trainer.posts[:4], 0), trainer.cfg)
    numbers = torch.arange(8.0).unsqueeze(1).expand_as(batch.advantages_BR).double()
    return ReinforceBatch(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__}
        | {"advantages_BR": numbers.clone()}
    )


def rows_of(trainer, batch, step=0):
    """The numbers of the rows of each minibatch."""
    return [
        [int(r) for micro in micros for r in micro.advantages_BR[:, 0]]
        for micros in trainer.method.cut(batch, step)
    ]


def test_every_row_is_used_once_a_pass(group_trainer_of):
    trainer = group_trainer_of("grpo")
    batch = numbered(trainer)
    rows = rows_of(trainer, batch)
    assert [len(each) for each in rows] == [4] * 4
    assert all(sorted(rows[i] + rows[i + 1]) == list(range(8)) for i in (0, 2))
    kept = batch.rows(torch.arange(3))  # what dynamic sampling may leave
    sizes = [sum(map(len, micros)) for micros in trainer.method.cut(kept, 0)]
    assert sizes == [2, 1, 2, 1]


def test_rows_that_share_a_prompt_stay_side_by_side(group_trainer_of):
    trainer = group_trainer_of("grpo", layout="shared")
    batch = numbered(trainer)
    rows = [each for step in range(6) for each in rows_of(trainer, batch, step)]
    assert all(sorted(rows[i] + rows[i + 1]) == list(range(8)) for i in range(0, len(rows), 2))
    pairs = {(first, second) for each in rows for first, second in (each[:2], each[2:])}
    assert pairs == {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert len({tuple(each) for each in rows}) > 2  # shuffled anew
