"""A critic on the policy's trunk: its log-probs are the policy's, its values its head's."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nplus.models.critic import SharedCritic
from nplus.models.lm import response_logprobs
from nplus.records import InputError

PAD = 1
TOKENS = torch.tensor([[PAD, 5, 9, 33, 7, 0], [4, 6, 8, 10, 12, 14]])
MASK = torch.tensor([[False, True, True, True, True, True], [True] * 6])


@pytest.mark.detail("E3")
@torch.no_grad()
def test_a_zero_head_values_everything_at_zero(causal):
    critic = SharedCritic(causal, init="zero", seed=0)
    assert torch.equal(critic.response_values(TOKENS, MASK, 3), torch.zeros(2, 3))


@torch.no_grad()
def test_one_forward_gives_the_policys_log_probs_and_the_heads_values(causal):
    critic = SharedCritic(causal, init="normal", seed=1)
    logprobs, entropy, values = critic.logprobs_and_values(TOKENS, MASK, 3, temperature=0.7)
    expected = response_logprobs(causal, TOKENS, MASK, 3, temperature=0.7)
    torch.testing.assert_close(logprobs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected[1], rtol=1e-5, atol=1e-5)
    # Detail F1: slot r is the state before token r, read by the head from the last hidden state.
    hidden = causal(TOKENS[1:], output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(values[1], hidden[2:5] @ critic.weight, rtol=1e-4, atol=1e-4)


def test_only_the_head_is_its_parameter_and_gradients_reach_the_trunk(causal):
    critic = SharedCritic(causal, init="normal", seed=1)
    assert [name for name, _ in critic.named_parameters()] == ["weight"]
    assert set(critic.state_dict()) == {"weight"}
    critic.response_values(TOKENS, MASK, 3).sum().backward()
    assert critic.weight.grad is not None
    assert any(p.grad is not None and p.grad.any() for p in causal.parameters())


@torch.no_grad()
def test_it_is_saved_as_a_classifier_that_plain_transformers_loads(causal, tmp_path):
    class Tokenizer:
        pad_token_id, eos_token_id = PAD, 0

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[2 + len(text) % 50] for text in texts]}

        def save_pretrained(self, path):
            """Nothing to write."""

    critic = SharedCritic(causal, init="normal", seed=1)
    critic.save(tmp_path / "critic", Tokenizer())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic").eval()
    # The output at the last token is the value of the state that it closes.
    score = plain(TOKENS[1:, :5]).logits[0, 0]
    torch.testing.assert_close(score, critic.response_values(TOKENS, MASK, 1)[1, 0])


def test_a_head_that_is_not_plain_is_refused(causal):
    critic = SharedCritic(causal, init="zero", seed=0)
    critic.require_plain_head(TOKENS, MASK, 2)
    head = causal.get_output_embeddings()
    handle = causal.register_forward_hook(
        lambda module, args, out: setattr(out, "logits", out.logits * 0.5)
    )
    with pytest.raises(InputError, match=r"ppo\.value=separate"):
        critic.require_plain_head(TOKENS, MASK, 2)
    handle.remove()
    assert head is causal.get_output_embeddings()
