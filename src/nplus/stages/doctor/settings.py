"""What the settings alone say."""

from __future__ import annotations

from collections.abc import Iterator

from nplus.config import PPOConfig, ReinforceConfig, RunConfig
from nplus.findings import Finding, found


def settings_findings(config: RunConfig) -> Iterator[Finding]:
    """Faults that need no model and no data to be seen."""
    if config.model.dropout:
        yield found(
            "dropout_set", f"model.dropout={config.model.dropout:g}", p=config.model.dropout
        )
    if not config.tokenizer.distinct_pad:
        yield found("pad_is_eos", "tokenizer.distinct_pad=false, so padding is told by the EOS id")
    stages = config.stage_names()
    for name, stage in (("ppo", config.ppo), ("reinforce", config.reinforce)):
        if stage is not None and name in stages:
            yield from _online_findings(name, stage, config)


def _online_findings(
    name: str, ppo: PPOConfig | ReinforceConfig, config: RunConfig
) -> Iterator[Finding]:
    absent = [name for name in ("old", "reference", "new") if name not in ppo.tempered]
    if absent and len(absent) < 3 and ppo.sampling.temperature != 1.0:
        yield found(
            "tempered_unevenly",
            f"{name}.tempered leaves out {' and '.join(absent)} at temperature "
            f"{ppo.sampling.temperature:g}",
            temperature=ppo.sampling.temperature,
        )
    elif absent and ppo.sampling.temperature != 1.0:
        yield found(
            "tempered_unevenly",
            f"{name}.tempered is empty, so no log-prob is of the distribution that samples at "
            f"temperature {ppo.sampling.temperature:g}",
            temperature=ppo.sampling.temperature,
        )
    if ppo.autocast != "none" and config.model.dtype == "float32":
        yield found("autocast_in_update", f"{name}.autocast={ppo.autocast}")
