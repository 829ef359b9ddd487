"""The pairwise preference model on conversations: it is read where it was trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from talk import CHATML, chat_config, make_tokenizer, turns

from nplus.data.collate import token_batch
from nplus.data.comparisons import fit_comparisons
from nplus.data.conversations import Message, preference
from nplus.data.preference import BEFORE, chosen_first, letter_ids, letter_rows
from nplus.data.tokens import Codec
from nplus.records import Comparison
from nplus.stages.forwards import token_objective
from nplus.stages.preference import PairwiseModel

TALKS = [("Hi",), ("Hi", "Ho", "Why?"), ("Tea?", "Tea.", "More?", "No.", "A or B?")]
SEED = 5


@pytest.fixture(scope="module", params=["no BOS", "BOS"])
def codec(request: Any) -> Codec:
    made = make_tokenizer()
    if request.param == "BOS":
        made = make_tokenizer("{{ bos_token }}" + CHATML, adds_bos=True, bos_token="<s>")
    return Codec(made).for_data(chat_config())


@pytest.fixture(scope="module")
def comparisons(codec: Codec) -> list[Comparison]:
    rows = []
    for n, said in enumerate([*TALKS, *TALKS]):
        pair = {"chosen": turns(*said, f"Yes, {n}."), "rejected": turns(*said, "no")}
        rows.append(preference(f"f, line {n}", pair))
    return fit_comparisons({"train": rows}, codec, chat_config(max_query_tokens=200))[0]


@pytest.fixture(scope="module")
def judge(codec: Codec, llama: Any) -> PairwiseModel:
    return PairwiseModel(llama(), codec, size=4)


def sides(row: Comparison, number: int) -> tuple[str, str]:
    """The responses in the order of training."""
    first = chosen_first(SEED, row, number)
    return (row.chosen, row.rejected) if first else (row.rejected, row.chosen)


@torch.no_grad()
def test_the_position_read_is_the_position_trained(
    codec: Codec, comparisons: list[Comparison], judge: PairwiseModel
) -> None:
    """The loss of a training row is minus the log of the letter's probability at its prompt's last
    token, and reading compares the letters there."""
    letters = list(letter_ids(codec))
    found = letter_rows(codec, comparisons, SEED)
    asked = [(row.query, sides(row, n)) for n, row in enumerate(comparisons)]
    read = judge._first_is_better(asked)
    assert {letter[0] for _, letter in found} == {*letters}
    for (prompt, letter), p in zip(found, read, strict=True):
        logits = judge.model(torch.tensor([prompt])).logits[0, -1].double()
        assert p == pytest.approx(float(logits[letters].softmax(0)[0]), abs=1e-5)
        batch = token_batch([(prompt, letter)], pad_id=codec.pad_id, loss_on="response")
        loss = token_objective(judge.model, batch).terms["train"][1]
        assert loss.count == 1
        assert float(loss.sum) == pytest.approx(-float(logits.log_softmax(0)[letter[0]]), abs=1e-4)


def test_both_orders_sum_to_one(comparisons: list[Comparison], judge: PairwiseModel) -> None:
    asked = [(row.query, row.responses) for row in comparisons]
    turned = [(query, pair[::-1]) for query, pair in asked]
    for one, other in zip(judge.preferences(asked), judge.preferences(turned), strict=True):
        assert one + other == pytest.approx(1.0, abs=1e-6)
        assert one != pytest.approx(0.5, abs=1e-9)


def test_the_comparison_is_one_turn_of_the_user(
    codec: Codec, comparisons: list[Comparison]
) -> None:
    """The conversation stands in it as a transcript, and the assistant speaks next."""
    assert codec.chat is not None
    opened, closed = codec.chat.prompt([Message("user", "?")]).split("?")
    for n, (row, (prompt, _)) in enumerate(
        zip(comparisons, letter_rows(codec, comparisons, SEED), strict=True)
    ):
        transcript = row.query.replace("<|im_end|>", "\n")
        for name in ("<|im_start|>", "<s>"):
            transcript = transcript.replace(name, "")
        first, second = sides(row, n)
        asked = f"{transcript}{BEFORE[0]}{first}{BEFORE[1]}{second}{BEFORE[2]}"
        found = codec.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        assert found == f"{opened}{asked}{closed}"
        assert all(said in transcript for said in TALKS[n % len(TALKS)])
