"""The contract of every Engine: oracles are plain full forwards, one token at a time, no cache."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from nplus.batches import Generation, PromptBatch
from nplus.config.sampling import SamplingConfig
from nplus.engines.kv import KVEngine, sample_tokens
from nplus.engines.mixture import mixture_engine
from nplus.engines.protocol import Engine
from nplus.models.lm import response_logprobs, sequence_logits
from nplus.models.toy import toy_config

V, EOS, PAD = 61, 0, 1
SIZES = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD, "vocab_size": V}


def neox():
    config = toy_config("0.3M", vocab_size=V, eos_id=EOS, pad_id=PAD)
    config.initializer_range = 0.3
    return GPTNeoXForCausalLM(config)


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            **SIZES,
        )
    )


def gpt2():
    # Absolute positions: the only one of the three that notices a shifted position id.
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **SIZES)
    )


ENGINES: dict[str, Callable[..., Engine]] = {
    "kv": KVEngine,
    "kv, plain": partial(KVEngine, path="plain"),
    "a mixture with none": lambda model, **ids: mixture_engine(model, deepcopy(model), 0.0, **ids),
}
NETWORKS = {"neox": neox, "llama": llama, "gpt2": gpt2}


def build(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return NETWORKS[name]().eval()


@pytest.fixture(params=NETWORKS)
def network(request):
    return build(request.param)


@pytest.fixture(params=ENGINES)
def make_engine(request):
    return lambda model: ENGINES[request.param](model, eos_id=EOS, pad_id=PAD)


@pytest.fixture
def engine(make_engine, network):
    return make_engine(network)


TEXTS = [[5, 9, 33], [7], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 60, 60, 60, 2], [44, 5]]


def prompts(texts=TEXTS, extra: int = 0, junk: int = PAD) -> PromptBatch:
    width = max(map(len, texts)) + extra
    tokens_BP = torch.tensor([[junk] * (width - len(t)) + t for t in texts])
    mask_BP = torch.tensor([[False] * (width - len(t)) + [True] * len(t) for t in texts])
    return PromptBatch(tokens_BP, mask_BP, tuple(f"p{i}" for i in range(len(texts))))


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=g, dtype=torch.float64)


def sampling(width: int, stop: str = "length", temperature: float = 0.7) -> SamplingConfig:
    return SamplingConfig(temperature=temperature, response_length=width, stop=stop)


def uniform_engine(make_engine):
    """Every id equally likely, whatever came before: then the noise writes the text."""
    model = build("neox")
    torch.nn.init.zeros_(model.lm_head.weight)
    return make_engine(model)


def noise_that_writes(responses: list[list[int]]) -> torch.Tensor:
    return (torch.tensor(responses, dtype=torch.float64) + 0.5) / V


def naive_greedy(model, text: list[int], width: int) -> list[int]:
    ids = list(text)
    for _ in range(width):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(text) :]


def until_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def responses(made: Generation) -> list[list[int]]:
    return [
        row[keep].tolist() for row, keep in zip(made.tokens_BR, made.response_mask_BR, strict=True)
    ]


def test_cold_sampling_is_the_naive_argmax_loop(engine, network):
    made = engine.generate(prompts(), sampling(12, temperature=1e-5), noise(5, 12))
    assert made.tokens_BR.tolist() == [naive_greedy(network, t, 12) for t in TEXTS]


@pytest.mark.detail("E5", "E6")
@pytest.mark.parametrize("stop", ["eos", "length"])
def test_log_probs_are_those_of_teacher_forcing(engine, network, stop):
    made = engine.generate(prompts(extra=2), sampling(12, stop), noise(5, 12, seed=4))
    tokens_BT, mask_BT = made.sequences()
    with torch.no_grad():
        forced_BR, _ = response_logprobs(network, tokens_BT, mask_BT, 12, temperature=0.7)
    mask_BR = made.response_mask_BR
    assert made.logprobs_BR.dtype == torch.float32
    assert torch.allclose(made.logprobs_BR[mask_BR], forced_BR[mask_BR], atol=1e-5)
    # An oracle of its own: one row, no padding, log-softmax in float64 (Details E5, E6).
    for text, ids, found in zip(TEXTS, responses(made), made.logprobs_BR, strict=True):
        with torch.no_grad():
            logits = network(torch.tensor([text + ids])).logits[0].double() / (0.7 + 1e-7)
        rows = logits.log_softmax(-1)[len(text) - 1 : -1]
        expected = [row[i].item() for row, i in zip(rows, ids, strict=True)]
        assert found[: len(ids)].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.detail("B6")
@pytest.mark.parametrize("attn", ["sdpa", "eager", "batched"])
@pytest.mark.parametrize("extra", [0, 3, 20])
def test_left_padding_changes_nothing(engine, network, extra, attn):
    # Detail B6. One long row keeps the others' padding from being trimmed away.
    network.set_attn_implementation(attn)
    alone = [
        engine.generate(prompts([t]), sampling(8), noise(5, 8)[[i]]) for i, t in enumerate(TEXTS)
    ]
    long = [list(range(2, 12 + extra))]
    made = engine.generate(prompts(TEXTS + long, junk=37), sampling(8), noise(6, 8))
    assert made.tokens_BR[:5].tolist() == [one.tokens_BR[0].tolist() for one in alone]
    expected_BR = torch.cat([one.logprobs_BR for one in alone])
    assert torch.allclose(made.logprobs_BR[:5], expected_BR, atol=1e-4)


def test_common_left_padding_changes_nothing(engine):
    expected = engine.generate(prompts(), sampling(8), noise(5, 8))
    made = engine.generate(prompts(extra=20), sampling(8), noise(5, 8))
    assert torch.equal(made.tokens_BR, expected.tokens_BR)
    assert made.prompts.tokens_BP.shape[1] == expected.prompts.tokens_BP.shape[1] + 20


def test_a_row_depends_on_itself_and_its_noise_only(engine):
    noise_BR, batch = noise(5, 10), prompts()
    expected = engine.generate(batch, sampling(10, "eos"), noise_BR)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = engine.generate(batch.rows(order), sampling(10, "eos"), noise_BR[order])
    assert torch.equal(moved.tokens_BR, expected.tokens_BR[order])
    assert moved.prompts.keys == ("p3", "p0", "p4", "p2", "p1")
    for size in (1, 2):
        parts = [
            engine.generate(part, sampling(10, "eos"), noise_BR[i * size : (i + 1) * size])
            for i, part in enumerate(batch.split(size))
        ]
        assert torch.equal(torch.cat([p.tokens_BR for p in parts]), expected.tokens_BR)


def test_nothing_but_the_noise_is_random(engine):
    first = engine.generate(prompts(), sampling(10), noise(5, 10))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = engine.generate(prompts(), sampling(10), noise(5, 10))
    other = engine.generate(prompts(), sampling(10), noise(5, 10, seed=1))
    assert torch.equal(first.tokens_BR, again.tokens_BR)
    assert not torch.equal(first.tokens_BR, other.tokens_BR)
    assert torch.equal(torch.get_rng_state(), state)


def test_repeated_prompts_are_repeated_rows(engine):
    batch = prompts().rows(torch.tensor([2, 2]))
    same = engine.generate(batch, sampling(10), noise(1, 10).repeat(2, 1))
    differ = engine.generate(batch, sampling(10), noise(2, 10))
    assert torch.equal(same.tokens_BR[0], same.tokens_BR[1])
    assert not torch.equal(differ.tokens_BR[0], differ.tokens_BR[1])


def test_samples_of_a_prompt_read_it_once_and_are_as_if_alone(engine, network):
    """Prompts of unlike padding, some twice and one thrice, in no order."""
    order = torch.tensor([3, 0, 3, 1, 2, 0, 3])
    noise_BR = noise(7, 8)
    rows = []
    watch = network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: rows.append(len(args[0]))
    )
    made = engine.generate(prompts().rows(order), sampling(8), noise_BR)
    watch.remove()
    assert max(rows[-8:-7]) == 4
    assert set(rows[-7:]) == {7}
    for row, which in enumerate(order.tolist()):
        alone = engine.generate(prompts([TEXTS[which]]), sampling(8), noise_BR[[row]])
        assert made.tokens_BR[row].tolist() == alone.tokens_BR[0].tolist()
        assert torch.allclose(made.logprobs_BR[row], alone.logprobs_BR[0], atol=1e-4)


def test_samples_follow_the_tempered_softmax(engine, network):
    rows, text = 4000, TEXTS[0]
    batch = prompts([text]).rows(torch.zeros(rows, dtype=torch.int64))
    made = engine.generate(batch, sampling(1, temperature=1.5), noise(rows, 1))
    with torch.no_grad():
        expected_V = (network(torch.tensor([text])).logits[0, -1].double() / 1.5).softmax(-1) * rows
    found_V = torch.bincount(made.tokens_BR[:, 0], minlength=V).double()
    common_V = expected_V >= 5
    found = [*found_V[common_V].tolist(), found_V[~common_V].sum().item()]
    expected = [*expected_V[common_V].tolist(), expected_V[~common_V].sum().item()]
    assert chisquare(found, expected).pvalue > 1e-3


SCRIPTS = {
    "eos at 0": [EOS, 7, 8, 9, 10, 11, 12, 13],
    "eos at 5": [2, 3, 4, 5, 6, EOS, 8, 9],
    "eos last": [2, 3, 4, 5, 6, 7, 8, EOS],
    "no eos": [2, 3, 4, 5, 6, 7, 8, 9],
    "two eos": [2, EOS, 4, 5, EOS, 7, 8, 9],
}


@pytest.mark.detail("E4")
@pytest.mark.parametrize("names", [*[[n] for n in SCRIPTS], list(SCRIPTS)], ids=str)
def test_stop_rules(make_engine, names):
    script = [SCRIPTS[n] for n in names]
    ends = [until_eos(row) for row in script]
    engine = uniform_engine(make_engine)
    batch = prompts(TEXTS[: len(script)])
    short = engine.generate(batch, sampling(8, "eos"), noise_that_writes(script))
    full = engine.generate(batch, sampling(8, "length"), noise_that_writes(script))
    assert short.tokens_BR.tolist() == [row + [PAD] * (8 - len(row)) for row in ends]
    # Detail E4: sampling never stops; all R tokens and log-probs come back.
    assert full.tokens_BR.tolist() == script
    uniform = torch.full((len(script), 8), -torch.tensor(float(V)).log())
    assert torch.allclose(full.logprobs_BR, uniform, atol=1e-5)
    for made in (short, full):
        assert made.response_mask_BR.sum(-1).tolist() == [len(row) for row in ends]
    assert (short.logprobs_BR[~short.response_mask_BR] == 0).all()
    assert torch.allclose(short.logprobs_BR[short.response_mask_BR], uniform[0, 0], atol=1e-5)


def test_rows_that_finish_leave_the_others_alone(engine, network):
    # Many rows, EOS made likely: the batch shrinks several times on the way.
    texts = [[2 + (7 * i + j) % 59 for j in range(1 + i % 9)] for i in range(40)]
    head = network.get_output_embeddings()
    head.register_forward_hook(
        lambda _m, _i, out: out + 4.0 * torch.nn.functional.one_hot(torch.tensor(EOS), V)
    )
    batch, noise_BR = prompts(texts), noise(40, 30)
    short = engine.generate(batch, sampling(30, "eos", 2.0), noise_BR)
    full = engine.generate(batch, sampling(30, "length", 2.0), noise_BR)
    lengths = short.response_mask_BR.sum(-1)
    assert lengths.min() <= 3
    assert lengths.unique().numel() >= 8
    mask_BR = full.response_mask_BR
    assert torch.equal(short.response_mask_BR, mask_BR)
    assert torch.equal(short.tokens_BR, full.tokens_BR.masked_fill(~mask_BR, PAD))
    assert torch.allclose(short.logprobs_BR[mask_BR], full.logprobs_BR[mask_BR], atol=1e-5)


def test_loading_swaps_weights_and_version(make_engine):
    old, new = build("neox"), build("neox", seed=1)
    expected = make_engine(new).generate(prompts(), sampling(10), noise(5, 10))
    engine = make_engine(old)
    before = engine.generate(prompts(), sampling(10), noise(5, 10))
    engine.load(new.state_dict(), 7)
    after = engine.generate(prompts(), sampling(10), noise(5, 10))
    assert torch.equal(after.tokens_BR, expected.tokens_BR)
    assert not torch.equal(after.tokens_BR, before.tokens_BR)
    assert (before.policy_version, after.policy_version) == (0, 7)


def test_loading_other_names_is_an_error(make_engine):
    with pytest.raises(RuntimeError, match="Missing key"):
        make_engine(build("neox")).load({}, 1)


def set_checkpointing(network, on: bool) -> None:
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = on


def test_a_generation_can_be_trained_on(engine, network):
    network.train()
    set_checkpointing(network, True)
    made = engine.generate(prompts(), sampling(6), noise(5, 6))
    assert network.training
    set_checkpointing(network, False)
    tokens_BT, mask_BT = made.sequences()
    logprobs_BR, _ = response_logprobs(network, tokens_BT, mask_BT, 6, temperature=0.7)
    (logprobs_BR * made.logprobs_BR).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())


def test_a_wrong_noise_shape_is_an_error(engine):
    with pytest.raises(ValueError, match="noise_BR"):
        engine.generate(prompts(), sampling(6), noise(5, 5))


def test_nan_weights_are_an_error(make_engine):
    model = build("neox")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        make_engine(model).generate(prompts(), sampling(2), noise(5, 2))


def test_no_prompts_give_no_responses(make_engine):
    made = make_engine(build("neox")).generate(
        prompts().rows(torch.tensor([], dtype=torch.int64)), sampling(4), noise(0, 4)
    )
    assert made.tokens_BR.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_unit_interval_pick_possible_ids(dtype):
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).repeat(4, 1)
    noise_B = torch.tensor([0.0, 1e-12, 1 - 2.0**-53, 1.0], dtype=dtype)
    tokens_B, logprobs_B = sample_tokens(logits_BV, noise_B, temperature=1.0)
    assert tokens_B.tolist() == [1, 1, 3, 3]
    assert logprobs_B.isfinite().all()


def test_the_first_id_beyond_the_noise_is_taken():
    logits_BV = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(6, 1)
    noise_B = torch.tensor([0.05, 0.11, 0.29, 0.31, 0.59, 0.61])
    tokens_B, _ = sample_tokens(logits_BV, noise_B, temperature=1.0)
    assert tokens_B.tolist() == [0, 1, 1, 2, 2, 3]


def test_the_full_forward_of_the_oracle_is_the_masked_one(network):
    text = TEXTS[2]
    batch = prompts([text], extra=5, junk=50)
    with torch.no_grad():
        plain = network(torch.tensor([text])).logits[0]
        padded = sequence_logits(network, batch.tokens_BP, batch.mask_BP)[0, 5:]
    assert torch.allclose(plain, padded, atol=1e-4)
