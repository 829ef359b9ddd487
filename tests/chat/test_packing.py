"""Several conversations in a row: the same loss and gradients as apart, and none sees another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from nplus.data.targets import TargetRow, pack, packed_batch, target_batch
from nplus.records import InputError
from nplus.stages.turns import either_objective

PAD = 263
LENGTHS = [9, 5, 14, 3, 7, 7]


def rows_of(lengths: list[int], seed: int = 0) -> list[TargetRow]:
    draw = torch.Generator().manual_seed(seed)
    return [
        TargetRow(
            torch.randint(7, 263, (n,), generator=draw).tolist(),
            (torch.rand(n, generator=draw) < 0.6).tolist(),
        )
        for n in lengths
    ]


def loss_and_gradients(
    model: LlamaForCausalLM, batches: list[Any]
) -> tuple[float, float, list[torch.Tensor]]:
    model.zero_grad()
    total = count = 0.0
    for batch in batches:
        mean = either_objective(model, batch).terms["train"][1]
        mean.sum.backward()
        total, count = total + float(mean.sum.detach()), count + float(mean.count)
    return total, count, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attn", ["eager", "sdpa", "batched"])
@pytest.mark.parametrize("plain", [True, False])
def test_loss_and_gradients_are_those_of_the_rows_apart(
    llama: Callable[..., LlamaForCausalLM], attn: str, plain: bool
) -> None:
    # transformers' eager attention takes its softmax in float32
    dtype = torch.float32 if attn == "eager" else torch.float64
    model = llama(attn, dtype)
    if not plain:
        model.nplus_head = ((model.get_output_embeddings(),), (None,))
    rows = rows_of(LENGTHS)
    apart = loss_and_gradients(model, [target_batch([row], pad_id=PAD) for row in rows])
    packs = pack(rows, 20)
    assert len(packs) == 3
    packed = loss_and_gradients(model, [packed_batch(packs, pad_id=PAD, multiple=16)])
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    assert apart[1] == packed[1] > 10
    assert packed[0] == pytest.approx(apart[0], rel=bound)
    for ours, theirs in zip(packed[2], apart[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * float(theirs.abs().max()))


def test_the_loss_is_that_of_the_definition(llama: Callable[..., LlamaForCausalLM]) -> None:
    """Oracle: minus the log-prob of each target, one sequence at a time, by torch alone."""
    model = llama("sdpa", torch.float64)
    rows = rows_of(LENGTHS)
    expected = 0.0
    for row in rows:
        tokens = torch.tensor([row.tokens])
        with torch.no_grad():
            logprobs = model(input_ids=tokens).logits[0].log_softmax(-1)
        for at in range(1, len(row.tokens)):
            expected -= float(logprobs[at - 1, row.tokens[at]]) * row.targets[at]
    found = either_objective(model, packed_batch(pack(rows, 20), pad_id=PAD))
    assert float(found.terms["train"][1].sum.detach()) == pytest.approx(expected, rel=1e-6)


def test_a_conversation_is_blind_to_its_neighbours(
    llama: Callable[..., LlamaForCausalLM],
) -> None:
    model = llama("batched", torch.float64)
    first, second, third = rows_of([6, 8, 5])
    other = TargetRow([(t * 5) % 250 + 7 for t in second.tokens], second.targets)

    def gradient(middle: TargetRow) -> torch.Tensor:
        """Of the loss of the first and the third, by the embeddings."""
        silent = TargetRow(middle.tokens, [False] * len(middle.tokens))
        batch = packed_batch([[first, silent, third]], pad_id=PAD)
        return loss_and_gradients(model, [batch])[2][0]

    torch.testing.assert_close(gradient(second), gradient(other), rtol=0, atol=0)


def test_nothing_predicts_a_first_token() -> None:
    rows = [TargetRow([7, 8, 9], [True] * 3), TargetRow([10, 11], [True] * 2)]
    batch = packed_batch([rows], pad_id=PAD)
    assert batch.loss_mask_BT.tolist() == [[False, True, True, False, True]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 1, 1]]
    assert batch.sees_BTT()[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_packs_hold_every_row_once_within_the_width() -> None:
    rows = rows_of([3 + (7 * i) % 17 for i in range(60)])
    packs = pack(rows, 20)
    inside = [row for each in packs for row in each]
    assert sorted(map(str, inside)) == sorted(map(str, rows))
    sizes = [sum(len(row.tokens) for row in each) for each in packs]
    assert max(sizes) <= 20
    # Best-fit decreasing takes at most 11/9 of the fewest rows, and one more (Johnson 1974).
    assert len(packs) <= 11 / 9 * -(-sum(sizes) // 20) + 1


def test_a_row_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match=r"sft\.max_length=10: a conversation has 12 tokens"):
        pack(rows_of([12]), 10)
