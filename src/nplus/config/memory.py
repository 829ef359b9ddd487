"""An estimate of what training needs in memory per process, from shapes alone; no torch.

What is counted, in bytes, for `n` parameters over `W` processes:

    trained     what it computes with, in every process; float32 master weights where that is
                bfloat16; gradients; Adam's two moments; all but the first shared out over W, as
                ZeRO stage 2 does (Detail B4)
    frozen      the weights, in every process
    cache       keys and values of one rollout forward: 2 * layers * kv width * rows * (P + R)
    activations of one micro-batch, kept for the backward: `activation_bytes`, `head_bytes`

Where `compute.device` is `cpu`, two processes train, with a micro-batch and gradients each. Not
counted: the allocator's waste, the kernels' work space, the CUDA context (about 1 GiB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nplus.config.batch_plan import batch_plan
from nplus.config.dpo import DPOConfig
from nplus.config.groups import GroupConfig
from nplus.config.on_policy import OnPolicyConfig
from nplus.config.online import OnlineConfig
from nplus.config.ppo import PPOConfig
from nplus.config.preference import PreferenceConfig
from nplus.config.run import RunConfig
from nplus.config.shapes import Shape

GIB = 1 << 30
HEAD_ROWS = 2_048
"""Rows of logits at a time on a GPU (`ops/logprobs.py`); on a CPU they are fewer."""
States = dict[str, float]
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a stored parameter, and of one in a training forward."""

    stored: int
    computed: int

    @classmethod
    def of(cls, dtype: str, autocast: str) -> Precision:
        """Of `model.dtype`, and `autocast` of the stage."""
        stored = BYTES[dtype]
        return cls(stored, stored if autocast == "none" else BYTES[autocast])


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes by what they are for. Of `phases` one is there at a time, so the largest counts."""

    states: Mapping[str, float]
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.states.values()) + max(self.phases.values(), default=0.0)


def trained_bytes(parameters: int, precision: Precision, world_size: int) -> States:
    """Weights, gradients and Adam's moments of one trained model in one process."""
    shared = parameters * precision.stored / world_size
    master = 0.0 if precision.computed == precision.stored else shared
    return {
        "weights": float(parameters * precision.computed),
        "master weights": master,
        "gradients": shared,
        "Adam": 2 * shared,
    }


def activation_bytes(
    shape: Shape,
    *,
    rows: int,
    tokens: int,
    precision: Precision,
    attention: str = "sdpa",
    checkpointing: bool = False,
) -> float:
    """What the layers keep of a forward over `rows` sequences of `tokens` for the backward; with
    activation checkpointing each layer's input, and all of one layer.

    Per token and layer, in elements: the residual before each norm (stored precision); the two
    norms' outputs, query, key and value, attention's output as computed and as a contiguous copy;
    the feed-forward layer's inner values before and after the nonlinearity (gated: four of them).
    `eager` attention adds, per head and pair of positions, the float32 softmax and its copy in the
    computing precision, `batched` the softmax in that precision alone; `auto` counts as `eager`,
    which it may come to. Counted like Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1),
    without its dropout masks and scores.
    """
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    residuals = h * (1 if shape.parallel else 2) * precision.stored
    inner = shape.feed_forward * (4 if shape.gated else 2)
    computed = (2 * h + (q + 2 * kv) + 2 * q + inner) * precision.computed
    scores = 0
    if attention in ("eager", "auto"):
        copy = precision.computed if precision.computed < BYTES["float32"] else 0
        scores = shape.heads * tokens * (BYTES["float32"] + copy)
    elif attention == "batched":
        scores = shape.heads * tokens * precision.computed
    layer = residuals + computed + scores
    if checkpointing:
        return float(rows * tokens * (shape.layers * h * precision.stored + layer))
    return float(rows * tokens * shape.layers * layer)


def head_bytes(shape: Shape, *, rows: int, columns: int, precision: Precision) -> float:
    """The vocabulary head over `columns` positions, whose logits are there `HEAD_ROWS` at a time.

    A piece of logits as computed, in float32, and its gradient; the hidden states that the head
    reads and their gradient; the gradient of its weight, summed up in float32.
    """
    positions, wide = rows * columns, BYTES["float32"]
    piece = min(positions, HEAD_ROWS) * shape.vocab * (precision.computed + 2 * wide)
    states = 2 * positions * shape.hidden * precision.stored
    return float(piece + states + shape.vocab * shape.hidden * wide)


def memory_plan(cfg: RunConfig, shape: Shape, *, world_size: int = 1) -> dict[str, Need]:
    """What each stage that trains needs, by stage name, in the run's order; of the online loop, the
    first round's samples and scores, and as `online` the training of each round."""
    found = {
        "sft": _sft(cfg, shape, world_size),
        "reward": _reward(cfg, shape, world_size),
    }
    if cfg.ppo is not None:
        found["ppo"] = _ppo(cfg, cfg.ppo, shape, world_size)
    for groups in filter(None, (cfg.reinforce, cfg.online_dpo)):
        found[groups.stage] = _groups(cfg, groups, shape, world_size)
    if cfg.dpo is not None:
        found["dpo"] = _dpo(cfg, cfg.dpo, _pair_tokens(cfg), shape, world_size)
    if cfg.preference is not None:
        found["preference"] = _preference(cfg, cfg.preference, shape, world_size)
    if cfg.online is not None:
        tokens = cfg.data.max_query_tokens + cfg.online.response_length
        found["round1_sample"] = _sample(cfg, cfg.online, shape)
        found["round1_score"] = _score(cfg, cfg.online, shape)
        found["online"] = _dpo(cfg, cfg.online.train, tokens, shape, world_size)
    return {name: found[name] for name in cfg.stage_names() if name in found}


def _kept(
    cfg: RunConfig, shape: Shape, *, rows: int, tokens: int, logits: int, precision: Precision
) -> float:
    """Activations of one model, with the vocabulary head on `logits` positions of a row."""
    attention = cfg.model.attn_implementation
    layers = activation_bytes(
        shape,
        rows=rows,
        tokens=tokens,
        precision=precision,
        attention=attention,
        checkpointing=cfg.compute.activation_checkpointing,
    )
    if not logits:
        return layers
    return layers + head_bytes(shape, rows=rows, columns=logits, precision=precision)


def _trained(cfg: RunConfig, parameters: int, precision: Precision, world_size: int) -> States:
    """`trained_bytes`, with the second process's gradients where there is one."""
    found = trained_bytes(parameters, precision, world_size)
    found["gradients"] *= _processes(cfg)
    return found


def _sft(cfg: RunConfig, shape: Shape, world_size: int) -> Need:
    precision = Precision.of(cfg.model.dtype, cfg.compute.autocast)
    rows = cfg.sft.batch.micro_batch_size
    tokens = cfg.data.max_query_tokens + cfg.data.max_response_tokens
    tokens = (cfg.sft.max_length if cfg.sft.packing else cfg.data.max_length) or tokens
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=tokens, precision=precision)
    states = _trained(cfg, shape.parameters, precision, world_size)
    return Need(states, {"activations": _processes(cfg) * kept})


def _processes(cfg: RunConfig) -> int:
    """How many of this machine share a minibatch, as far as the config tells."""
    on_cpu = cfg.compute.device == "cpu" and cfg.compute.side_by_side
    return 2 if on_cpu and not cfg.model.dropout else 1


def _compared(cfg: RunConfig) -> int:
    """The longest compared response."""
    if cfg.label.kind == "data":
        return cfg.data.comparisons.max_response_tokens or cfg.data.max_response_tokens
    sampled = cfg.sample.response_length if cfg.sample else 0
    return max(cfg.data.max_response_tokens, sampled)


def _pair_tokens(cfg: RunConfig) -> int:
    """The longest query with a compared response."""
    limit = cfg.data.comparisons.max_length if cfg.label.kind == "data" else None
    return limit or cfg.data.max_query_tokens + _compared(cfg)


def _reward(cfg: RunConfig, shape: Shape, world_size: int) -> Need:
    precision = Precision.of(cfg.model.dtype, cfg.compute.autocast)
    rows, tokens = 2 * cfg.reward.batch.micro_batch_size, _pair_tokens(cfg)
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=0, precision=precision)
    states = _trained(cfg, shape.scalar_parameters, precision, world_size)
    return Need(states, {"activations": _processes(cfg) * kept})


def _preference(cfg: RunConfig, stage: PreferenceConfig, shape: Shape, world_size: int) -> Need:
    """Both responses stand in one prompt, and the letter's logits are there alone."""
    precision = Precision.of(cfg.model.dtype, cfg.compute.autocast)
    rows, tokens = stage.batch.micro_batch_size, _pair_tokens(cfg) + _compared(cfg)
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=1, precision=precision)
    states = _trained(cfg, shape.parameters, precision, world_size)
    return Need(states, {"activations": _processes(cfg) * kept})


def _passing(cfg: RunConfig, shape: Shape, rows: int, tokens: int) -> float:
    """The most that a forward without a backward holds: one layer's activations, as stored."""
    stored = BYTES[cfg.model.dtype]
    layer = replace(shape, layers=1)
    attention = cfg.model.attn_implementation
    precision = Precision(stored, stored)
    return activation_bytes(
        layer, rows=rows, tokens=tokens, precision=precision, attention=attention
    )


def _sample(cfg: RunConfig, loop: OnlineConfig, shape: Shape) -> Need:
    """The policies that write, with the cache of as many responses as are drawn at once."""
    stored, query = BYTES[cfg.model.dtype], cfg.data.max_query_tokens
    policies = len({source.policy for source in loop.sources})
    prompts = max(1, loop.micro_batch_size * len(loop.draw) // loop.samples)
    cache = shape.cache_elements(loop.micro_batch_size, query + loop.response_length)
    phases = {
        "rollout cache": float(cache * stored),
        "prompts": _passing(cfg, shape, prompts, query),
    }
    return Need({"weights": float(policies * shape.parameters * stored)}, phases)


def _score(cfg: RunConfig, loop: OnlineConfig, shape: Shape) -> Need:
    """The reward models, with the pairwise model where it is asked."""
    stored = BYTES[cfg.model.dtype]
    members = cfg.reward.members if loop.scorer == "ensemble" else 1
    states = {"reward models": float(members * shape.scalar_parameters * stored)}
    query, rows = cfg.data.max_query_tokens, loop.micro_batch_size
    phases = {"responses": _passing(cfg, shape, rows, query + loop.response_length)}
    if loop.pairing == "knockout":
        states["pairwise model"] = float(shape.parameters * stored)
        both = query + 2 * loop.response_length
        phases["matches"] = _passing(cfg, shape, max(1, rows // 2), both)
    return Need(states, phases)


def _dpo(cfg: RunConfig, stage: DPOConfig, tokens: int, shape: Shape, world_size: int) -> Need:
    precision = Precision.of(cfg.model.dtype, cfg.compute.autocast)
    rows = 2 * stage.batch.micro_batch_size
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=tokens, precision=precision)
    states = _trained(cfg, shape.parameters, precision, world_size)
    if stage.has_reference:
        states["reference"] = float(shape.parameters * precision.stored)
    return Need(states, {"activations": _processes(cfg) * kept})


def _ppo(cfg: RunConfig, ppo: PPOConfig, shape: Shape, world_size: int) -> Need:
    precision = Precision.of(cfg.model.dtype, ppo.autocast)
    response = ppo.sampling.response_length
    rows, tokens = ppo.micro_batch_size, cfg.data.max_query_tokens + response
    # The policy's head runs on the response's positions and the one before (Detail E6).
    columns = response + 1
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=columns, precision=precision)
    trained = [_trained(cfg, shape.parameters, precision, world_size)]
    if ppo.value == "separate":  # Detail E3: the critic is a network of its own
        trained.append(_trained(cfg, shape.scalar_parameters, precision, world_size))
        # One after the other in each process: both at once stands for two processes.
        kept += _kept(cfg, shape, rows=rows, tokens=tokens, logits=0, precision=precision)
    else:
        kept *= _processes(cfg)
    states = {name: sum(model[name] for model in trained) for name in trained[0]}
    return _with_rollouts(ppo, shape, states, kept, tokens, precision, world_size)


def _groups(cfg: RunConfig, stage: GroupConfig, shape: Shape, world_size: int) -> Need:
    precision = Precision.of(cfg.model.dtype, stage.autocast)
    response = stage.sampling.response_length
    rows, tokens = stage.micro_batch_size, cfg.data.max_query_tokens + response
    columns = response + 1
    kept = _kept(cfg, shape, rows=rows, tokens=tokens, logits=columns, precision=precision)
    states = _trained(cfg, shape.parameters, precision, world_size)
    kept *= _processes(cfg)
    if stage.max_staleness:
        states["snapshots"] = float(stage.max_staleness * shape.parameters * precision.stored)
    return _with_rollouts(stage, shape, states, kept, tokens, precision, world_size)


def _with_rollouts(
    stage: OnPolicyConfig,
    shape: Shape,
    states: States,
    kept: float,
    tokens: int,
    precision: Precision,
    world_size: int,
) -> Need:
    """What is trained, beside the frozen networks, in turn with the cache that rollouts need."""
    states["reference"] = float(shape.parameters * precision.stored)
    states["reward model"] = float(shape.scalar_parameters * precision.stored)
    plan = batch_plan(stage, world_size=world_size)
    sampled = min(stage.rollout_micro_batch_size, plan.local_rows)
    cache = float(shape.cache_elements(sampled, tokens) * precision.stored)
    return Need(states, {"rollout cache": cache, "activations": kept})
