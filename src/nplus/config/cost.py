"""What the stages of a run cost, estimated from its settings and `budget`; no torch, no network.

Tokens are counted by how they pass a network of `N` parameters (Kaplan et al. 2020, section 2.1):

    trained     forward and backward, 6 N operations a token
    referred    the frozen reference beside them, 2 N, in the same precision
    read        a prompt before the first token is drawn, a response that is scored: 2 N, in the
                precision of the stored weights
    written     drawn one at a time: a step of `online.micro_batch_size` responses reads all weights
                and the cache once, or takes 2 N operations a token, whichever is slower

Left out: attention's products of positions with positions, recomputed activations, filling up to
whole batches, and every stage that is not named in `works`.
"""

from __future__ import annotations

from dataclasses import dataclass

from nplus.config.batch_plan import known_rows, loop_pairs
from nplus.config.budget import GPUS, BudgetConfig
from nplus.config.dpo import DPOConfig
from nplus.config.memory import BYTES
from nplus.config.online import OnlineConfig, Step
from nplus.config.run import RunConfig, reward_stages
from nplus.config.shapes import Shape

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens, as assumed."""

    pair_prompt: float
    pair_chosen: float
    pair_rejected: float
    prompt: float
    response: float

    @classmethod
    def of(cls, cfg: RunConfig, budget: BudgetConfig) -> Lengths:
        """Those of the budget; the longest that the run allows where it has none."""
        query, own = cfg.data.max_query_tokens, cfg.data.comparisons
        compared = own.max_response_tokens or cfg.data.max_response_tokens
        written = cfg.online.response_length if cfg.online else 0
        return cls(
            pair_prompt=budget.pair_prompt or query,
            pair_chosen=budget.pair_chosen or compared,
            pair_rejected=budget.pair_rejected or compared,
            prompt=budget.prompt or query,
            response=budget.response or written,
        )

    @property
    def pair(self) -> float:
        """Of two sequences that have a prompt each."""
        return 2 * self.pair_prompt + self.pair_chosen + self.pair_rejected

    @property
    def together(self) -> float:
        """Of both responses after one prompt."""
        return self.pair_prompt + self.pair_chosen + self.pair_rejected


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of one stage, and the parameters of the network that they pass."""

    parameters: int
    trained: float = 0.0
    referred: float = 0.0
    read: float = 0.0
    written: float = 0.0


def works(cfg: RunConfig, shape: Shape, budget: BudgetConfig) -> dict[str, Work]:
    """What is known of each stage, by name in the run's order."""
    lengths = Lengths.of(cfg, budget)
    network, scalar = shape.parameters, shape.scalar_parameters
    found: dict[str, Work] = {}
    if budget.sft_tokens is not None:
        found["sft"] = Work(network, trained=cfg.sft.epochs * budget.sft_tokens)
    pairs = float(known_rows(cfg, "reward") or 0)
    each = lengths.together if cfg.reward.layout == "shared" else lengths.pair
    for name in reward_stages(cfg.reward):
        found[name] = Work(scalar, trained=cfg.reward.epochs * pairs * each)
    if cfg.preference is not None:
        rows = float(known_rows(cfg, "preference") or 0)
        found["preference"] = Work(network, trained=cfg.preference.epochs * rows * lengths.together)
    if cfg.dpo is not None:
        rows = float(known_rows(cfg, "dpo") or 0)
        each = lengths.together if cfg.dpo.layout == "shared" else lengths.pair
        found["dpo"] = _preferred(network, cfg.dpo, rows * each)
    if cfg.online is not None:
        found |= _loop(cfg, cfg.online, shape, lengths)
    return {name: found[name] for name in cfg.stage_names() if name in found}


def _preferred(network: int, stage: DPOConfig, tokens: float) -> Work:
    """A preference loss on `tokens` of pairs; a cached reference reads them once."""
    passes = 0 if not stage.has_reference else 1 if stage.ref_logprobs == "cached" else stage.epochs
    return Work(network, trained=stage.epochs * tokens, referred=passes * tokens)


def _loop(cfg: RunConfig, loop: OnlineConfig, shape: Shape, lengths: Lengths) -> dict[str, Work]:
    responses = loop.prompts * loop.samples
    found: dict[str, Work] = {}
    for number in range(1, loop.rounds + 1):
        offline, own = loop_pairs(cfg, number)
        read, shared = 2 * (lengths.prompt + lengths.response), loop.train.layout == "shared"
        tokens = offline * (lengths.together if shared else lengths.pair)
        tokens += own * (read - lengths.prompt if shared else read)
        of_round = {
            # The responses of one source share a reading of their prompt.
            "sample": Work(
                shape.parameters,
                read=loop.prompts * len(loop.draw) * lengths.prompt,
                written=responses * lengths.response,
            ),
            "score": _scored(cfg, loop, shape, lengths),
            "train": _preferred(shape.parameters, loop.train, tokens),
        }
        found |= {Step(number, kind).name: work for kind, work in of_round.items()}
    return found


def _scored(cfg: RunConfig, loop: OnlineConfig, shape: Shape, lengths: Lengths) -> Work:
    """Every response by every member. In a knock-out n - 1 matches find the best, n - 2 the worst
    of the others, and one is the two's own; each is read in both orders, by a model that is taken
    for as large as the reward model."""
    members = cfg.reward.members if loop.scorer == "ensemble" else 1
    tokens = members * loop.samples * (lengths.prompt + lengths.response)
    if loop.pairing == "knockout":
        matches = 2 * loop.samples - 2
        tokens += 2 * matches * (lengths.prompt + 2 * lengths.response)
    return Work(shape.scalar_parameters, read=loop.prompts * tokens)


def gpu_hours(work: Work, cfg: RunConfig, shape: Shape, budget: BudgetConfig) -> dict[str, float]:
    """Hours of one GPU by what it does, without what there is none of."""
    gpu, n = GPUS[budget.gpu], work.parameters
    autocast = cfg.compute.autocast
    trains = _peak(cfg, cfg.model.dtype if autocast == "none" else autocast, budget) * budget.mfu
    reads = _peak(cfg, cfg.model.dtype, budget) * budget.mfu
    step = weight_bytes = float(n * BYTES[cfg.model.dtype])
    rows = 1
    if cfg.online is not None:
        lengths, rows = Lengths.of(cfg, budget), cfg.online.micro_batch_size
        context = round(lengths.prompt + lengths.response / 2)  # halfway through a response
        step = weight_bytes + shape.cache_elements(rows, context) * BYTES[cfg.model.dtype]
    writes = max(2 * n / reads, step / rows / (gpu.bandwidth * budget.mbu))
    seconds = {
        "trained": work.trained * 6 * n / trains,
        "referred": work.referred * 2 * n / trains,
        "read": work.read * 2 * n / reads,
        "written": work.written * writes,
    }
    return {name: value / HOUR for name, value in seconds.items() if value}


def _peak(cfg: RunConfig, dtype: str, budget: BudgetConfig) -> float:
    """Operations a second, at most, of products in `dtype`."""
    gpu = GPUS[budget.gpu]
    if dtype == "bfloat16":
        return gpu.bfloat16
    exact = dtype == "float64" or cfg.compute.matmul_precision == "highest"
    return gpu.float32 if exact else gpu.tf32
