"""TRL's road from the base model: SFT and reward model (`front`), or PPO with snapshots (`ppo`).

The clock includes loading the models and the trainers' own preparation of the rows, which come as
token ids, and stops for the snapshots.

python trl_road.py SPEC.json      (inside an environment with trl 1.12.0)
"""

import json
import os
import sys
from pathlib import Path

spec = json.loads(Path(sys.argv[1]).read_text())
if spec["speed"]["bf16"]:
    # What `accelerate launch --mixed_precision bf16` sets, and the only way that reaches PPO.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from stopwatch import Stopwatch, finish  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    get_scheduler,
    set_seed,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402


def load(auto, path, **options):
    attention = spec["speed"]["attention"]
    return auto.from_pretrained(path, dtype=torch.float32, attn_implementation=attention, **options)


def settings(out, **others):
    """What all three trainers are given."""
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": spec["speed"]["bf16"],
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10,
        "dataloader_drop_last": True,
        "seed": spec["seed"],
        **others,
    }


def grouped():
    """Batches of rows of like length, where that is asked for; the lengths are a column."""
    if not spec["speed"]["by_length"]:
        return {}
    return {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}


def front():
    out = Path(spec["front"])
    set_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    shared = json.loads(Path(spec["rows_file"]).read_text())
    rows, pairs = shared["sft"], shared["pairs"]
    watch, laps = Stopwatch(), {}
    model = load(AutoModelForCausalLM, spec["base"])
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings(out / "sft", **grouped(), **spec["sft"])),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": rows, "length": [len(r) for r in rows]}),
    )
    trainer.train()
    trainer.save_model(str(out / "sft" / "model"))
    laps["sft"] = watch.tick()
    chosen, rejected = zip(*pairs, strict=True)
    lengths = [max(len(a), len(b)) for a, b in pairs]
    trainer = RewardTrainer(
        model=load(AutoModelForSequenceClassification, out / "sft" / "model", num_labels=1),
        args=RewardConfig(**settings(out / "reward", **grouped(), **spec["reward"])),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(
            {"chosen_ids": chosen, "rejected_ids": rejected, "length": lengths}
        ),
    )
    trainer.train()
    trainer.save_model(str(out / "reward" / "model"))
    laps["reward"] = watch.tick() - laps["sft"]
    finish(out, spec, watch, seconds=laps)


class Snapshots(TrainerCallback):
    """Saves the policy every so many updates, with the clock stopped."""

    def __init__(self, policy, watch, out):
        self.policy, self.watch, self.out = policy, watch, out
        self.curve, self.metrics = [], []

    def on_log(self, args, state, control, logs=None, **others):
        self.metrics.append(logs)

    def on_step_end(self, args, state, control, **others):
        step = state.global_step
        if step % spec["every"] == 0:
            with self.watch.stopped():
                self.curve.append({"update": step, "seconds": self.watch.seconds})
                self.policy.save_pretrained(self.out / f"step_{step:03d}")


def ppo():
    out, made = Path(spec["out"]), Path(spec["front"])
    set_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"], padding_side="left")
    queries = json.loads(Path(spec["rows_file"]).read_text())["prompts"]
    watch = Stopwatch()
    policy = load(AutoModelForCausalLM, made / "sft" / "model")
    judge = made / "reward" / "model"
    value = load(AutoModelForSequenceClassification, judge, num_labels=1)
    rows = Dataset.from_dict({"input_ids": queries})
    given = spec["ppo"]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.parameters()), "lr": given["learning_rate"]},
            {"params": list(value.parameters()), "lr": spec["value_learning_rate"]},
        ],
        eps=given["adam_epsilon"],
        weight_decay=given["weight_decay"],
        fused=True,
    )
    schedule = get_scheduler(
        given["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=given["warmup_steps"],
        num_training_steps=spec["updates"],
    )
    snapshots = Snapshots(policy, watch, out)
    trainer = PPOTrainer(
        args=PPOConfig(**settings(out / "trl", **given, num_sample_generations=0)),
        processing_class=tokenizer,
        model=policy,
        ref_model=load(AutoModelForCausalLM, made / "sft" / "model"),
        reward_model=load(AutoModelForSequenceClassification, judge, num_labels=1),
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        optimizers=(optimizer, schedule),
        callbacks=[snapshots],
    )
    trainer.train()
    finish(out, spec, watch, curve=snapshots.curve, metrics=snapshots.metrics)


if __name__ == "__main__":
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision(spec["speed"]["matmul_precision"])
    {"front": front, "ppo": ppo}[spec["part"]]()
