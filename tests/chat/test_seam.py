"""The tokens of a prompt begin those of the whole conversation, or the row is refused."""

from __future__ import annotations

import json

import pytest
from talk import chat_config, make_tokenizer, turns
from tokenizers import Tokenizer

from nplus.data.conversations import dialogue
from nplus.data.fit import Limits, fit
from nplus.data.tokens import Codec

NO_LIMIT = Limits(None, "", None, "")
CUE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Its prompt ends with a space, which many tokenizers join with the word that follows."""


def joining(template: str) -> Codec:
    """A tokenizer with one merge: a space and an S are one token."""
    tokenizer = make_tokenizer(template, eos_token="</s>", pad_token="</s>")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["ĠS"] = len(spec["model"]["vocab"])
    spec["model"]["merges"] = [["Ġ", "S"]]
    spec["pre_tokenizer"]["use_regex"] = False
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    return Codec(tokenizer).for_data(chat_config())


@pytest.mark.parametrize(("answer", "ends"), [("So.", False), ("Yes.", True)])
def test_a_token_across_the_prompt_s_end(answer: str, ends: bool) -> None:
    codec = joining(CUE)
    row = dialogue("f, line 4", {"messages": turns("Why?", answer)})
    (found,) = fit([row], codec, chat_config(), query_limit=99, limits=NO_LIMIT)
    assert (found.faults == ()) == ends
    if not ends:
        assert "f, line 4: the tokenizer joins the end of the prompt" in str(found.faults[0])
        dropped = fit([row], codec, chat_config(faulty="drop"), query_limit=99, limits=NO_LIMIT)
        assert dropped[0].filtered
