"""Sample: responses of the SFT policy at several temperatures, to be labelled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nplus.config import SamplingConfig
from nplus.records import Completion, Demonstration, write_records
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import draw


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `completions.jsonl`: one response per prompt and temperature."""
    cfg = ctx.config.sample
    if cfg is None:
        raise ValueError("sampling needs `sample`")
    model = ctx.policy("sft").eval()
    # Training prompts are taken from the end: SFT may have used only the first rows.
    chosen = {
        "train": ctx.data.demonstrations("train")[-cfg.prompts :],
        "valid": ctx.data.demonstrations("valid")[: cfg.valid_prompts],
    }
    total = sum(map(len, chosen.values())) * len(cfg.temperatures)
    with ctx.progress("sample", total, "response") as bar:

        def completions() -> Iterator[Completion]:
            for prompts in chosen.values():
                for temperature in cfg.temperatures:
                    yield from _draw(prompts, temperature, bar)

        def _draw(
            prompts: list[Demonstration], temperature: float, bar: Any
        ) -> Iterator[Completion]:
            sampling = SamplingConfig(temperature=temperature, response_length=cfg.response_length)
            policy = f"sft_t{temperature:g}"
            name = f"sample {policy}"
            drawn = draw(
                model, prompts, sampling, ctx, name=name, size=cfg.micro_batch_size, ticker=bar
            )
            for prompt, response in zip(prompts, drawn, strict=True):
                yield Completion(
                    id=prompt.id,
                    query=prompt.query,
                    response=response.text,
                    policy=policy,
                    temperature=temperature,
                    tokens=len(response.tokens),
                    has_eos=response.has_eos,
                )

        count = write_records(where.completions, completions())
    return {"completions": count, "policies": [f"sft_t{t:g}" for t in cfg.temperatures]}
