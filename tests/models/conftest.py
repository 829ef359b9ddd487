"""Three tiny families: LayerNorm or RMSNorm, rotary or absolute positions."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nplus.models.toy import build_toy

V, EOS, PAD = 61, 0, 1
SIZES = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD, "vocab_size": V}


def neox():
    return build_toy("0.3M", vocab_size=V, eos_id=EOS, pad_id=PAD, seed=3)


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            **SIZES,
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SIZES))


@pytest.fixture(params=[neox, llama, gpt2], ids=lambda build: build.__name__)
def causal(request):
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        # Larger weights than at initialisation, so that attention and positions matter.
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.mul_(8.0)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.1)
    return model
