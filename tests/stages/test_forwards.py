"""The stages' lean forwards against each row alone through the module's own, in float64."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from nplus.algorithms import supervised
from nplus.data.collate import PairRow, pair_batch, token_batch
from nplus.models.lm import plain_head, set_positions
from nplus.models.scalar import ScalarModel
from nplus.stages.forwards import pair_logprobs, pair_scores, right_aligned, token_objective

EOS, PAD = 0, 1
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
WIDE = {"initializer_range": 0.3, "intermediate_size": 48}
NETWORKS = {
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, **WIDE, hidden_dropout=0.0)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **WIDE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=160)
    ),
    # Its head is not read apart: the full logits' way.
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
    ),
}
ROWS = [
    ([5, 6, 7, 8, 9], [10, 11, EOS]),
    ([20, 21], [22, 23, 24, 25, 26, 27, EOS]),
    (list(range(2, 60)), [12, 40, EOS]),
    ([33], [EOS]),
]
PAIRS = [
    PairRow([5, 6, 7, 8, 9], [10, 11, EOS], [12, EOS]),
    PairRow([20, 21], [22, 23, 24, 25, EOS], [EOS]),
    PairRow([30, 31, 32, 33, 34, 35, 36], [40, EOS], [41, 42, 43, EOS]),
]


def network(name, attn):
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    model.set_attn_implementation(attn)
    return model.train() if name != "gpt2" else model.eval()  # gpt2 has dropout


def row_logprobs(model, query, response):
    """The log-prob of each token but the first, from one row without padding."""
    ids = torch.tensor([query + response])
    logits = model(input_ids=ids).logits[0]
    return torch.stack(
        [logits[t - 1][ids[0, t]] - logits[t - 1].exp().sum().log() for t in range(1, ids.shape[1])]
    )


def near(attn):
    """How close: transformers' eager softmax is in float32, whatever the model is in."""
    return {"rtol": 1e-5, "atol": 1e-4} if attn == "eager" else {"rtol": 1e-8, "atol": 1e-9}


def same_gradients(model, attn, ours, theirs):
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for loss in (ours, theirs)
    )
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, **near(attn))


CASES = [(name, attn) for name in NETWORKS for attn in ("eager", "batched")]


@pytest.mark.parametrize("loss_on", ["all", "response"])
@pytest.mark.parametrize(("name", "attn"), CASES)
def test_next_token_loss(name, attn, loss_on):
    model = network(name, attn)
    assert (plain_head(model) is None) == (name == "opt")
    batch = token_batch(
        ROWS, pad_id=PAD, loss_on=loss_on, query_weight=0.5, response_weight=2.0, multiple=8
    )
    (weight, loss) = token_objective(model, batch).terms["train"]
    expected, count = 0.0, 0.0
    for query, response in ROWS:
        logprobs = row_logprobs(model, query, response)
        by = [0.5 if loss_on == "all" else 0.0] * (len(query) - 1) + [2.0] * len(response)
        expected = expected - (logprobs * torch.tensor(by, dtype=torch.float64)).sum()
        count += sum(by)
    assert (weight, float(loss.count)) == (1.0, count)
    assert supervised.counts(batch) == {"train": count}
    torch.testing.assert_close(loss.sum, expected, **near(attn))
    same_gradients(model, attn, loss.sum, expected)


@pytest.mark.parametrize(("name", "attn"), CASES)
def test_log_probs_of_pairs(name, attn):
    model = network(name, attn)
    found = pair_logprobs(model, pair_batch(PAIRS, pad_id=PAD, multiple=8))
    sides = [(row.query, row.chosen) for row in PAIRS] + [
        (row.query, row.rejected) for row in PAIRS
    ]
    expected = torch.stack([row_logprobs(model, q, r)[-len(r) :].sum() for q, r in sides])
    torch.testing.assert_close(found, expected, **near(attn))
    up = torch.linspace(-1, 2, len(sides), dtype=torch.float64)
    same_gradients(model, attn, found @ up, expected @ up)


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize(("name", "attn"), [case for case in CASES if case[0] != "opt"])
def test_scores_of_pairs(name, attn, back):
    model = ScalarModel.from_causal(network(name, attn), pad_id=PAD, seed=0)
    model.set_shift(0.25)
    model.tokens_back = back
    rows = [row for row in PAIRS if len(row.rejected) > 1]
    found = pair_scores(model, pair_batch(rows, pad_id=PAD, multiple=8))
    sides = [row.query + row.chosen for row in rows] + [row.query + row.rejected for row in rows]
    hidden = [model.network.base_model(input_ids=torch.tensor([ids])) for ids in sides]
    weight = model.network.score.weight[0]
    expected = torch.stack([h.last_hidden_state[0, -1 - back] @ weight - 0.25 for h in hidden])
    torch.testing.assert_close(found, expected, **near(attn))
    up = torch.linspace(-1, 2, len(sides), dtype=torch.float64)
    same_gradients(model, attn, found @ up, expected @ up)


def test_a_pad_that_is_eos_is_left_out():
    # Detail A7: it is masked wherever it stands, so the last token is the one before it.
    model = network("neox", "batched")
    batch = token_batch(ROWS[:2], pad_id=EOS, multiple=8)
    _, loss = token_objective(model, batch).terms["train"]
    expected = -sum(row_logprobs(model, query, response[:-1]).sum() for query, response in ROWS[:2])
    torch.testing.assert_close(loss.sum, expected, **near("batched"))


def test_rows_turn_by_what_is_empty_behind_them():
    model = network("neox", "batched")
    mask_BT = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    tokens_BT = torch.tensor([[5, 6, 1, 1], [7, 1, 8, 1], [2, 3, 4, 5]])
    found = right_aligned(model, mask_BT, tokens_BT)
    assert found[1].tolist() == [[1, 1, 5, 6], [1, 7, 1, 8], [2, 3, 4, 5]]
    assert found[0].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]]
    # Where positions count slots, a turned row would be another one; elsewhere nothing is gained.
    assert right_aligned(network("neox", "eager"), mask_BT, tokens_BT)[1] is tokens_BT
    set_positions(model, "slots")
    assert right_aligned(model, mask_BT, tokens_BT)[1] is tokens_BT


@pytest.mark.parametrize("forward", [pair_scores, pair_logprobs])
def test_models_that_count_slots_come_to_the_same(forward):
    # Without left padding, slots and real tokens are counted alike.
    model = network("neox", "batched")
    if forward is pair_scores:
        model = ScalarModel.from_causal(model, pad_id=PAD, seed=0)
    batch = pair_batch(PAIRS, pad_id=PAD, multiple=8)
    real = forward(model, batch)
    set_positions(getattr(model, "network", model), "slots")
    torch.testing.assert_close(forward(model, batch), real, rtol=1e-10, atol=1e-10)


def test_a_batch_without_a_target_has_no_loss():
    model = network("neox", "batched")
    batch = token_batch([([5], []), ([6], [])], pad_id=PAD, multiple=8)
    _, loss = token_objective(model, batch).terms["train"]
    loss.sum.backward()
    assert float(loss.sum.detach()) == 0.0
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
