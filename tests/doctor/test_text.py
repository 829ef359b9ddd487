"""Planted faults of text and tokenizer are named; sound ones are not."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from nplus.config.load import load_config
from nplus.data.collate import sequence_rows
from nplus.data.tokens import Codec, TextRules, train_bpe
from nplus.recipes import recipe
from nplus.records import Demonstration
from nplus.stages.doctor.settings import settings_findings
from nplus.stages.doctor.text import doubled_bos, eos_targets, template_bos, text_findings

TEXTS = [f"the cat number {n} sat on mat {n * 7}" + " zz" * (n % 4) for n in range(20)]
ROWS = [Demonstration(str(n), f"POST: {text}\n\nTL;DR:", text) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def codec():
    return train_bpe(TEXTS, 320)


def names(findings):
    return [finding.name for finding in findings]


def with_template(template, adds):
    """A tokenizer with a BOS, a chat template, and maybe a post-processor that adds the BOS."""
    core = train_bpe(TEXTS, 320).tokenizer.backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|endoftext|>", pad_token="[PAD]"
    )
    if adds:
        bos = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    tokenizer.chat_template = template
    return tokenizer


TURNS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "adds", "expected"),
    [
        ("{{ bos_token }}" + TURNS, True, ["template_double_bos"]),
        ("{{ bos_token }}" + TURNS, False, []),
        (TURNS, True, []),
        (None, True, []),
        ("{{ raise_exception('no') }}", True, []),
    ],
)
def test_a_template_and_a_tokenizer_that_both_write_bos(template, adds, expected):
    assert names(template_bos(with_template(template, adds))) == expected


def test_rows_that_begin_with_two_bos(codec):
    rows = sequence_rows(codec, ROWS)
    planted = [([7, 7, *query], response) for query, response in rows[:3]] + rows[3:]
    [finding] = doubled_bos(planted, 7)
    assert finding.name == "double_bos"
    assert finding.numbers == {"doubled": 3, "rows": 20, "token": 7}
    once = [([7, *query], response) for query, response in rows]
    assert names(doubled_bos(once, 7)) == []
    assert names(doubled_bos(planted, None)) == []


def test_a_tokenizer_that_adds_bos_behind_our_back_is_seen_in_the_rows(monkeypatch):
    # add_special_tokens=False notwithstanding: a normaliser or a template column that writes it.
    codec = Codec(with_template(None, adds=False))
    config = recipe("toy")
    assert names(text_findings(codec, ROWS, config)) == []
    bos, plain = codec.tokenizer.bos_token_id, codec.encode_batch
    monkeypatch.setattr(codec, "encode_batch", lambda texts: [[bos, bos, *x] for x in plain(texts)])
    assert "double_bos" in names(text_findings(codec, ROWS, config))


def test_sound_rows_have_no_findings(codec):
    assert names(text_findings(codec, ROWS, recipe("toy"))) == []


def test_pad_that_is_eos_and_what_it_does_to_the_targets(codec):
    same = codec.with_rules(TextRules(distinct_pad=False))
    pad, eos = text_findings(same, ROWS, recipe("toy"))
    assert (pad.name, eos.name) == ("pad_is_eos", "eos_not_trained")
    assert "20 have it masked as padding" in eos.said
    assert eos.numbers == {"rows": 20, "with_eos": 20, "trained": 0}


def test_eos_that_is_cut_off(codec):
    lengths = sorted(len(response) for _, response in sequence_rows(codec, ROWS))
    for cut, name in ((lengths[0] - 1, "eos_not_trained"), (lengths[-1] - 1, "eos_cut")):
        short = codec.with_rules(TextRules(cut_to=cut))
        [finding] = text_findings(short, ROWS, recipe("toy"))
        assert finding.name == name
        assert "have it cut off" in finding.said
    assert 0 < finding.numbers["trained"] < 20


def test_eos_counts_only_where_the_loss_does(codec):
    rows = sequence_rows(codec, ROWS)
    inside = [([*query, codec.eos_id], response[:-1]) for query, response in rows]
    assert names(eos_targets(inside, codec, "response")) == ["eos_not_trained"]
    assert names(eos_targets([], codec, "all")) == []


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ((), []),
        (("model.dropout=0.1",), ["dropout_set"]),
        (("tokenizer.distinct_pad=false",), ["pad_is_eos"]),
        (("ppo.tempered=[old,reference]",), ["tempered_unevenly"]),
        (("ppo.tempered=[]",), ["tempered_unevenly"]),
        (("ppo.tempered=[old]", "ppo.sampling.temperature=1"), []),
        (("ppo.tempered=[old]", "until=sft"), []),
        (("ppo.autocast=bfloat16",), ["autocast_in_update"]),
    ],
)
def test_settings(sets, expected):
    assert names(settings_findings(load_config(recipe("toy:tiny"), sets=sets))) == expected
