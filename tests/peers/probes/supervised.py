"""Runs inside a peer's environment: one step of its SFT, reward or DPO trainer on given rows.

    python supervised.py SPEC.json OUT

The peer's own `train` runs; its batches, losses and the gradient before the optimiser's step are
copied.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

KINDS = {
    "sft": (SFTTrainer, SFTConfig, AutoModelForCausalLM),
    "reward": (RewardTrainer, RewardConfig, AutoModelForSequenceClassification),
    "dpo": (DPOTrainer, DPOConfig, AutoModelForCausalLM),
}


class Gradients(TrainerCallback):
    """The gradient as the optimiser is about to use it."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.found = {
            f"gradient/{name}": p.grad.detach().clone().contiguous()
            for name, p in model.named_parameters()
        }


def run(case, models, tokenizer, out):
    trainer_class, config_class, auto = KINDS[case["kind"]]

    def load(name):
        return auto.from_pretrained(models[name], dtype=torch.float64)

    gradients, batches = Gradients(), []
    more = {"ref_model": load("reference")} if case["kind"] == "dpo" else {}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_class(
            args=config_class(
                output_dir=scratch,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                max_steps=1,
                logging_steps=1,
                max_grad_norm=0.0,
                **case["args"],
            ),
            processing_class=tokenizer,
            model=load("reward" if case["kind"] == "reward" else "policy"),
            train_dataset=Dataset.from_list(case["rows"]),
            callbacks=[gradients],
            **more,
        )
        compute_loss = trainer.compute_loss

        def kept(model, inputs, *args, **options):
            batch = {k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
            loss = compute_loss(model, inputs, *args, **options)
            batches.append(batch | {"loss": loss.detach()})
            return loss

        trainer.compute_loss = kept
        trainer.train()
    found = dict(gradients.found)
    for i, batch in enumerate(batches):
        found |= {f"batch {i}/{name}": value.contiguous() for name, value in batch.items()}
    save_file(found, out / f"{case['name']}.safetensors")
    logs = {}
    for row in trainer.state.log_history:
        logs |= {k: v for k, v in row.items() if isinstance(v, float | int)}
    return logs


def main(spec_file, out):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    logs = {"version": trl.__version__}
    for case in spec["cases"]:
        logs[case["name"]] = run(case, spec["models"], tokenizer, Path(out))
    (Path(out) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
