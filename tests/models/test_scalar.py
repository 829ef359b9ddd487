"""Scores are compared with plain transformers, loaded from what was saved."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from nplus.models.files import save_causal_lm
from nplus.models.scalar import ScalarModel
from nplus.models.toy import build_toy
from nplus.records import InputError

EOS, PAD = 0, 1
TEXTS = [[5, 9, 33, EOS], [7, EOS], [2, 3, 4, 5, 6, 7, 8, EOS]]


@pytest.fixture
def scalar(causal):
    return ScalarModel.from_causal(causal, pad_id=PAD, seed=0).eval()


def rectangle(texts, left=0, width=10, junk=PAD):
    rows = [[junk] * left + t + [junk] * (width - len(t)) for t in texts]
    masks = [[False] * left + [True] * len(t) + [False] * (width - len(t)) for t in texts]
    return torch.tensor(rows), torch.tensor(masks)


def plain_scores(path, texts=TEXTS):
    """What anyone gets who loads the directory with transformers and right-pads a batch."""
    network = AutoModelForSequenceClassification.from_pretrained(path)
    tokens_BT, mask_BT = rectangle(texts)
    with torch.no_grad():
        return network(tokens_BT, attention_mask=mask_BT.long()).logits[:, 0]


@pytest.mark.detail("D2")
@torch.no_grad()
def test_the_head_at_the_start():
    # Detail D2.
    toy = build_toy("4M", vocab_size=64, eos_id=EOS, pad_id=PAD, seed=0)
    state = torch.get_rng_state()
    weights = torch.cat(
        [ScalarModel.from_causal(toy, pad_id=PAD, seed=s).network.score.weight for s in range(8)]
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert weights.std().item() == pytest.approx(257**-0.5, rel=0.05)
    assert abs(weights.mean().item()) < 4 * 257**-0.5 / weights.numel() ** 0.5
    again = ScalarModel.from_causal(toy, pad_id=PAD, seed=3)
    assert torch.equal(again.network.score.weight[0], weights[3])
    assert again.network.score.bias is None
    assert float(again.shift) == 0.0


@torch.no_grad()
def test_the_trunk_is_a_copy(causal, scalar):
    trunk = dict(causal.base_model.named_parameters())
    copied = dict(scalar.network.base_model.named_parameters())
    assert trunk.keys() == copied.keys()
    for name, p in copied.items():
        assert torch.equal(p, trunk[name]), name
        assert p.data_ptr() != trunk[name].data_ptr()
    hidden_BTH = causal.base_model(torch.tensor([TEXTS[2]])).last_hidden_state
    expected = hidden_BTH[0] @ scalar.network.score.weight[0]
    assert torch.allclose(scalar.values(*rectangle(TEXTS[2:], width=8))[0], expected, atol=1e-4)


@pytest.mark.detail("A7", "D4")
@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("left", "junk"), [(0, PAD), (3, PAD), (20, PAD), (20, 60), (5, 10**6)])
def test_the_score_is_read_at_the_last_token_in_any_layout(scalar, attn, left, junk):
    # Detail D4; Detail A7: the ids in padding do not matter.
    scalar.network.set_attn_implementation(attn)
    expected = [scalar.values(*rectangle([t], width=len(t)))[0, -1].item() for t in TEXTS]
    found = scalar.scores(*rectangle(TEXTS, left, 10, junk))
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    tight = scalar.scores(*rectangle(TEXTS[2:], left, 8, junk))
    assert tight.tolist() == pytest.approx(expected[2:], abs=1e-4)


@torch.no_grad()
def test_tokens_after_eos_cannot_reach_the_score(scalar):
    tokens_BT, mask_BT = rectangle(TEXTS)
    expected = scalar.scores(tokens_BT, mask_BT)
    rambling_BT = torch.where(mask_BT, tokens_BT, torch.randint(2, 60, tokens_BT.shape))
    assert torch.equal(scalar.scores(rambling_BT, mask_BT), expected)


@torch.no_grad()
def test_moving_the_end_moves_the_score(scalar):
    tokens_BT, mask_BT = rectangle(TEXTS[2:])
    values_T = scalar.values(tokens_BT, mask_BT)[0]
    for end in range(1, 9):
        shorter_BT = mask_BT & (torch.arange(10) < end)
        assert scalar.scores(tokens_BT, shorter_BT).item() == pytest.approx(
            values_T[end - 1].item(), abs=1e-4
        )


@pytest.mark.detail("E3", "F1")
@torch.no_grad()
def test_response_values_are_those_before_each_token(scalar):
    # Detail F1; Detail E3: the slot after EOS holds the score.
    tokens_BT, mask_BT = rectangle(TEXTS, left=3)
    values_BT = scalar.values(tokens_BT, mask_BT)
    values_BR = scalar.response_values(tokens_BT, mask_BT, 8)
    assert torch.allclose(values_BR, values_BT[:, 4:12], atol=1e-6)
    ends_B = mask_BT[:, 5:].sum(-1) - 1
    after_B = values_BR[torch.arange(3), ends_B + 1]
    assert torch.allclose(after_B[[0, 2]], scalar.scores(tokens_BT, mask_BT)[[0, 2]], atol=1e-4)
    for width in (0, 13):
        with pytest.raises(ValueError, match="does not fit"):
            scalar.response_values(tokens_BT, mask_BT, width)


@torch.no_grad()
def test_the_shift_is_subtracted_everywhere(scalar):
    batch = rectangle(TEXTS)
    scores_B, values_BT = scalar.scores(*batch), scalar.values(*batch)
    scalar.set_shift(torch.tensor(2.5))
    assert torch.allclose(scalar.scores(*batch), scores_B - 2.5, atol=1e-5)
    assert torch.allclose(scalar.values(*batch), values_BT - 2.5, atol=1e-5)
    assert "shift" in scalar.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("shift", [0.0, 1.75, -40.0])
def test_saved_scores_are_those_of_plain_transformers(scalar, tmp_path, shift):
    scalar.set_shift(shift)
    expected = scalar.scores(*rectangle(TEXTS))
    scalar.save(tmp_path / "reward")
    stored = json.loads((tmp_path / "reward" / "config.json").read_text())["nplus_reward_shift"]
    has_bias = scalar.network.config.model_type != "llama"
    assert stored == (0.0 if has_bias else shift)
    assert torch.allclose(plain_scores(tmp_path / "reward") - stored, expected, atol=1e-4)
    loaded = ScalarModel.load(tmp_path / "reward")
    assert float(loaded.shift) == stored
    assert torch.allclose(loaded.scores(*rectangle(TEXTS)), expected, atol=1e-4)
    # Saving changed nothing here, and a second round changes nothing more.
    assert float(scalar.shift) == shift
    assert torch.equal(scalar.scores(*rectangle(TEXTS)), expected)
    loaded.save(tmp_path / "again")
    assert torch.allclose(
        ScalarModel.load(tmp_path / "again").scores(*rectangle(TEXTS)), expected, atol=1e-4
    )


@torch.no_grad()
def test_the_saved_config_names_the_pad(scalar, tmp_path):
    scalar.save(tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["pad_token_id"] == PAD
    assert config["architectures"] == [type(scalar.network).__name__]


@pytest.mark.detail("A7")
@torch.no_grad()
def test_a_pad_without_an_embedding_row(causal, tmp_path):
    # Detail A7: embeddings are not resized for PAD.
    scalar = ScalarModel.from_causal(causal, pad_id=61, seed=0)
    expected = scalar.scores(*rectangle(TEXTS, junk=61))
    scalar.save(tmp_path / "reward")
    found = ScalarModel.load(tmp_path / "reward").scores(*rectangle(TEXTS, junk=61))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_checkpoint_without_a_head_is_refused(causal, scalar, tmp_path):
    save_causal_lm(causal, tmp_path / "policy")
    with pytest.raises(InputError, match=r"policy: the checkpoint lacks .*score\.weight"):
        ScalarModel.load(tmp_path / "policy")
    scalar.save(tmp_path / "reward")
    file = tmp_path / "reward" / "model.safetensors"
    state = {k: v for k, v in load_file(file).items() if k != "score.weight"}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"reward: the checkpoint lacks .*score\.weight"):
        ScalarModel.load(tmp_path / "reward")
    with pytest.raises(InputError, match="nowhere: no such directory"):
        ScalarModel.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no bias-free one-label head"):
        ScalarModel(causal)


@torch.no_grad()
def test_a_copy_is_independent(scalar):
    scalar.set_shift(1.0)
    expected = scalar.scores(*rectangle(TEXTS))
    critic = scalar.copy()
    assert torch.equal(critic.scores(*rectangle(TEXTS)), expected)
    critic.network.score.weight.zero_()
    critic.set_shift(9.0)
    assert torch.equal(scalar.scores(*rectangle(TEXTS)), expected)


@torch.no_grad()
def test_scores_of_a_bfloat16_network_are_float32(scalar):
    scalar.network.bfloat16()
    assert scalar.scores(*rectangle(TEXTS)).dtype == torch.float32
    assert scalar.values(*rectangle(TEXTS)).dtype == torch.float32


def test_the_gradient_reaches_every_parameter(scalar):
    scalar.scores(*rectangle(TEXTS, left=3)).sum().backward()
    for name, p in scalar.network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all()
