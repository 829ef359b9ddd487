import math

import pytest
import torch

from nplus.algorithms import reward, supervised
from nplus.data.collate import PairRow, pair_batch, token_batch

PAD, EOS = 1, 0


def logits_of(probability_BT, tokens_BT, vocab=6):
    """Logits whose column t - 1 gives token t the probability `probability_BT[:, t]`."""
    rest = ((1 - probability_BT) / (vocab - 1)).log()
    logits = rest.unsqueeze(-1).expand(*tokens_BT.shape, vocab).clone()
    logits.scatter_(-1, tokens_BT.unsqueeze(-1), probability_BT.log().unsqueeze(-1))
    return torch.cat([logits[:, 1:], torch.zeros_like(logits[:, :1])], dim=1)


def test_weights_weigh_and_divide():
    # Query token at 1/2, response tokens at 1/4 and 1/8 with weight 3: (1 + 3*2 + 3*3) / 7 ln 2.
    batch = token_batch([([4, 5], [3, EOS])], pad_id=PAD, response_weight=3.0)
    logits = logits_of(torch.tensor([[0.5, 0.5, 0.25, 0.125]]), batch.tokens_BT)
    (weight, loss) = supervised.objective(logits, batch).terms["train"]
    assert weight == 1.0
    assert float(loss.sum / loss.count) == pytest.approx(16 / 7 * math.log(2), rel=1e-6)
    assert supervised.counts(batch) == {"train": 7.0}


def test_loss_on_the_response_leaves_the_query_out():
    batch = token_batch([([4, 5], [3, EOS])], pad_id=PAD, loss_on="response")
    logits = logits_of(torch.tensor([[0.5, 0.5, 0.25, 0.125]]), batch.tokens_BT)
    _, loss = supervised.objective(logits, batch).terms["train"]
    assert float(loss.sum / loss.count) == pytest.approx(2.5 * math.log(2), rel=1e-6)


def pairs(n):
    return pair_batch([PairRow([2, 3], [4, EOS], [5, EOS])] * n, pad_id=PAD)


@pytest.mark.detail("D3")
def test_bradley_terry_by_hand():
    # Differences 0, ln 3 and -ln 7: losses ln 2, ln 4/3, ln 8. Ties are wrong (Detail D3).
    scores = torch.tensor([1.0, 1.0 + math.log(3), 0.0, 1.0, 1.0, math.log(7)])
    found = reward.objective(scores, pairs(3))
    _, loss = found.terms["train"]
    expected = (math.log(2) + math.log(4 / 3) + math.log(8)) / 3
    assert float(loss.sum) / loss.count == pytest.approx(expected, rel=1e-6)
    assert found.metrics["accuracy"].value == pytest.approx(1 / 3)
    assert found.metrics["margin"].value == pytest.approx(math.log(3 / 7) / 3, rel=1e-6)
    assert found.metrics["mean_reward"].value == pytest.approx(float(scores.mean()))
    assert reward.counts(pairs(3)) == {"train": 3.0}


def test_chosen_comes_first_in_the_stacked_forward():
    batch = pairs(2)
    tokens, mask = batch.stacked()
    assert tokens.tolist() == [[2, 3, 4, EOS]] * 2 + [[2, 3, 5, EOS]] * 2
    assert mask.all()
    better = reward.objective(torch.tensor([2.0, 2.0, 1.0, 1.0]), batch)
    assert better.metrics["accuracy"].value == 1.0
    assert better.metrics["margin"].value == 1.0
