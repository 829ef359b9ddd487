"""Log-probs of the reference, computed once and kept in the stage's directory.

An entry stands for a pair's ids under a reference, a tokenizer and its rules, and a precision: of
anything else, or of a damaged file, none is used. Numbers that are missing are computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms.preference import Pairs, plain
from nplus.batches import PairBatch
from nplus.data.collate import PairRow
from nplus.data.tokens import Codec
from nplus.runs import StageDir
from nplus.runs.storage import key_of, replace_bytes
from nplus.stages.context import Context
from nplus.stages.reward import longest

Known = dict[str, tuple[float, float]]
"""By a pair's hash: log-probs of the chosen and of the rejected response."""


def model_hash(model: PreTrainedModel) -> str:
    """SHA-256 of what a forward computes: the architecture, its settings and the weights."""
    settings = model.config.to_dict()
    for name in ("_name_or_path", "name_or_path", "transformers_version"):
        settings.pop(name, None)
    positions = getattr(model, "nplus_positions", "real")
    attention = model.config._attn_implementation
    found = hashlib.sha256(key_of(type(model).__name__, positions, attention, settings).encode())
    for name, weight in sorted(model.state_dict().items()):
        plain = weight.detach().cpu().contiguous().flatten()
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def text_hash(codec: Codec) -> str:
    """A hash of the tokenizer and of the rules by which texts become ids."""
    backend = codec.tokenizer.backend_tokenizer.to_str()
    return key_of(backend, codec.eos_id, codec.pad_id, asdict(codec.rules))


def pair_hash(row: PairRow) -> str:
    """A hash of a pair's ids; margin and designation do not matter to a reference."""
    return key_of(row.query, row.chosen, row.rejected)


def referred(
    rows: Sequence[PairRow],
    reference: PreTrainedModel,
    where: StageDir,
    ctx: Context,
    batches: Callable[[list[PairRow]], list[Pairs]],
    forward: Callable[[PreTrainedModel, PairBatch], Tensor],
    earlier: Sequence[StageDir] = (),
) -> list[PairRow]:
    """The rows with the reference's log-probs: those in the stage's directory or in those of
    `earlier` ones, the rest computed.

    `batches` keeps the order of the rows. All processes share the work; the first reads and writes.
    """
    topology, about = ctx.topology, None
    known: Known = {}
    if topology.leads:
        about = {
            "reference": model_hash(reference),
            "text": text_hash(ctx.codec),
            "autocast": ctx.config.compute.autocast,
            "device": ctx.device.type,
        }
        for place in (*earlier, where):
            known |= read(place, about, where)
    known = topology.collectives.broadcast(known)
    names = [pair_hash(row) for row in rows]
    new = {name: row for name, row in zip(names, rows, strict=True) if name not in known}
    if new:
        found = _computed(new, reference, ctx, batches, forward)
        known = {name: known[name] for name in names if name in known} | found
        if about is not None:
            write(where, about, known)
    where.event("ref_logprobs", computed=len(new), kept=len({*names}) - len(new))
    return [row._replace(ref_logprobs=known[name]) for row, name in zip(rows, names, strict=True)]


@torch.no_grad()
def _computed(
    new: dict[str, PairRow],
    reference: PreTrainedModel,
    ctx: Context,
    batches: Callable[[list[PairRow]], list[Pairs]],
    forward: Callable[[PreTrainedModel, PairBatch], Tensor],
) -> Known:
    """By hash, in every process."""
    order = sorted(new, key=lambda name: (longest(new[name]), name))
    micros = batches([new[name] for name in order])
    own = {
        i: forward(reference, plain(micros[i]).to(ctx.device)).tolist()
        for i in ctx.topology.share([float(micro.slots) for micro in micros])
    }
    found: dict[int, list[float]] = {}
    for part in ctx.topology.collectives.gather(own):
        found |= part
    pairs = [
        pair
        for i, micro in enumerate(micros)
        for pair in zip(found[i][: len(micro)], found[i][len(micro) :], strict=True)
    ]
    return dict(zip(order, pairs, strict=True))


def write(where: StageDir, about: dict[str, str], known: Known) -> None:
    """Keep what is known, beside what it holds for."""
    names = sorted(known)
    hashes = torch.tensor([list(bytes.fromhex(name)) for name in names], dtype=torch.uint8)
    values = torch.tensor([known[name] for name in names], dtype=torch.float64)
    tensors = {"pairs_N32": hashes.view(-1, 32), "logprobs_N2": values.view(-1, 2)}
    told = {**about, "digest": _digest(about, tensors)}
    replace_bytes(where.ref_logprobs, save(tensors, metadata=told))


def read(where: StageDir, about: dict[str, str], teller: StageDir) -> Known:
    """What was kept; nothing where it holds for something else, or is damaged, which the journal
    of `teller` then says."""
    if not where.ref_logprobs.is_file():
        return {}
    try:
        with safe_open(where.ref_logprobs, framework="pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in ("pairs_N32", "logprobs_N2")}
    except (SafetensorError, OSError) as error:
        teller.event("damaged", file=where.ref_logprobs.name, why=str(error))
        return {}
    digest = told.pop("digest", "")
    if told != about:
        return {}
    if digest != _digest(about, tensors):
        teller.event("damaged", file=where.ref_logprobs.name, why="it is not what was written")
        return {}
    names = [bytes(row).hex() for row in tensors["pairs_N32"].tolist()]
    pairs = [(float(a), float(b)) for a, b in tensors["logprobs_N2"].tolist()]
    return dict(zip(names, pairs, strict=True))


def _digest(about: dict[str, str], tensors: dict[str, Tensor]) -> str:
    contents = {
        name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in tensors.items()
    }
    return key_of(about, contents, {name: list(x.shape) for name, x in tensors.items()})
