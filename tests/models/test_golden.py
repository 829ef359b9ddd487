"""Golden scores: a head that is not the saved one is refused, what rounding does is not.

The oracle of what is stored is plain transformers, one row at a time.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from nplus.data.tokens import train_bpe
from nplus.models.golden import FILE, GoldenScoreError
from nplus.models.scalar import SHIFT_KEY, ScalarModel
from nplus.records import InputError

PAD = 1


@pytest.fixture
def saved(causal, tmp_path):
    """A saved reward model with a shift, of each family."""
    model = ScalarModel.from_causal(causal, pad_id=PAD, seed=0).eval()
    model.set_shift(1.75)
    model.save(tmp_path / "reward")
    return tmp_path / "reward"


def rewrite(path, change):
    file = path / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_the_stored_logits_are_those_of_plain_transformers(saved):
    stored = json.loads((saved / FILE).read_text())
    shift = json.loads((saved / "config.json").read_text())[SHIFT_KEY]
    network = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        for row, logit, score in zip(
            stored["rows"], stored["logits"], stored["scores"], strict=True
        ):
            plain = float(network(torch.tensor([row])).logits)
            assert plain == pytest.approx(logit, abs=1e-4)
            assert plain - shift == pytest.approx(score, abs=1e-4)
    assert len({len(row) for row in stored["rows"]}) > 1


def test_what_was_saved_loads_again_and_again(saved, tmp_path):
    ScalarModel.load(saved).save(tmp_path / "second")
    ScalarModel.load(tmp_path / "second")
    ScalarModel.load(saved, dtype=torch.bfloat16)  # rounding is no mismatch


def reinitialised(state):
    weight = state["score.weight"]
    state["score.weight"] = torch.randn(weight.shape, generator=torch.manual_seed(7)) * weight.std()


def negated(state):
    state["score.weight"] = -state["score.weight"]


def zeroed(state):
    state["score.weight"] = torch.zeros_like(state["score.weight"])


def another_trunk(state):
    name = next(n for n, x in state.items() if x.dim() == 2 and "score" not in n)
    state[name] = state[name].flip(0).contiguous()


@pytest.mark.parametrize("change", [reinitialised, negated, zeroed, another_trunk])
@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_other_weights_are_refused(saved, change, dtype):
    rewrite(saved, change)
    with pytest.raises(GoldenScoreError, match=r"reward: the scores of its golden rows are off"):
        ScalarModel.load(saved, dtype=dtype)


def test_a_lost_shift_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config[SHIFT_KEY] += 1.0
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(GoldenScoreError, match="off by up to 1, where rounding explains"):
        ScalarModel.load(saved)


def test_a_model_from_elsewhere_has_no_golden_scores_and_loads(saved):
    (saved / FILE).unlink()
    ScalarModel.load(saved)


def test_a_torn_file_is_named(saved):
    (saved / FILE).write_text("{")
    with pytest.raises(InputError, match=r"golden_scores\.json: not golden scores"):
        ScalarModel.load(saved)


def test_saving_does_not_depend_on_mode_or_precision(causal, saved, tmp_path):
    model = ScalarModel.from_causal(causal, pad_id=PAD, seed=0).train()
    model.set_shift(1.75)
    before, used = torch.get_float32_matmul_precision(), []
    model.network.base_model.register_forward_hook(
        lambda *_: used.append((torch.get_float32_matmul_precision(), model.network.training))
    )
    torch.set_float32_matmul_precision("medium")
    try:
        model.save(tmp_path / "other")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert model.network.training
    assert used == [("highest", False)]
    stored = [json.loads((p / FILE).read_text()) for p in (saved, tmp_path / "other")]
    assert stored[0]["scores"] == pytest.approx(stored[1]["scores"], abs=1e-5)


def test_rows_of_a_tokenizer_end_with_eos_and_hold_text(causal, tmp_path):
    tokenizer = train_bpe(["a b c"], 300).tokenizer
    model = ScalarModel.from_causal(causal, pad_id=PAD, seed=0)
    model.save(tmp_path / "reward", tokenizer)
    rows = json.loads((tmp_path / "reward" / FILE).read_text())["rows"]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert max(map(len, rows)) <= 48
