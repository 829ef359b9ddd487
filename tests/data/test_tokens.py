from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nplus.data.tokens import Codec, train_bpe
from nplus.records import InputError


def plain_tokenizer(**special: object) -> PreTrainedTokenizerFast:
    """Byte-level, no merges; EOS is an ordinary vocabulary entry with id 0, as in Pythia."""
    names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


# A6: one space, the text, EOS.


@pytest.mark.parametrize("text", ["A boat.", " A boat.", "  \n A boat. \n"])
def test_a_response_starts_with_one_space_and_ends_with_eos(codec: Codec, text: str) -> None:
    ids = codec.encode_response(text)
    assert ids[-1] == codec.eos_id
    assert ids.count(codec.eos_id) == 1
    assert codec.decode(ids[:-1]) == " A boat."


def test_an_empty_response_is_eos_alone(codec: Codec) -> None:
    assert codec.encode_response(" ") == [codec.eos_id]


def test_a_decoded_response_ends_at_the_first_eos_or_pad(codec: Codec) -> None:
    body = codec.encode(" A boat.")
    junk = codec.encode(" junk")
    assert codec.decode_response([*body, codec.eos_id, *junk, codec.eos_id]) == "A boat."
    assert codec.decode_response([*body, codec.pad_id, *junk]) == "A boat."
    assert codec.decode_response(body) == "A boat."
    assert codec.decode_response([codec.eos_id, *junk]) == ""


# A7: PAD of its own.


def test_a_tokenizer_without_pad_gets_one_at_the_end() -> None:
    bare = plain_tokenizer(eos_token="<|endoftext|>")
    before = len(bare)
    codec = Codec(bare)
    assert (codec.eos_id, codec.pad_id) == (0, before)
    assert codec.size == codec.required_rows == before + 1


def test_pad_equal_to_eos_is_replaced() -> None:
    codec = Codec(plain_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>"))
    assert codec.pad_id != codec.eos_id
    assert codec.tokenizer.pad_token == "[PAD]"


def test_a_pad_of_its_own_is_kept() -> None:
    tokenizer = plain_tokenizer(eos_token="<|endoftext|>", pad_token="<pad>")
    assert Codec(tokenizer).tokenizer.pad_token == "<pad>"


def test_pad_named_like_eos_is_refused() -> None:
    with pytest.raises(InputError, match=r"pad_token='<\|endoftext\|>' is the EOS token"):
        Codec(plain_tokenizer(eos_token="<|endoftext|>"), pad_token="<|endoftext|>")
    with pytest.raises(InputError, match="is the EOS token"):
        train_bpe(["a"], 300, pad_token="<|endoftext|>")


# A8: EOS ends a response and nothing else does.


@pytest.mark.parametrize("text", ["I pasted <|endoftext|> here", "<|endoftext|>", "[PAD] x [PAD]"])
def test_markers_inside_a_text_are_text(codec: Codec, text: str) -> None:
    ids = codec.encode(text)
    assert not {codec.eos_id, codec.pad_id} & set(ids)
    assert codec.decode(ids) == text
    assert codec.decode_response(codec.encode_response(text)) == text


def test_markers_stay_text_after_saving_and_loading(codec: Codec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    again = Codec.load(tmp_path)
    text = "a <|endoftext|> [PAD] b — 日本 it 's"
    assert again.encode(text) == codec.encode(text)
    assert again.decode(again.encode(text)) == text
    assert (again.eos_id, again.pad_id, again.size) == (codec.eos_id, codec.pad_id, codec.size)


def test_a_tokenizer_that_reads_eos_out_of_text_is_refused() -> None:
    # Pieces are whole words here, and EOS is one of the words.
    core = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    with pytest.raises(InputError, match="inside a text"):
        Codec(tokenizer)


# Loading and training.


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(InputError, match="no EOS token"):
        Codec(plain_tokenizer())


def test_missing_and_empty_tokenizer_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tokenizer directory"):
        Codec.load(tmp_path / "absent")
    with pytest.raises(InputError, match="no tokenizer could be loaded"):
        Codec.load(tmp_path)


def test_no_bos_is_added() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = plain_tokenizer(eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("ab")["input_ids"][0] == 0
    assert 0 not in Codec(tokenizer).encode_query("ab")


def test_training_is_deterministic_and_order_free(codec: Codec) -> None:
    texts = [f"the {a} boat of the {b} harbour" for a in "abcdef" for b in "uvwxyz"]
    first, second = train_bpe(texts, 320), train_bpe(texts[::-1], 320)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    probe = "the harbour boats of abc"
    assert first.encode(probe) == second.encode(probe)
    assert (first.eos_id, first.pad_id, codec.eos_id) == (0, 1, 0)
    assert first.size <= 320


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"vocab_size=200 is too small.*258"):
        train_bpe(["a"], 200)


def test_a_batch_is_encoded_like_its_texts(codec: Codec) -> None:
    texts = ["one boat", "", "two\n\nboats  ", "日本"]
    assert codec.encode_batch(texts) == [codec.encode(text) for text in texts]
    assert codec.encode_batch([]) == []


def test_splitting_at_spaces_is_told_only_where_known(codec: Codec) -> None:
    assert codec.splits_at_spaces
    whole = plain_tokenizer(eos_token="<|endoftext|>")
    whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    assert not Codec(whole).splits_at_spaces
