"""Rollouts are scored in pieces: what comes out stands where the rows stood, padding or not."""

import pytest
import torch

from nplus.batches import Generation
from nplus.rollout import (
    ROWS_ON_CPU,
    WIDTH_MULTIPLE,
    Scores,
    _in_pieces,
    scored,
    spare_columns,
)

ROWS, P, R = 40, 50, 9


@pytest.fixture
def generation(prompts_of_lengths):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, P + 1, (ROWS,), generator=g)
    lengths[3] = P
    prompts = prompts_of_lengths(lengths.tolist())
    mask_BR = torch.arange(R) < torch.randint(1, R + 1, (ROWS, 1), generator=g)
    tokens_BR = torch.randint(2, 60, (ROWS, R), generator=g).where(mask_BR, 1)
    return Generation(prompts, tokens_BR, mask_BR, torch.zeros(ROWS, R))


@pytest.mark.parametrize("positions", ["real", "slots"])
def test_every_result_stands_at_its_row(generation, positions):
    seen = []

    def sums(piece):
        tokens_BT, mask_BT = piece.sequences()
        seen.append(tuple(tokens_BT.shape))
        return Scores((tokens_BT * mask_BT).sum(1), piece.tokens_BR[:, 0])

    def ends(piece):
        return piece.tokens_BR * piece.response_mask_BR

    tokens_BT, mask_BT = generation.sequences()
    found = scored(sums, generation, size=64, positions=positions)
    assert torch.equal(found.scores_B, (tokens_BT * mask_BT).sum(1))
    assert torch.equal(found.failed_B, generation.tokens_BR[:, 0])
    assert torch.equal(_in_pieces(ends, generation, 64, positions), ends(generation))
    assert max(rows for rows, _ in seen) == ROWS_ON_CPU
    widths = [width for _, width in seen]
    if positions == "slots":  # a column less would move every position
        assert set(widths) == {P + R}
    else:
        assert widths[0] < widths[-1]
        assert all(w % WIDTH_MULTIPLE == 0 or w > P + R - WIDTH_MULTIPLE for w in widths)


def test_spare_columns_leave_a_round_width():
    mask_BP = torch.zeros(2, 40, dtype=torch.bool)
    mask_BP[0, 21:] = mask_BP[1, 30:] = True  # 19 columns needed
    assert spare_columns(mask_BP, 5) == 40 - (32 - 5)
    assert spare_columns(mask_BP, 13) == 21
    assert spare_columns(mask_BP, 40) == 40 - (64 - 40)
    assert spare_columns(mask_BP[:, 21:], 5) == 0
