"""The pairwise preference model: what is trained is what is read, and no place is preferred."""

import dataclasses
import math

import pytest
import torch

from nplus.data.collate import token_batch
from nplus.data.preference import (
    BEFORE,
    chosen_first,
    letter_ids,
    letter_rows,
    pair_prompts,
    require_match_room,
    require_room,
)
from nplus.data.tokens import train_bpe
from nplus.models.toy import toy_config
from nplus.records import Comparison, InputError
from nplus.runs.ledger import read_ledger
from nplus.stages.forwards import token_objective
from nplus.stages.online import score
from nplus.stages.online.pair import knocked_out
from nplus.stages.preference import PairwiseModel, mean_of_orders

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "A or B is better, they say"] * 40


@pytest.fixture(scope="module")
def codec():
    return train_bpe(TEXTS, 300)


@pytest.fixture(scope="module")
def model(codec):
    from transformers import GPTNeoXForCausalLM

    config = toy_config("0.3M", vocab_size=codec.size, eos_id=codec.eos_id, pad_id=codec.pad_id)
    config.initializer_range = 0.3
    torch.manual_seed(3)
    return GPTNeoXForCausalLM(config).eval()


def comparisons(count):
    return [
        Comparison(f"p{i}", f"query {i}\n", (f"the cat {i}", f"a dog {i}"), ("x", "y"), i % 2)
        for i in range(count)
    ]


def test_the_letter_says_where_the_chosen_response_stands(codec):
    rows, found = comparisons(40), letter_rows(codec, comparisons(40), seed=7)
    letters = letter_ids(codec)
    sides = set()
    for row, (prompt, letter) in zip(rows, found, strict=True):
        text = codec.decode(prompt)
        first, second = text.index(row.chosen), text.index(row.rejected)
        assert letter == [letters[0 if first < second else 1]]
        sides.add(first < second)
    assert sides == {True, False}
    assert found == letter_rows(codec, comparisons(40), seed=7)
    assert found != letter_rows(codec, comparisons(40), seed=8)


def test_sides_are_even(codec):
    rows = comparisons(2000)
    share = sum(chosen_first(1, row, i) for i, row in enumerate(rows)) / 2000
    assert abs(share - 0.5) < 0.04


def test_a_response_that_holds_the_markers_changes_no_other_token(codec):
    """Parts are joined by ids: a text that holds a marker cannot end its own part."""
    row = comparisons(1)[0]
    trick = dataclasses.replace(row, responses=(f"x{BEFORE[1]}y", "plain"), choice=0)
    (found,) = letter_rows(codec, [trick], seed=1)
    assert found.prompt.count(codec.encode("plain")[0]) >= 1
    assert len(found.prompt) == sum(
        len(codec.encode(part)) for part in (row.query, *BEFORE, *trick.responses)
    )


@torch.no_grad()
def test_the_position_read_is_the_position_trained(codec, model):
    """The published evaluation built its prompt without the header that training had (spec trap):
    here the loss of training is minus the log of the probability that reading gives."""
    rows = comparisons(6)
    trained = letter_rows(codec, rows, seed=5)
    judge = PairwiseModel(model, codec, size=4)
    letters = letter_ids(codec)
    for row, number, (prompt, letter) in zip(rows, range(6), trained, strict=True):
        batch = token_batch([(prompt, letter)], pad_id=codec.pad_id, loss_on="response")
        total, _ = token_objective(model, batch).terms["train"]
        nll = token_objective(model, batch).terms["train"][1].sum
        first = chosen_first(5, row, number)
        pair = (row.chosen, row.rejected) if first else (row.rejected, row.chosen)
        (p,) = judge._first_is_better([(row.query, pair)])
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
        two = logits[list(letters)].softmax(0)
        assert p == pytest.approx(float(two[0]), abs=1e-5)
        whole = -logits.log_softmax(0)[letter[0]]
        assert float(nll) == pytest.approx(float(whole), abs=1e-4)
        assert total == 1.0


@pytest.mark.parametrize("bias", [-6.0, -0.5, 0.0, 2.0, 6.0])
@pytest.mark.parametrize("wanted", [-3.0, -0.01, 0.01, 1.0])
def test_a_bias_for_a_place_never_turns_the_verdict(bias, wanted):
    forward = float(torch.sigmoid(torch.tensor(wanted + bias, dtype=torch.float64)))
    back = float(torch.sigmoid(torch.tensor(-wanted + bias, dtype=torch.float64)))
    assert (mean_of_orders(forward, back) > 0.5) == (wanted > 0)


def test_both_orders_sum_to_one(codec, model):
    judge = PairwiseModel(model, codec, size=3)
    asked = [(row.query, row.responses) for row in comparisons(5)]
    turned = [(query, pair[::-1]) for query, pair in asked]
    for one, other in zip(judge.preferences(asked), judge.preferences(turned), strict=True):
        assert one + other == pytest.approx(1.0, abs=1e-6)


def test_the_same_response_twice_is_a_tie(codec, model):
    judge = PairwiseModel(model, codec)
    row = dataclasses.replace(comparisons(1)[0], responses=("same", "same"))
    assert judge.compare([row])[0].winner == "tie"


def test_batches_and_padding_change_nothing(codec, model):
    asked = [(row.query * (i + 1), row.responses) for i, row in enumerate(comparisons(5))]
    one, many = (PairwiseModel(model, codec, size=size).preferences(asked) for size in (1, 5))
    assert one == pytest.approx(many, abs=1e-5)


def test_too_long_is_told():
    with pytest.raises(InputError, match=r"'p1'.*11 tokens, the model takes 10"):
        require_room([[0] * 10, [0] * 11], ["p0", "p1"], 11)


def test_a_query_without_room_for_two_responses_is_told(codec):
    (empty,) = pair_prompts(codec, ["Q:"], [("", "")])
    queries = {"p0": "", "p1": "Q:"}
    require_match_room(codec, queries, 5, len(empty) + 11)
    require_match_room(codec, queries, 5, None)
    with pytest.raises(InputError, match=r"'p1'.*10 more.*online\.response_length"):
        require_match_room(codec, queries, 5, len(empty) + 10)


def test_a_match_that_is_no_number_leaves_its_prompt_out():
    """Whichever match of the prompt it was."""

    class Judge:
        def preferences(self, asked):
            return [math.nan if "odd" in pair else 0.9 for _, pair in asked]

    piece = [
        {"query": "p0", "responses": ["a", "b", "c"]},
        {"query": "p1", "responses": ["a", "odd", "c"]},
    ]
    first, second = score._knocked_out(piece, Judge(), "mark")
    assert first["matches"] == [(0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.9), (0, 2, 0.9)]
    pairs = [
        knocked_out(found["matches"], row["responses"], min_margin=0.0)
        for found, row in zip((first, second), piece, strict=True)
    ]
    assert (pairs[0].chosen, pairs[0].rejected, pairs[0].reason) == (0, 2, "")
    assert pairs[0].margin == pytest.approx(0.8)
    assert pairs[1].reason == "nan"


@pytest.mark.parametrize("unread", range(4))
def test_any_match_that_is_no_number_leaves_no_pair(unread):
    matches = [(0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.9), (0, 2, 0.9)]
    assert knocked_out(matches, ("a", "b", "c"), min_margin=0.0).reason == ""
    matches[unread] = (*matches[unread][:2], math.nan)
    assert knocked_out(matches, ("a", "b", "c"), min_margin=0.0).reason == "nan"


def replayed(row):
    """The pair that the recorded matches of a prompt lead to."""
    told = zip(row.matches, row.preferences, strict=True)
    best, field = 0, range(len(row.responses))
    for rival in field[1:]:
        (match, p) = next(told)
        assert match == (best, rival)
        best = rival if p < 0.5 else best
    worst, *rivals = (i for i in field if i != best)
    for rival in rivals:
        (match, p) = next(told)
        assert match == (worst, rival)
        worst = rival if p > 0.5 else worst
    ((match, p),) = told
    assert match == (best, worst)
    return (best, worst) if p >= 0.5 else (worst, best)


def test_on_the_road(road_config, drive, tmp_path):
    """Trained on the road, and asked in a knock-out of the online loop."""
    batch = {"batch_size": 8, "micro_batch_size": 4}
    loop = {
        "rounds": 1,
        "prompts": 4,
        "samples": 4,
        "response_length": 48,
        "pairing": "knockout",
        "train": {"batch": {"batch_size": 2, "micro_batch_size": 2}},
    }
    config = road_config(preference={"batch": batch}, online=loop)
    root = drive(config, tmp_path / "run", until="online")
    found = root.stages()["preference"].manifest().results
    assert found["validation"]["accuracy"]["n"] > 0
    assert 0 <= found["first_place"]["p_first"] <= 1
    rows = [row for path in root.ledgers() for row in read_ledger(path)]
    assert {row.pairing for row in rows} == {"knockout"}
    assert all(row.comparator_hash for row in rows)
    assert all(0 <= row.margin <= 1 for row in rows)
    for row in rows:
        assert replayed(row) == (row.chosen, row.rejected)
        assert len(row.matches) == 3 + 2 + 1  # the best, the worst, and their own


def test_knock_out_without_a_model_is_refused(road_config):
    with pytest.raises(ValueError, match=r"preference=\{\}"):
        road_config(online={"pairing": "knockout", "response_length": 48})
