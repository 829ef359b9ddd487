"""Frozen tensor batches passed between functions.

Axes, once for the whole project (a tensor's name ends with its axes):

    B  sequences (B = Q * G)     Q  prompts          G  samples per prompt      N  preference pairs
    P  prompt width              R  response width   T = P + R                  V  vocabulary

In rollouts prompts are left-padded and responses right-padded, so a response starts at column P.
Supervised and pair batches are right-padded throughout (Detail A9).
`tokens_BR[:, r]` is `tokens_BT[:, P + r]`; its log-prob comes from the logits at column
`P + r - 1`; `values_BR[:, r]` is V of the state *before* that token (Detail F1).
Masks are bool, True means real.
"""

from nplus.batches.base import Batch, Objective
from nplus.batches.rollouts import (
    Generation,
    GroupRollout,
    PPOBatch,
    PromptBatch,
    ReinforceBatch,
    Rollout,
    ValuedRollout,
)
from nplus.batches.supervised import (
    CoupledPairs,
    PackedBatch,
    PairBatch,
    ReferredPairs,
    SharedBatch,
    SharedPairBatch,
    TokenBatch,
)

__all__ = [
    "Batch",
    "CoupledPairs",
    "Generation",
    "GroupRollout",
    "Objective",
    "PPOBatch",
    "PackedBatch",
    "PairBatch",
    "PromptBatch",
    "ReferredPairs",
    "ReinforceBatch",
    "Rollout",
    "SharedBatch",
    "SharedPairBatch",
    "TokenBatch",
    "ValuedRollout",
]
