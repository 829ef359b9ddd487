"""Responses by vLLM on a CPU, in this very process, on demand.

python vllm_generate.py SPEC.json
"""

import json
import sys
import time
from pathlib import Path

from serve import serve
from vllm import LLM, SamplingParams


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    llm = LLM(
        model=spec["model"],
        dtype=spec["dtype"],
        enforce_eager=spec["eager"],
        max_model_len=len(spec["prompts"][0]) + spec["new"],
        max_num_seqs=len(spec["prompts"]) * spec["samples"],
        skip_tokenizer_init=True,
        generation_config="vllm",  # not the model's own, which may have a top-p
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": ids} for ids in spec["prompts"]]

    def draw(samples, temperature):
        how = SamplingParams(
            n=samples,
            temperature=temperature,
            max_tokens=spec["new"],
            ignore_eos=True,
            detokenize=False,
        )
        found = llm.generate(prompts, how, use_tqdm=False)
        return [list(each.token_ids) for one in found for each in one.outputs]

    # Near-greedy samples of a prompt are alike; vLLM takes 0 of one only, and raises 1e-4 to 0.01.
    greedy = [ids for ids in draw(1, 0.0) for _ in range(spec["samples"])]

    def work():
        llm.reset_prefix_cache()  # samples of a prompt share it; one round and the next do not
        began = time.perf_counter()
        draw(spec["samples"], 1.0)
        return {"seconds": time.perf_counter() - began}

    serve(work, {"tokens": greedy})


if __name__ == "__main__":
    main(sys.argv[1])
