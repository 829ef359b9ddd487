"""The estimate of a run's cost, stage by stage, by hand; what is published lies near it."""

import pytest

from nplus.config.cost import Work, gpu_hours, works
from nplus.config.load import load_config
from nplus.config.memory import memory_plan
from nplus.config.shapes import KNOWN, shape_of
from nplus.recipes import recipe

LLAMA = KNOWN["meta-llama/Meta-Llama-3-8B"]
N, SCALAR = 8_030_261_248, 8_030_261_248 - 128_256 * 4_096 + 4_096
GIB = 2**30


@pytest.fixture(scope="module")
def costs():
    """`costs(sets)`: the works of online:llama3-8b, and hours by stage and kind."""

    def build(*sets, name="online:llama3-8b"):
        cfg = load_config(recipe(name), sets=sets)
        found = works(cfg, shape_of(cfg), cfg.budget)
        return found, {
            stage: gpu_hours(work, cfg, shape_of(cfg), cfg.budget) for stage, work in found.items()
        }

    return build


def test_llama_has_the_published_parameters():
    assert LLAMA.parameters == N
    assert LLAMA.scalar_parameters == SCALAR == 7_504_928_768


def test_a_round_by_hand(costs):
    """Round 2 with round numbers: 20,000 prompts of 400 tokens, eight responses of 600."""
    tokens = ("budget.prompt=400", "budget.response=600")
    found, hours = costs(*tokens)
    # Two sources read every prompt; 160,000 responses of 600 tokens are written.
    assert found["round2_sample"] == Work(N, read=16e6, written=96e6)
    assert found["round2_score"] == Work(SCALAR, read=160e6)
    # 40,000 pairs of two sequences of 1,000 tokens, twice.
    assert found["round2_train"] == Work(N, trained=160e6, referred=160e6)
    # bfloat16 autocast: 40% of 312e12 operations a second; float32 as TF32: 40% of 156e12.
    assert hours["round2_train"] == {
        "trained": pytest.approx(160e6 * 6 * N / (0.4 * 312e12) / 3600),
        "referred": pytest.approx(160e6 * 2 * N / (0.4 * 312e12) / 3600),
    }
    assert hours["round2_score"] == {
        "read": pytest.approx(160e6 * 2 * SCALAR / (0.4 * 156e12) / 3600)
    }
    # A step of 32 responses reads 4 bytes a weight, and of 700 tokens each, keys and values of 32
    # layers, 8 heads, 128 wide, 4 bytes; at 60% of 2.039e12 bytes a second.
    step = 4 * N + 32 * 700 * 2 * 32 * 8 * 128 * 4
    assert hours["round2_sample"] == {
        "read": pytest.approx(16e6 * 2 * N / (0.4 * 156e12) / 3600),
        "written": pytest.approx(96e6 / 32 * step / (0.6 * 2.039e12) / 3600),
    }


def test_the_reward_model_by_hand_and_as_published(costs):
    """The authors tell of some 11 hours on 8 A100 for a 7B reward model on V4 of their pairs."""
    sets = ("budget.pair_prompt=250", "budget.pair_chosen=260", "budget.pair_rejected=220")
    found, hours = costs(*sets)
    assert found["reward"] == Work(SCALAR, trained=700_000 * 980)
    assert 0.5 < hours["reward"]["trained"] / (11 * 8) < 1.5
    shared, _ = costs(*sets, "reward.layout=shared")
    assert shared["reward"].trained == 700_000 * 730


def test_a_longer_history_and_other_losses(costs):
    tokens = ("budget.prompt=400", "budget.response=600")
    fresh, _ = costs(*tokens, "online.history=fresh")
    assert {fresh[f"round{n}_train"].trained for n in (1, 2, 3)} == {20_000 * 2_000 * 2}
    mixed, _ = costs(
        *tokens,
        "online.history=offline-mix",
        "online.offline_pairs=1000",
        "budget.pair_prompt=1",
        "budget.pair_chosen=2",
        "budget.pair_rejected=3",
    )
    assert mixed["round1_train"].trained == 2 * (20_000 * 2_000 + 1_000 * 7)
    together, _ = costs(*tokens, "online.history=fresh", "online.train.layout=shared")
    assert together["round1_train"].trained == 2 * 20_000 * (400 + 2 * 600)
    cached, _ = costs(*tokens, "online.train.ref_logprobs=cached")
    assert cached["round1_train"].referred == cached["round1_train"].trained / 2
    without, hours = costs(*tokens, "online.train.loss_type=simpo")
    assert without["round1_train"].referred == 0
    assert [*hours["round1_train"]] == ["trained"]


def test_an_ensemble_and_a_knock_out_read_more(costs):
    tokens = ("budget.prompt=400", "budget.response=600")
    three, _ = costs(*tokens, "reward.members=3", "online.scorer=ensemble")
    assert three["round1_score"].read == 3 * 160e6
    assert three["reward_3"] == three["reward"]
    # Of eight, 7 matches find the best, 6 the worst, 1 is theirs; both orders; 1,600 tokens each.
    knocked, _ = costs(*tokens, name="online:llama3-8b-pairwise")
    assert knocked["round1_score"].read == 160e6 + 20_000 * 14 * 2 * 1_600


def test_sft_counts_once_its_tokens_are_known(costs):
    assert "sft" not in costs()[0]
    found, hours = costs("budget.sft_tokens=1000", "sft.epochs=3")
    assert found["sft"] == Work(N, trained=3_000)
    assert hours["sft"] == {"trained": pytest.approx(3_000 * 6 * N / (0.4 * 312e12) / 3600)}


def test_what_is_not_assumed_is_as_long_as_allowed(costs):
    found, _ = costs(
        "budget={gpu: h200-141gb, prompt: null, response: null, pair_prompt: null, "
        "pair_chosen: null, pair_rejected: null}"
    )
    assert found["round1_score"].read == 160_000 * 4_096
    assert found["reward"].trained == 700_000 * 4 * 2_048


@pytest.mark.parametrize(
    ("sets", "peak"),
    [
        ((), 156e12),
        (("compute.matmul_precision=highest",), 19.5e12),
        (("model.dtype=bfloat16",), 312e12),
        (("budget.gpu=h100-80gb",), 494e12),
    ],
)
def test_the_peak_is_that_of_the_precision(costs, sets, peak):
    found, hours = costs(*sets)
    read = found["round1_score"].read
    assert hours["round1_score"]["read"] == pytest.approx(read * 2 * SCALAR / (0.4 * peak) / 3600)


def test_many_rows_are_drawn_as_fast_as_they_are_computed(costs):
    """4,096 responses at once, of no length: the weights' bytes no longer matter, operations do."""
    sets = ("online.micro_batch_size=4096", "budget.prompt=1", "budget.response=1")
    found, hours = costs(*sets)
    written = found["round1_sample"].written
    assert hours["round1_sample"]["written"] == pytest.approx(
        written * 2 * N / (0.4 * 156e12) / 3600
    )


# --- memory of the loop's other steps -------------------------------------------------------------


def plan(*sets, name="online:llama3-8b", world=8):
    cfg = load_config(recipe(name), sets=sets)
    return memory_plan(cfg, shape_of(cfg), world_size=world)


def test_drawing_by_hand():
    need = plan()["round1_sample"]
    assert need.states == {"weights": 4 * N}
    assert need.phases["rollout cache"] == 32 * GIB  # a GiB for each response of 4,096 tokens
    two = plan('online.draw=["current@1.0", "previous@1.0"]')["round1_sample"]
    assert two.states == {"weights": 2 * 4 * N}


def test_scoring_by_hand():
    need = plan()["round1_score"]
    assert need.states == {"reward models": 4 * SCALAR}
    # One layer of a gated network, per token in float32: two residuals, two norms' outputs, query,
    # key and value, attention's output twice, and four inner values.
    per_token = 4 * (2 * 4_096 + 2 * 4_096 + (4_096 + 2 * 1_024) + 2 * 4_096 + 4 * 14_336)
    assert need.phases == {"responses": 32 * 4_096 * per_token}
    both = plan(name="online:llama3-8b-pairwise")["round1_score"]
    assert both.states == {"reward models": 4 * SCALAR, "pairwise model": 4 * N}
    assert both.phases["matches"] == 6 * 3 * 2_048 * per_token


def test_packed_rows_are_as_wide_as_they_are():
    narrow, wide = (plan(f"sft.max_length={n}")["sft"].phases["activations"] for n in (4096, 8192))
    # Of a position: every layer's input, one layer whole (residuals in float32, the rest in
    # bfloat16), and the head's hidden states and their gradient.
    layer = 2 * 4_096 * 4 + (2 * 4_096 + (4_096 + 2 * 1_024) + 2 * 4_096 + 4 * 14_336) * 2
    assert wide - narrow == 4_096 * (32 * 4_096 * 4 + layer + 2 * 4_096 * 4)
    assert plan("sft.packing=false", "sft.max_length=null")["sft"].phases["activations"] == narrow


def test_the_pairwise_model_reads_both_responses():
    need = plan(name="online:llama3-8b-pairwise")
    assert need["preference"].states == need["sft"].states
    # A row of 4,096 tokens and another response of 2,048; logits of one position, their gradient,
    # its hidden state with gradient, and the gradient of the head.
    layer = 2 * 4_096 * 4 + (2 * 4_096 + (4_096 + 2 * 1_024) + 2 * 4_096 + 4 * 14_336) * 2
    head = 128_256 * (2 + 2 * 4) + 2 * 4_096 * 4 + 128_256 * 4_096 * 4
    assert need["preference"].phases["activations"] == 6_144 * (32 * 4_096 * 4 + layer) + head
