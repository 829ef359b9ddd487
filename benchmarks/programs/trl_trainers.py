"""TRL's SFTTrainer, RewardTrainer or DPOTrainer, held between steps until told to go on.

python trl_trainers.py SPEC.json      (inside an environment with current trl)
"""

import json
import logging
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from serve import serve
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

KINDS = {
    "sft": (SFTTrainer, SFTConfig, AutoModelForCausalLM),
    "reward": (RewardTrainer, RewardConfig, AutoModelForSequenceClassification),
    "dpo": (DPOTrainer, DPOConfig, AutoModelForCausalLM),
}

QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Arguments of every config: on the CPU, and nothing written or drawn beside the steps."""


class Gate(TrainerCallback):
    """Holds the trainer before the first step and after every `steps`."""

    def __init__(self, steps):
        self.steps, self.done = steps, 0
        self.ask, self.answer = threading.Semaphore(0), threading.Semaphore(0)

    def hold(self):
        self.answer.release()
        self.ask.acquire()

    def on_train_begin(self, *_, **__):
        self.hold()

    def on_step_end(self, *_, **__):
        self.done += 1
        if self.done % self.steps == 0:
            self.hold()


def tokenised(spec):
    """The rows as the trainer has them after its own preparation."""
    kind, found = spec["stage"].split("-")[0], []
    for row in spec["data"]:
        query = row["query"]
        if kind == "sft":
            ids = query + row["response"]
            only = spec["stage"] == "sft-response"
            labels = [-100] * len(query) + row["response"] if only else ids
            found.append({"input_ids": ids, "labels": labels, "length": len(ids)})
            continue
        chosen, rejected = row["chosen"], row["rejected"]
        length = len(query) + max(len(chosen), len(rejected))
        if kind == "reward":
            found.append({"chosen_ids": query + chosen, "rejected_ids": query + rejected})
        else:
            found.append({"prompt_ids": query, "chosen_ids": chosen, "rejected_ids": rejected})
        found[-1]["length"] = length
    return Dataset.from_list(found)


def trainer_of(spec, *, order, **args):
    trainer_class, config_class, auto = KINDS[spec["stage"].split("-")[0]]
    root = Path(spec["root"])

    def load(name):
        return auto.from_pretrained(
            root / name / "model", dtype=torch.float32, attn_implementation=spec["attention"]
        )

    stage = spec["stage"].split("-")[0]
    rows = tokenised(spec)
    texts = Dataset.from_list([{"prompt": "w1", "chosen": " w2", "rejected": " w3"}])
    if spec.get("padding_free"):
        args |= {"padding_free": True, "max_length": None}
    trainer = trainer_class(
        args=config_class(
            output_dir=tempfile.mkdtemp(),
            **QUIET,
            train_sampling_strategy=order,
            **spec["args"],
            **args,
        ),
        processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]),
        model=load("reward" if stage == "reward" else "sft"),
        # The DPO trainer takes texts alone; its rows are put in their place below.
        train_dataset=texts if stage == "dpo" else rows,
        **({"ref_model": load("reference")} if stage == "dpo" else {}),
    )
    trainer.train_dataset = rows
    trainer.remove_callback(PrinterCallback)  # which speaks where `serve` does
    return trainer


def first_step(trainer, told):
    """The gradient's norm and the distance the weights move in the trainer's one step, and what its
    log calls `told` by other names."""
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    log = trainer.state.log_history[0]
    moved = [(p.detach() - start[name]).norm() for name, p in trainer.model.named_parameters()]
    return {
        **{name: float(log[theirs]) for name, theirs in told.items()},
        "gradient norm": float(log["grad_norm"]),
        "update norm": float(torch.stack(moved).norm()),
    }


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    disable_progress_bars()
    logging.disable(logging.WARNING)
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision(spec["products"])
    first = trainer_of(spec, order="sequential", max_steps=1, logging_steps=1)
    parity = first_step(first, {"loss": "loss"})
    order = "group_by_length" if spec["grouped"] else "random"
    trainer = trainer_of(spec, order=order, num_train_epochs=100_000)
    gate = Gate(spec["steps"])
    trainer.add_callback(gate)
    threading.Thread(target=trainer.train, daemon=True).start()
    gate.answer.acquire()

    def work():
        began = time.perf_counter()
        gate.ask.release()
        gate.answer.acquire()
        return {"seconds": (time.perf_counter() - began) / spec["steps"]}

    serve(work, parity)


if __name__ == "__main__":
    main(sys.argv[1])
