"""Responses that share a reading of their query have the log-probs of sequences of their own."""

import pytest
import torch

from nplus.models import shared
from nplus.models.lm import response_logprobs, sequence_logprobs
from nplus.models.scalar import ScalarModel
from nplus.models.shared import (
    shared_response_logprobs,
    shared_sequence_logprobs,
    sharing,
)

PAD = 1
QUERIES = [[5, 6, 7, 8, 9], [20, 21], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [20, 21], [30]]
RESPONSES = [[10, 11, 0], [22, 23, 24, 25, 0], [], [31, 32, 33, 34, 0], [0], [10, 11]]
LONG = [9, 8, 7, 6, 5] * 8
P, R = 40, 7


@pytest.fixture(params=["short", "long"])
def rectangle(request):
    """Prompts on the right of their columns, responses on the left of theirs; of short ones the
    last block runs on all columns, of long ones on the last."""
    return laid_out(QUERIES if request.param == "short" else [LONG[-8 * len(q) :] for q in QUERIES])


def laid_out(queries):
    tokens, mask = torch.full((6, P + R), PAD), torch.zeros(6, P + R, dtype=torch.bool)
    for row, (query, response) in enumerate(zip(queries, RESPONSES, strict=True)):
        stop = P + len(response)
        tokens[row, P - len(query) : stop] = torch.tensor(query + response)
        mask[row, P - len(query) : stop] = True
    return tokens, mask


@pytest.fixture(params=["one row", "two rows"])
def rows(request, monkeypatch):
    """A row for each query, or for the first two of its responses and those after them."""
    if request.param == "two rows":
        monkeypatch.setattr(shared, "LONGEST_ROW", 16)
    return request.param


@pytest.fixture(params=["eager", "sdpa", "batched"])
def model(request, causal):
    """Every family with every attention; in float64 where transformers' attention allows it."""
    causal.set_attn_implementation(request.param)
    return causal if request.param == "eager" else causal.double()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.usefixtures("rows")
def test_log_probs_entropies_and_gradients_are_those_of_separate_rows(model, rectangle):
    weight = torch.linspace(-1, 1, 6 * R).view(6, R).to(model.dtype)
    kept = rectangle[1][:, -R:]
    found = []
    for reader in (response_logprobs, shared_response_logprobs):
        logprobs, entropy = reader(model, *rectangle, R, temperature=0.7)
        grads = gradients(model, (logprobs * weight)[kept].sum())
        found.append((logprobs.detach()[kept], entropy[kept], grads))
    alone, together = found
    bound = 1e-9 if model.dtype == torch.float64 else 1e-4
    assert float(alone[0].std()) > 0.1
    torch.testing.assert_close(together[:2], alone[:2], rtol=bound, atol=bound)
    if "Llama" in type(model).__name__:  # its norm runs in float32, back too
        bound = 1e-4
    torch.testing.assert_close(together[2], alone[2], rtol=10 * bound, atol=bound)


@pytest.mark.usefixtures("rows")
@torch.no_grad()
def test_sums_over_responses_are_those_of_separate_rows(model, rectangle):
    response = rectangle[1].clone()
    response[:, :P] = False
    alone = sequence_logprobs(model, *rectangle, response)
    together = shared_sequence_logprobs(model, *rectangle, response)
    bound = 1e-9 if model.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(together, alone, rtol=bound, atol=bound)
    assert float(together[2]) == 0  # an empty response


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("back", [0, 1])
def test_scores_are_those_of_separate_rows(model, rectangle, back):
    if "GPT2" in type(model).__name__:
        pytest.skip("the reward models' head is for the two other families")
    scalar = ScalarModel.from_causal(model, pad_id=PAD, seed=0)
    scalar.tokens_back = back
    tokens, mask = (x[[0, 1, 3, 5]] for x in rectangle)
    response = mask.clone()
    response[:, :P] = False
    alone = scalar.scores(tokens, mask)
    together = scalar.shared_scores(sharing(tokens, mask, response))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_each_query_and_every_response_stands_once():
    tokens, mask = laid_out(QUERIES)
    response = mask.clone()
    response[:, :P] = False
    batch = sharing(tokens, mask, response)
    rows = zip(batch.tokens_BT, batch.segments_BT >= 0, strict=True)
    real = [row[kept].tolist() for row, kept in rows]
    assert real == [
        [5, 6, 7, 8, 9, 10, 11, 0, 31, 32, 33, 34, 0],
        [20, 21, 22, 23, 24, 25, 0, 0],
        [30, 10, 11],
    ]
    assert batch.segments_BT[0, :13].tolist() == [0] * 5 + [1] * 3 + [3] * 5
    assert batch.positions_BT[0, :13].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9]
    assert batch.ends_N.tolist() == [7, 16 + 6, 4, 12, 16 + 7, 32 + 2]


def test_a_row_that_would_be_too_long_is_two(monkeypatch):
    tokens, mask = laid_out(QUERIES)
    response = mask.clone()
    response[:, :P] = False
    monkeypatch.setattr(shared, "LONGEST_ROW", 15)  # of [5, 6, 7, 8, 9] room for two of at most 5
    batch = sharing(tokens, mask, response)
    rows = zip(batch.tokens_BT, batch.segments_BT >= 0, strict=True)
    real = [row[kept].tolist() for row, kept in rows]
    assert real == [
        [5, 6, 7, 8, 9, 10, 11, 0],
        [5, 6, 7, 8, 9, 31, 32, 33, 34, 0],
        [20, 21, 22, 23, 24, 25, 0, 0],
        [30, 10, 11],
    ]
    assert batch.ends_N.tolist() == [7, 32 + 6, 4, 16 + 9, 32 + 7, 48 + 2]
