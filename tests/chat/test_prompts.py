"""Conversations without an answer, as the online loop draws responses to them."""

from collections import Counter

import pytest
from talk import chat_config, turns

from nplus.data.prompts import fit_prompts, load_prompts
from nplus.records import RowError

SYSTEM = "<|im_start|>system\nYou are a helpful machine.<|im_end|>\n"


@pytest.mark.parametrize(
    "row",
    [
        {"context_messages": turns("Who?")},  # as public collections of prompts name it
        {"messages": turns("Who?")},
        {"prompt": turns("Who?")},
        {"prompt": "Who?"},
        {"query": "\n\nHuman: Who?\n\nAssistant:"},
    ],
)
def test_every_schema_of_a_prompt_reads_alike(codec, write, row):
    data = chat_config(max_query_tokens=200)
    rows = load_prompts(str(write("p.jsonl", [row])), data, Counter())
    [found], told = fit_prompts(rows, codec, data)
    assert found.query == f"{SYSTEM}<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert found.response == ""
    assert told["rows"] == 1
    assert "response_tokens_max" not in told


def test_a_conversation_that_the_assistant_ends_is_no_prompt(write):
    path = write("p.jsonl", [{"prompt": "a"}, {"messages": turns("Who?", "Me.")}])
    with pytest.raises(RowError, match=r"p\.jsonl, line 2: .*assistant after assistant"):
        load_prompts(str(path), chat_config(), Counter())
    dropped = Counter()
    assert len(load_prompts(str(path), chat_config(faulty="drop"), dropped)) == 1
    assert dropped == {"roles_alternate": 1}


def test_what_is_alike_once_it_is_cut_is_kept_once(codec, write):
    """Two conversations that differ in their first exchange alone, which does not fit."""
    talks = [turns(f"{n}" * 150, "Yes.", "And then?") for n in range(2)]
    data = chat_config(max_query_tokens=150)
    rows = load_prompts(
        str(write("p.jsonl", [{"messages": talk} for talk in talks])), data, Counter()
    )
    found, told = fit_prompts(rows, codec, data)
    assert [prompt.query.count("<|im_start|>user") for prompt in found] == [1]
    assert (told["rows"], told["dropped"]) == (1, 1)
