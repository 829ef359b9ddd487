"""Runs inside a peer's environment: its `PPOTrainer` on scripted responses, and what it computed.

    python ppo.py SPEC.json OUT

The peer's own `train` runs from rollout to the last optimiser step. Two things are done to it from
outside: the ids that `generate` draws are those of a script, and a trace copies local variables.
"""

import inspect
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

# When the first variable of a row is bound anew, the others are copied.
MOMENTS = {
    "advantages_reversed": (
        "queries",
        "query_responses",
        "logprobs",
        "ref_logprobs",
        "values",
        "scores",
    ),
    "b_inds": ("advantages", "returns", "b_inds"),
    "loss": ("pg_loss", "vf_loss"),
}


def script_draws(policy, responses):
    """Make `policy.generate` draw `responses[prompt ids]`; all else in it stays as it is."""
    generate, multinomial = policy.generate, torch.multinomial

    def scripted(*args, input_ids, attention_mask, **options):
        kept = attention_mask.bool()
        rows = [responses[tuple(ids[m].tolist())] for ids, m in zip(input_ids, kept, strict=True)]
        columns = iter(zip(*rows, strict=True))

        def drawn(probs, num_samples):
            assert probs.shape[0] == len(rows)
            assert num_samples == 1
            return torch.tensor(next(columns))[:, None]

        torch.multinomial = drawn
        try:
            return generate(*args, input_ids=input_ids, attention_mask=attention_mask, **options)
        finally:
            torch.multinomial = multinomial

    policy.generate = scripted


class Trace:
    """Copies of local variables of one function: `seen[name]` lists them in order."""

    def __init__(self, function):
        self.code = inspect.unwrap(function).__code__
        self.last = dict.fromkeys(MOMENTS)
        self.seen = {}

    def __call__(self, frame, event, arg):
        return self.line if frame.f_code is self.code else None

    def line(self, frame, event, arg):
        now = frame.f_locals
        for moment, names in MOMENTS.items():
            value = now.get(moment)
            if value is not None and value is not self.last[moment]:
                self.last[moment] = value
                for name in names:
                    self.seen.setdefault(name, []).append(copied(now[name]))
        return self.line


def copied(value):
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
    return tensor.clone().contiguous()


def load(auto, path, **options):
    return auto.from_pretrained(path, dtype=torch.float64, **options)


def run(case, models, tokenizer, out):
    policy = load(AutoModelForCausalLM, models["policy"])
    responses = {tuple(q): r for q, r in zip(case["queries"], case["responses"], strict=True)}
    script_draws(policy, responses)
    rows = Dataset.from_dict({"input_ids": case["queries"]})
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                num_sample_generations=0,
                logging_steps=1,
                **case["args"],
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=load(AutoModelForCausalLM, models["reference"]),
            reward_model=load(AutoModelForSequenceClassification, models["reward"]),
            value_model=load(AutoModelForSequenceClassification, models["critic"]),
            train_dataset=rows,
            eval_dataset=rows,
        )
        norms = []
        parameters = list(trainer.model.parameters())

        def before_step(*_):
            grads = [p.grad.norm() for p in parameters if p.grad is not None]
            norms.append(torch.stack(grads).norm())

        trainer.optimizer.optimizer.register_step_pre_hook(before_step)
        np.random.seed(case["args"]["seed"])  # its permutations; the trainer does not seed numpy
        trace = Trace(PPOTrainer.train)
        sys.settrace(trace)
        try:
            trainer.train()
        finally:
            sys.settrace(None)
    found = {name: torch.stack(values) for name, values in trace.seen.items()}
    for name in ("advantages", "returns"):  # the same in every epoch of an update
        found[name] = found[name][:: case["args"]["num_ppo_epochs"]].contiguous()
    found["grad_norms"] = torch.stack(norms)
    for kind, module in (("policy", trainer.model.policy), ("critic", trainer.model.value_model)):
        found |= {f"{kind}/{name}": copied(p) for name, p in module.named_parameters()}
    save_file(found, out / f"{case['name']}.safetensors")
    return {k: v for k, v in trainer.state.log_history[-1].items() if isinstance(v, float | int)}


def main(spec_file, out):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    # A quotient of two counts has the default type: float32 would round Bessel's correction.
    torch.set_default_dtype(torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"], padding_side="left")
    logs = {"version": trl.__version__}
    for case in spec["cases"]:
        logs[case["name"]] = run(case, spec["models"], tokenizer, Path(out))
    (Path(out) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
