"""Every malformed model directory is refused before any stage begins."""

import pytest
from zoo_models import CASES, COMMAND, DATA, pickled, prepare

from nplus.config import ModelConfig
from nplus.models.files import load_causal_lm


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_model_is_refused(case, good_model, place, refused):
    prepare(case, good_model, place)
    refused(case.command, case.says)


def test_the_same_without_a_fault_is_taken(good_model, place, call):
    import shutil

    shutil.copytree(good_model, place / "model")
    DATA(place)
    result = call(*COMMAND, "--until", "data")
    assert result.exit_code == 0, result.output


def test_a_pickle_is_read_only_where_it_is_asked_for(good_model, place, call):
    import shutil

    shutil.copytree(good_model, place / "model")
    DATA(place)
    whole = load_causal_lm(ModelConfig(model_name_or_path="./model")).state_dict()
    pickled(place)
    told = call(*COMMAND, "--until", "data", "--set", "model.allow_pickle=true")
    assert told.exit_code == 0, told.output
    assert "pickled weights are read" in told.output
    asked = ModelConfig(model_name_or_path="./model", allow_pickle=True)
    again = load_causal_lm(asked).state_dict()
    assert all(again[name].equal(value) for name, value in whole.items())
