"""A PPO update against TRL 1.12.0's: the same models, prompts and settings, in turns.

    python benchmarks/ppo_update.py --shape A --repeats 7

The first update has scripted responses on both sides, and its losses and the distance the weights
moved have to agree; those that are timed draw their own, 48 tokens each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import roofline
import torch
from common import Program, keep, require_parity, run, summary
from roofline import VOCAB, Sizes
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from nplus.data.tokens import Codec, train_bpe
from nplus.models.files import save_causal_lm
from nplus.models.scalar import ScalarModel

SHAPES: dict[str, Sizes] = {"A": (128, 4, 4), "B": (256, 6, 4)}
PEER = "trl-1.12.0"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, EPOCHS = 64, 64, 48, 4
COMPARED = ("loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "objective/kl")
BOUNDS = {"float32": 2e-3, "bfloat16": 0.2}
"""Relative, of figures that are themselves small; in float64 the differences are below 1e-6
(`make test-peers`)."""


def corpus() -> list[str]:
    """Made-up words, enough for a tokenizer of `VOCAB` tokens."""
    return [" ".join(f"w{i * j % 1999}x{j}" for j in range(60)) for i in range(400)]


def network(sizes: Sizes, codec: Codec) -> GPTNeoXForCausalLM:
    hidden, layers, heads = sizes
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=512,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            bos_token_id=codec.eos_id,
            eos_token_id=codec.eos_id,
            pad_token_id=codec.pad_id,
        )
    )


def prompts(codec: Codec, count: int, length: int) -> tuple[list[str], list[list[int]]]:
    """Texts of exactly `length` tokens."""
    generator = torch.Generator().manual_seed(1)
    texts: list[str] = []
    rows: list[list[int]] = []
    while len(rows) < count:
        ids = torch.randint(300, VOCAB, (length + 8,), generator=generator).tolist()
        text = codec.decode(ids)
        ids = codec.encode_query(text)[:length]
        text = codec.decode(ids)
        if len(ids) == length and codec.encode_query(text) == ids:
            texts.append(text)
            rows.append(ids)
    return texts, rows


def build(
    root: Path,
    sizes: Sizes,
    *,
    rows: int = PROMPTS,
    length: int = PROMPT_TOKENS,
    new: int = NEW_TOKENS,
) -> dict[str, object]:
    """Models, tokenizer, prompts and scripted responses on disk, and what both programs share."""
    codec = train_bpe(corpus(), VOCAB)
    codec.save(root / "tokenizer")
    policy = network(sizes, codec)
    save_causal_lm(policy, root / "sft" / "model", codec.tokenizer)
    ScalarModel.from_causal(policy, pad_id=codec.pad_id, seed=1).save(
        root / "reward" / "model", codec.tokenizer
    )
    texts, queries = prompts(codec, rows, length)
    generator = torch.Generator().manual_seed(2)
    responses = torch.randint(2, VOCAB, (rows, new), generator=generator).tolist()
    return {
        "root": str(root),
        "policy": str(root / "sft" / "model"),
        "reward": str(root / "reward" / "model"),
        "tokenizer": str(root / "tokenizer"),
        "texts": texts,
        "queries": queries,
        "responses": responses,
        "compared": COMPARED,
    }


FAST = {"products": "medium", "attention": "eager"}
RIVALS = {
    "TRL 1.12.0 float32": {"products": "highest", "attention": "sdpa", "bf16": False},
    "TRL 1.12.0, made fast, float32": {**FAST, "bf16": False},
    "TRL 1.12.0, made fast, bfloat16": {**FAST, "bf16": True},
}
"""As it comes, and with what makes it fast on these processors; the last word is the precision."""


def ours(precision: str, micro: int, extra: list[str]) -> list[str]:
    """Settings as after --set."""
    return [
        "ppo.profile=trl",
        "ppo.old_logprobs=sampler",  # the same numbers, as the parity check sees, a forward less
        "ppo.normalise=global",  # TRL's mean of one micro-batch, the whole minibatch
        "compute.device=cpu",
        "compute.matmul_precision=medium",
        "model.attn_implementation=batched",
        f"ppo.autocast={'bfloat16' if precision == 'bfloat16' else 'none'}",
        f"ppo.batch_size={PROMPTS}",
        f"ppo.micro_batch_size={micro}",
        f"ppo.rollout_micro_batch_size={PROMPTS}",
        f"ppo.num_ppo_epochs={EPOCHS}",
        "ppo.num_mini_batches=1",
        "ppo.total_episodes=1000000",
        "ppo.optim.learning_rate=1e-4",
        "ppo.optim.name=adamw",
        "ppo.value_learning_rate=null",
        "ppo.kl_coef=0.05",
        "ppo.sampling.temperature=0.7",
        f"ppo.sampling.response_length={NEW_TOKENS}",
        *extra,
    ]


def theirs(micro: int) -> dict[str, object]:
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": PROMPTS // micro,
        "num_mini_batches": 1,
        "num_ppo_epochs": EPOCHS,
        "response_length": NEW_TOKENS,
        "temperature": 0.7,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "linear",
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
        "kl_coef": 0.05,
        "seed": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=32, help="rows of one forward, ours")
    parser.add_argument("--rival-micro", type=int, default=64, help="rows of one forward, theirs")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--no-rival", action="store_true", help="time nplus alone")
    parser.add_argument("--set", nargs="*", default=[], help="settings of nplus, as after --set")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        spec = build(Path(scratch), SHAPES[args.shape])
        spec["threads"], threads = args.threads, f"compute.threads={args.threads}"
        programs = [
            Program(
                f"nplus {precision}",
                "nplus_ppo.py",
                spec | {"sets": ours(precision, args.micro, [*args.set, threads])},
            )
            for precision in args.precision
        ]
        if not args.no_rival:
            programs += [
                Program(name, "trl_ppo.py", spec | {"args": theirs(args.rival_micro)} | how, PEER)
                for name, how in RIVALS.items()
            ]
        bounds = [BOUNDS[program.name.split()[-1]] for program in programs]
        run(programs, args.repeats, lambda: require_parity(programs, bounds))
    parity = require_parity(programs, bounds)
    rows = [summary(program) for program in programs]
    work = roofline.ppo(SHAPES[args.shape], PROMPTS, PROMPT_TOKENS, NEW_TOKENS, EPOCHS)
    trained = work.pop("training")
    exact = sum(work.values())
    products = {"float32": {"float32": exact + trained}}
    products["bfloat16"] = {"float32": exact, "bfloat16": trained}
    roofline.mark(rows, products, args.threads)
    for row in rows:
        parts = "  ".join(
            f"{name} {row[name]['median']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]"
            for name in programs[0].times[0]
        )
        print(f"{row['name']:<38} {parts}  peak {row['peak_rss_gib']:.2f} GiB")
    for base in rows[len(args.precision) :]:
        for row in rows[: len(args.precision)]:
            ratio = base["seconds"]["median"] / row["seconds"]["median"]
            print(f"{row['name']:<16} {ratio:.2f} times as fast as {base['name']}")
    if not args.no_rival:
        print("largest relative difference before timing:", max(parity.values()))
        keep(f"ppo-update-{args.shape}", {"programs": rows, "parity": parity})


if __name__ == "__main__":
    main()
