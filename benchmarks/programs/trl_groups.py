"""TRL's RLOOTrainer, GRPOTrainer or OnlineDPOTrainer, held between steps until told to go on.

python trl_groups.py SPEC.json      (inside an environment with current trl)
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
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl_trainers import QUIET, Gate, first_step

KINDS = {
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "online-dpo": (OnlineDPOTrainer, OnlineDPOConfig),
}
REPEATS = 1_000
"""Rows of the dataset are the prompts of one update, so often."""
SPENT = {"rollout": 0.0}


def reward_of(spec):
    """The reward model on token ids: a model handed to the trainer is given texts, tokenised again,
    which random ids do not survive."""
    model = AutoModelForSequenceClassification.from_pretrained(
        spec["reward"], dtype=torch.float32, attn_implementation=spec["attention"], num_labels=1
    ).eval()
    query_of = dict(zip(spec["texts"], spec["queries"], strict=True))
    pad = model.config.pad_token_id

    def reward(prompts, completion_ids, **_):
        rows = zip(prompts, completion_ids, strict=True)
        ids = pad_sequence(
            [torch.tensor(query_of[text] + list(answer)) for text, answer in rows],
            batch_first=True,
            padding_value=pad,
        )
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=ids != pad).logits[:, 0].tolist()

    return reward


def answers(spec):
    """The script: prompt ids to the next of its responses."""
    pairs = zip(spec["queries"], spec["responses"], strict=True)
    left = {tuple(query): iter(responses) for query, responses in pairs}
    return lambda query: next(left[tuple(query)])


def scripted(trainer, spec):
    """Its draw gives the script's responses."""
    answer = answers(spec)

    def single_turn(prompt_ids, *_):
        found = [answer(ids) for ids in prompt_ids]
        return found if spec["kind"] == "rloo" else (found, None)

    def generate(model, prompts, images):
        query_of = dict(zip(spec["texts"], spec["queries"], strict=True))
        queries = [query_of[text] for text in prompts] * 2
        found = torch.tensor([answer(query) for query in queries])
        queries = torch.tensor(queries)
        return queries, torch.ones_like(queries), found, torch.ones_like(found), None

    name, draw = "_generate_single_turn", single_turn
    if spec["kind"] == "online-dpo":
        name, draw = "_generate", generate
    setattr(trainer, name, draw)


def watched(trainer, spec):
    """Counts the seconds of its draws."""
    name = "_generate" if spec["kind"] == "online-dpo" else "_generate_single_turn"
    draw = getattr(trainer, name)

    def timed(*args, **options):
        began = time.perf_counter()
        try:
            return draw(*args, **options)
        finally:
            SPENT["rollout"] += time.perf_counter() - began

    setattr(trainer, name, timed)


def trainer_of(spec, **args):
    trainer_class, config_class = KINDS[spec["kind"]]

    def load():
        how = {"dtype": torch.float32, "attn_implementation": spec["attention"]}
        return AutoModelForCausalLM.from_pretrained(spec["policy"], **how)

    trainer = trainer_class(
        args=config_class(
            output_dir=tempfile.mkdtemp(),
            **QUIET,
            **spec["args"],
            **args,
        ),
        processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"], padding_side="left"),
        model=load(),
        reward_funcs=[reward_of(spec)],
        train_dataset=Dataset.from_dict({"prompt": spec["texts"] * REPEATS}),
        **({"ref_model": load()} if spec["kind"] == "online-dpo" else {}),
    )
    trainer.remove_callback(PrinterCallback)  # which speaks where `serve` does
    return trainer


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    disable_progress_bars()
    logging.disable(logging.WARNING)
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision(spec["products"])
    first = trainer_of(spec, max_steps=1, logging_steps=1)
    scripted(first, spec)
    score = "objective/scores" if spec["kind"] == "online-dpo" else "reward"
    parity = first_step(first, {"score": score})
    trainer = trainer_of(spec, max_steps=100_000, logging_steps=100_000)
    gate = Gate(1)
    trainer.add_callback(gate)
    watched(trainer, spec)
    threading.Thread(target=trainer.train, daemon=True).start()
    gate.answer.acquire()

    def work():
        SPENT["rollout"] = 0.0
        began = time.perf_counter()
        gate.ask.release()
        gate.answer.acquire()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rollout": SPENT["rollout"], "rest": seconds - SPENT["rollout"]}

    serve(work, parity)


if __name__ == "__main__":
    main(sys.argv[1])
