"""Responses of 48 tokens by nplus's engine or by `generate` of transformers, on demand.

python generate.py SPEC.json
"""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from serve import serve
from transformers import AutoModelForCausalLM


def by_nplus(model, prompts, spec):
    from nplus.batches import PromptBatch
    from nplus.config import SamplingConfig
    from nplus.engines.halves import halved
    from nplus.engines.kv import KVEngine

    engine = KVEngine(model, eos_id=spec["eos"], pad_id=spec["pad"], path=spec.get("path", "auto"))
    if spec["threads"] > 1 and not spec.get("path"):
        engine = stack.enter_context(halved(engine))
    keys = tuple(map(str, range(len(prompts))))
    batch = PromptBatch(prompts, torch.ones_like(prompts, dtype=torch.bool), keys)

    def draw(temperature):
        noise_BR = torch.rand(len(prompts), spec["new"], dtype=torch.float64)
        how = SamplingConfig(temperature=temperature, response_length=spec["new"], stop="length")
        return engine.generate(batch, how, noise_BR).tokens_BR

    return draw


def by_transformers(model, prompts, spec):
    # Samples of a prompt are `num_return_sequences`, as its users ask for them.
    distinct, samples = prompts[:: spec["samples"]], spec["samples"]

    def draw(temperature):
        return model.generate(
            input_ids=distinct,
            attention_mask=torch.ones_like(distinct),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            num_return_sequences=samples,
            min_new_tokens=spec["new"],
            max_new_tokens=spec["new"],
            pad_token_id=spec["pad"],
        )[:, distinct.shape[1] :]

    return draw


stack = ExitStack()


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(spec["threads"])
    if spec["who"] == "nplus":
        from nplus.config import ComputeConfig
        from nplus.stages.compute import resolve_device

        resolve_device(ComputeConfig(device="cpu", matmul_precision="medium"))
    else:
        torch.set_float32_matmul_precision(spec["precision"])
    dtype = getattr(torch, spec["dtype"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype).eval()
    if spec.get("attention"):
        model.set_attn_implementation(spec["attention"])
    torch.manual_seed(0)
    prompts = torch.tensor(spec["prompts"]).repeat_interleave(spec["samples"], 0)
    draw = {"nplus": by_nplus, "transformers": by_transformers}[spec["who"]](model, prompts, spec)
    with torch.no_grad():
        cold = draw(1e-4)  # near greedy: the same tokens, whoever draws them

    def work():
        began = time.perf_counter()
        with torch.no_grad():
            draw(1.0)
        return {"seconds": time.perf_counter() - began}

    serve(work, {"tokens": cold.tolist()})


if __name__ == "__main__":
    main(sys.argv[1])
