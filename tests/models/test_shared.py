"""Responses that share their query score as each would alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nplus.data.collate import PairRow, padded, pair_batch, shared_batch, shared_pair_batch
from nplus.models.scalar import ScalarModel

PAD = 1
ROWS = [
    PairRow([5, 6, 7, 8, 9], [10, 11, 0], [12, 0]),
    PairRow([20, 21], [22, 23, 24, 25, 0], [0], margin=2.0),
    PairRow([5, 6, 7, 8, 9], [12, 0], [30, 31, 32, 33, 34, 0]),
    PairRow([5, 6, 7, 8, 9], [30, 31, 32, 33, 34, 0], [10, 11, 0]),
]


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("attn", ["eager", "sdpa", "batched"])
@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize("back", [0, 1])
def test_scores_and_gradients_are_those_of_separate_sequences(back, family, attn, tiny_causal):
    causal = tiny_causal() if family == "neox" else llama()
    causal.set_attn_implementation(attn)
    model = ScalarModel.from_causal(causal, pad_id=PAD, seed=0)
    model.set_shift(0.25)
    model.tokens_back = back

    def scores_and_gradients(scores_2N):
        model.zero_grad()
        (scores_2N * torch.linspace(-1, 1, 8)).sum().backward()
        return scores_2N.detach(), [p.grad.clone() for p in model.parameters()]

    apart, apart_grads = scores_and_gradients(
        model.scores(*pair_batch(ROWS, pad_id=PAD, multiple=16).stacked())
    )
    together, grads = scores_and_gradients(
        model.shared_scores(shared_pair_batch(ROWS, pad_id=PAD, multiple=16))
    )
    assert float(apart.std()) > 0.05
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, apart_grads, rtol=1e-3, atol=1e-4)


def test_each_query_and_each_response_stands_once():
    batch = shared_pair_batch(ROWS, pad_id=PAD, multiple=4)
    assert len(batch) == 4
    assert batch.tokens_BT[0].tolist() == [
        5, 6, 7, 8, 9, 10, 11, 0, 12, 0, 30, 31, 32, 33, 34, 0,
    ]  # fmt: skip
    assert batch.positions_BT[0].tolist() == [
        0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 5, 6, 7, 8, 9, 10,
    ]  # fmt: skip
    assert batch.segments_BT[0].tolist() == [0] * 5 + [1] * 3 + [2] * 2 + [3] * 6
    assert batch.segments_BT[1].tolist() == [0] * 2 + [1] * 5 + [2] + [-1] * 8
    chosen, rejected = batch.ends_N.tolist()[:4], batch.ends_N.tolist()[4:]
    assert chosen == [7, 16 + 6, 9, 15]
    assert rejected == [9, 16 + 7, 15, 7]
    assert batch.margin_N.tolist() == [0.0, 2.0, 0.0, 0.0]


def test_nothing_looks_ahead_or_into_another_response():
    sees = shared_pair_batch(ROWS, pad_id=PAD, multiple=4).sees_BTT()
    segments = shared_pair_batch(ROWS, pad_id=PAD, multiple=4).segments_BT.tolist()
    for b, row in enumerate(segments):
        for t in range(16):
            for u in range(16):
                known = u <= t and row[t] >= 0 and row[u] in (0, row[t])
                assert bool(sees[b, t, u]) == (known or t == u)


@pytest.mark.parametrize("longest", [1, 12, float("inf")])
@pytest.mark.parametrize("back", [0, 1])
@torch.no_grad()
def test_any_number_of_responses_score_as_each_alone(back, longest, tiny_causal):
    model = ScalarModel.from_causal(tiny_causal(), pad_id=PAD, seed=0)
    model.tokens_back = back
    queries = [[5, 6, 7, 8, 9, 10], [20, 21, 22, 23]]
    rows = [
        (queries[n % 2], [*range(30 + n, 30 + n + 1 + n % 5), 0] if n % 7 else [0])
        for n in (3, 1, 0, 4, 2, 3, 5, 7, 6, 9, 11)
    ]
    apart = model.scores(*padded([[*q, *r] for q, r in rows], PAD))
    together = model.shared_scores(shared_batch(rows, pad_id=PAD, multiple=8, longest=longest))
    assert float(apart.std()) > 0.05
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_row_takes_no_more_responses_than_it_may():
    query = [5, 6, 7]
    rows = [(query, [n, n + 1, 0]) for n in range(10, 20, 2)]
    rows += [rows[0], (query, [*range(30, 40), 0]), (query, [50, 0])]
    batch = shared_batch(rows, pad_id=PAD, longest=9)
    lines = [
        [token for token in line if token != PAD] for line in batch.tokens_BT.tolist()
    ]  # one that is alone may be longer
    assert lines == [
        [5, 6, 7, 10, 11, 0, 12, 13, 0],
        [5, 6, 7, 14, 15, 0, 16, 17, 0],
        [5, 6, 7, 18, 19, 0],
        [5, 6, 7, *range(30, 40), 0],
        [5, 6, 7, 50, 0],
    ]
    assert batch.ends_N[0] == batch.ends_N[5]  # the same response stands once
    assert len(shared_batch(rows, pad_id=PAD).tokens_BT) == 1


def test_a_response_without_tokens_is_read_at_its_own_query():
    """Where PAD is EOS an empty response has no token of its own (Detail A7)."""
    batch = shared_batch([([5, 6], [8, 9, PAD]), ([5, 6], [PAD])], pad_id=PAD)
    assert batch.tokens_BT.tolist() == [[5, 6, 8, 9]]
    assert batch.ends_N.tolist() == [3, 1]
