"""Settings that take `auto`: which they are, how they are written, and what is refused."""

import pytest

from nplus.config import RunConfig
from nplus.config.auto import AUTO_KEYS, auto_keys, value_of, with_values
from nplus.config.load import dump_yaml, known_keys, load_config
from nplus.config.memory import memory_plan
from nplus.config.shapes import shape_of
from nplus.recipes import RECIPES, recipe
from nplus.records import InputError


def takes_auto(key):
    try:
        config = load_config(recipe("toy"), sets=[f"{key}=auto"])
    except InputError:
        return False
    return value_of(config, key) == "auto"


def test_the_list_is_the_settings_that_take_auto():
    words = {"model.model_name_or_path", "model.revision", "tokenizer.pad_token", "compute.device"}
    computing = [k for k in known_keys() if k.split(".")[0] in ("compute", "model") and "." in k]
    assert {key for key in computing if takes_auto(key)} - words == set(AUTO_KEYS)


def test_no_recipe_and_no_default_is_auto():
    assert [name for name, make in RECIPES.items() if auto_keys(make())] == []
    assert auto_keys(RunConfig(recipe="x", model={"model_name_or_path": "m"}, sample={})) == ()


def test_compute_auto_is_short_for_all_and_the_last_word_wins():
    config = load_config(recipe("toy"), sets=["compute=auto", "compute.threads=3"])
    assert auto_keys(config) == tuple(k for k in AUTO_KEYS if k != "compute.threads")
    assert config.compute.threads == 3
    # What is not for auto stays the recipe's.
    assert (config.compute.device, config.compute.autocast) == ("cpu", "bfloat16")
    assert config.model.size == "1M"
    assert auto_keys(load_config(config, sets=["model.attn_implementation=eager"])) == (
        "compute.side_by_side",
        "compute.matmul_precision",
        "compute.allocator",
    )


def test_compute_auto_in_a_file_leaves_what_stands_beside_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("compute: auto\nmodel: {attn_implementation: eager}\n", encoding="utf-8")
    assert set(auto_keys(load_config(recipe("toy"), config_file=file))) == {
        key for key in AUTO_KEYS if key.startswith("compute.")
    }


def test_a_config_with_auto_survives_its_yaml(tmp_path):
    config = load_config(recipe("toy"), sets=["compute=auto"])
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(recipe("toy"), config_file=file) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compute.threads=0", "compute.threads: given 0; must be a number from 1 to 1024, auto or"),
        ("compute.threads=true", "compute.threads: given True"),
        ("compute.threads=many", "compute.threads: given 'many'"),
        ("compute.side_by_side=maybe", "compute.side_by_side: given 'maybe'; must be true, false"),
        ("compute.allocator=jemalloc", "compute.allocator='jemalloc': must be 'one_arena', 'keep'"),
        ("compute.autocast=auto", "compute.autocast='auto': must be 'none' or 'bfloat16'"),
        ("compute=fast", "compute='fast': a component; set its keys"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_and_mend(text, message):
    with pytest.raises(InputError) as caught:
        load_config(recipe("toy"), sets=[text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_take_the_place_of_auto_and_are_checked():
    config = load_config(recipe("toy"), sets=["compute=auto"])
    found = with_values(config, {"compute.threads": 2, "model.attn_implementation": "batched"})
    assert (found.compute.threads, found.model.attn_implementation) == (2, "batched")
    assert config.compute.threads == "auto"
    with pytest.raises(ValueError, match="attn_implementation"):
        with_values(config, {"model.attn_implementation": "fast"})


def test_memory_counts_auto_as_the_attention_that_takes_most():
    totals = {}
    for kind in ("eager", "sdpa", "batched", "auto"):
        config = load_config(recipe("toy"), sets=[f"model.attn_implementation={kind}"])
        totals[kind] = memory_plan(config, shape_of(config))["ppo"].total
    assert totals["auto"] == max(totals.values()) > totals["sdpa"]
