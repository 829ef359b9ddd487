"""TRL's PPOTrainer, held before each update until it is told to go on.

python trl_ppo.py SPEC.json      (inside an environment with trl 1.12.0)
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from datasets import Dataset
from serve import serve
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def script_first_draw(responses):
    """The first rollout is given, so that one update can be compared; later ones are drawn."""
    batch_generation = ppo_trainer.batch_generation

    def scripted(model, queries, size, pad_id, config):
        ppo_trainer.batch_generation = timed(batch_generation, "rollout")
        drawn = [responses[tuple(row[row != pad_id].tolist())] for row in queries]
        ids = torch.cat([queries, torch.tensor(drawn)], dim=1)
        with torch.no_grad():
            logits = ppo_trainer.forward(model, ids, pad_id).logits
        return ids, logits[:, queries.shape[1] - 1 : -1] / config.temperature

    ppo_trainer.batch_generation = scripted


SPENT = {"rollout": 0.0}


def timed(function, name):
    def call(*args, **options):
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            SPENT[name] += time.perf_counter() - began

    return call


class Gate:
    """A data loader whose next batch comes when the benchmark says so."""

    def __init__(self, loader):
        self.loader = loader
        self.ask, self.answer = threading.Semaphore(0), threading.Semaphore(0)

    def __iter__(self):
        for batch in self.loader:
            self.answer.release()
            self.ask.acquire()
            yield batch


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision(spec["products"])
    if spec["bf16"]:  # without it PPOTrainer's autocast stays off on a CPU
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"], padding_side="left")
    rows = Dataset.from_dict({"input_ids": spec["queries"]})

    def load(auto, name, **options):
        how = {"dtype": torch.float32, "attn_implementation": spec["attention"]}
        return auto.from_pretrained(spec[name], **how, **options)

    policy = load(AutoModelForCausalLM, "policy")
    start = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=tempfile.mkdtemp(),
            bf16=spec["bf16"],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            num_sample_generations=0,
            logging_steps=1,
            total_episodes=1_000_000,
            dataloader_num_workers=0,
            local_rollout_forward_batch_size=len(spec["queries"]),
            **spec["args"],
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=load(AutoModelForCausalLM, "policy"),
        reward_model=load(AutoModelForSequenceClassification, "reward", num_labels=1),
        value_model=load(AutoModelForSequenceClassification, "reward", num_labels=1),
        train_dataset=rows,
        eval_dataset=rows,
    )
    gate = Gate(trainer.dataloader)
    trainer.dataloader = gate
    logs = []
    trainer.log = logs.append
    pairs = zip(spec["queries"], spec["responses"], strict=True)
    script_first_draw({tuple(query): response for query, response in pairs})
    threading.Thread(target=trainer.train, daemon=True).start()

    def once():
        gate.ask.release()
        gate.answer.acquire()

    gate.answer.acquire()
    once()  # the scripted update
    moved = {name: p.detach() - start[name] for name, p in policy.named_parameters()}
    parity = {name: float(logs[0][name]) for name in spec["compared"]}
    parity["update norm"] = float(torch.stack([d.norm() for d in moved.values()]).norm())

    def work():
        SPENT["rollout"] = 0.0
        began = time.perf_counter()
        once()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rollout": SPENT["rollout"], "rest": seconds - SPENT["rollout"]}

    serve(work, parity)


if __name__ == "__main__":
    main(sys.argv[1])
