"""What `auto` comes to in a run: what its directory holds, else this machine's tuning, else the
default. It is settled before any stage is keyed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig

from nplus.config import ModelConfig, RunConfig
from nplus.config.auto import AUTO_KEYS, auto_keys, with_values
from nplus.config.load import default_of
from nplus.config.tuning import Choice, Tuning, attention_under
from nplus.distributed.partner import CAN_FORK
from nplus.models.files import model_source
from nplus.models.trunk import BLOCKS
from nplus.stages.compute import device_name
from nplus.stages.tuning.cache import cores, read, this_machine

THREADS, PRECISION = "compute.threads", "compute.matmul_precision"
ATTENTION = "model.attn_implementation"
KEPT, DEFAULT = "as this run began", "the default"


@dataclass(frozen=True, slots=True)
class Settled:
    """A config without `auto`, and where the values came from."""

    config: RunConfig
    autos: Mapping[str, Any] = field(default_factory=dict)
    """What each setting that was `auto` has come to: to be kept in the run's directory."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each of these came from."""
    notes: tuple[str, ...] = ()
    """What the user should know: no tuning, one that was ignored, or one that differs by now."""

    @property
    def line(self) -> str:
        """How the run computes, in one line."""
        compute, device = self.config.compute, device_name(self.config.compute)
        words = [device]
        if device == "cpu":
            threads = compute.threads or torch.get_num_threads()
            words.append(f"{threads} thread{'s' if threads > 1 else ''}")
            words += ["two processes"] if compute.side_by_side and threads > 1 and CAN_FORK else []
        words.append(f"{compute.matmul_precision} products")
        words.append(f"{self.config.model.attn_implementation} attention")
        if device == "cpu":
            words.append(f"allocator {compute.allocator}")
        return f"compute: {', '.join(words)}{self._told()}"

    def _told(self) -> str:
        """Where the values of `auto` came from, in brackets."""
        by: dict[str, list[str]] = {}
        for key, source in self.sources.items():
            by.setdefault(source, []).append(key.rpartition(".")[2])
        if len(by) == 1 and len(self.sources) == len(AUTO_KEYS):
            return f" ({next(iter(by))})"
        parts = [f"{', '.join(names)} {source}" for source, names in by.items()]
        return f" ({'; '.join(parts)})" if parts else ""


def settle(
    config: RunConfig, kept: Mapping[str, Any], *, most_threads: int | None = None
) -> Settled:
    """`config` with a value for every `auto`.

    `kept` is what an earlier call in the same directory came to, and wins: a run that goes on stays
    as it was, on another machine and after another tuning too. Threads alone are never more than
    `most_threads`, or the cores of this machine.
    """
    keys = auto_keys(config)
    if not keys:
        return Settled(config)
    tuning, missing = read(this_machine(device_name(config.compute)))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    notes = [missing] if missing and not set(keys) <= set(kept) else []
    for key in keys:
        choice = None if tuning is None else _chosen(tuning, key, config, values)
        if key in kept:
            values[key], sources[key] = kept[key], KEPT
            if choice is not None and choice.value != kept[key]:
                notes.append(
                    f"{key} stays {kept[key]}, {KEPT}; `nplus tune` says {choice.value} here "
                    f"({choice.why}): --set {key}={choice.value} takes it"
                )
        elif choice is not None and tuning is not None:
            values[key], sources[key] = choice.value, f"tuned {tuning.made[:10]}"
        else:
            values[key], sources[key] = default_of(key), DEFAULT
    used = dict(values)
    if used.get(THREADS) is not None:
        used[THREADS] = min(used[THREADS], most_threads or _most_threads())
    return Settled(with_values(config, used), values, sources, tuple(notes))


def _chosen(
    tuning: Tuning, key: str, config: RunConfig, values: Mapping[str, Any]
) -> Choice | None:
    """What the tuning says of a setting, for attention under what the run has."""
    if key != ATTENTION:
        return tuning.choice(key)
    precision = values.get(PRECISION, config.compute.matmul_precision)
    online = (config.ppo, config.reinforce, config.online_dpo)
    kinds = {config.model.dtype, config.compute.autocast}
    kinds |= {stage.autocast for stage in online if stage is not None}
    autocast = "bfloat16" if "bfloat16" in kinds else "none"
    known = _architecture(config.model) in BLOCKS
    return tuning.choice(key, attention_under(precision, autocast, known=known))


def _architecture(cfg: ModelConfig) -> str:
    """The model's type; empty where it cannot be told."""
    if cfg.size is not None:
        return "gpt_neox"
    options = {"revision": cfg.revision, "trust_remote_code": cfg.trust_remote_code}
    try:
        found = AutoConfig.from_pretrained(str(model_source(cfg)), **options)
    except (OSError, ValueError):
        return ""
    return str(getattr(found, "model_type", ""))


def _most_threads() -> int:
    """The cores here, or fewer where the environment says so."""
    if {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ):
        return min(cores(), torch.get_num_threads())
    return cores()
