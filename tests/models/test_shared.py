"""Responses that share their query score as each would alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nplus.data.collate import PairRow, pair_batch, shared_pair_batch
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
        model.pair_scores(shared_pair_batch(ROWS, pad_id=PAD, multiple=16))
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
    assert batch.ends_N2.tolist() == [[7, 9], [16 + 6, 16 + 7], [9, 15], [15, 7]]
    assert batch.margin_N.tolist() == [0.0, 2.0, 0.0, 0.0]


def test_nothing_looks_ahead_or_into_another_response():
    sees = shared_pair_batch(ROWS, pad_id=PAD, multiple=4).sees_BTT()
    segments = shared_pair_batch(ROWS, pad_id=PAD, multiple=4).segments_BT.tolist()
    for b, row in enumerate(segments):
        for t in range(16):
            for u in range(16):
                known = u <= t and row[t] >= 0 and row[u] in (0, row[t])
                assert bool(sees[b, t, u]) == (known or t == u)
