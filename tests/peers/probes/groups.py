"""Runs inside a peer's environment: credit and loss of its GRPO and RLOO trainers.

    python groups.py SPEC.json OUT

Responses, rewards and log-probs (old, of the reference, new) are those of a script; between them
runs the peer's own code, from rewards to advantages and from new log-probs to the loss, whose
gradient by the new log-probs is kept.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

KINDS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def script(trainer, case):
    """Replace what draws, scores and runs the network; returns the new log-probs, a leaf."""
    given = {name: torch.tensor(case[name]) for name in ("old", "reference", "new")}
    new = given["new"].clone().requires_grad_()
    prompts, responses = [[5, 6]] * len(case["responses"]), case["responses"]

    def generate(asked):
        texts = ["x"] * len(responses)
        if case["kind"] == "rloo":
            return prompts, responses, texts
        return prompts, responses, None, texts, None, {}, None, None

    def logps(model, *args, **options):
        if model is trainer.ref_model:
            found = given["reference"]
        else:
            found = new if torch.is_grad_enabled() else given["old"]
        return found, torch.zeros_like(found), None

    trainer._generate = generate
    trainer._calculate_rewards = lambda *_: torch.tensor(case["rewards"])[:, None]
    trainer._get_per_token_logps_and_entropies = logps
    return new


def run(case, models, tokenizer, out):
    trainer_class, config_class = KINDS[case["kind"]]
    rows = len(case["responses"])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_class(
            args=config_class(
                output_dir=scratch,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                per_device_train_batch_size=rows,
                num_iterations=2,  # else GRPO takes the new log-probs for the old
                **case["args"],
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(models["policy"], dtype=torch.float64),
            reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            train_dataset=Dataset.from_dict({"prompt": ["x"] * rows}),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        new = script(trainer, case)
        inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * rows)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
    found = {
        "advantages": inputs["advantages"],
        "mask": inputs["completion_mask"],
        "loss": loss.detach(),
        "gradient": new.grad,
    }
    found = {name: value.detach().clone().contiguous() for name, value in found.items()}
    save_file(found, out / f"{case['name']}.safetensors")
    return {}


def main(spec_file, out):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"], padding_side="left")
    logs = {"version": trl.__version__}
    for case in spec["cases"]:
        logs[case["name"]] = run(case, spec["models"], tokenizer, Path(out))
    (Path(out) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
