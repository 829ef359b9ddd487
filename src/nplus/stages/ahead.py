"""Rollouts drawn while others are trained on, from snapshots of the policy of a fixed age."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from nplus.batches import GroupRollout
from nplus.distributed.partner import Partner, half_of_torch
from nplus.records import Demonstration
from nplus.stages.compute import side_by_side
from nplus.stages.groups import Groups, prompts_of

Own = TypeVar("Own")


class Ahead:
    """Draws the rollout of every update from the policy as it was `max_staleness` updates before.

    Which weights draw which rollout hangs on the number of the update alone, never on what was
    ready. Snapshot `s % max_staleness` draws for update s: it is taken whole between two updates
    and stays as it is until it has drawn, so no rollout sees weights that are being written. At
    any boundary the snapshots are those of the rollouts to come, and a run that goes on from a
    checkpoint, which holds them, draws these again.

    Where another process may compute beside this one it draws during `beside`; else the same is
    drawn here, when it is taken.
    """

    def __init__(self, groups: Groups, posts: list[Demonstration], updates: int) -> None:
        """`groups` with the policy before the first update, of `updates`."""
        self.groups, self.posts, self.updates = groups, posts, updates
        self.staleness = groups.cfg.max_staleness
        copies = (copy.deepcopy(groups.policy) for _ in range(self.staleness))
        # Without dropout, whatever the policy's mode: what is drawn ahead takes nothing from the
        # generator that training draws from.
        self.snapshots = torch.nn.ModuleList(copies).eval().requires_grad_(False)
        self.drawn: dict[int, GroupRollout] = {}
        self.worker: Partner | None = None
        self.considered = False
        """Whether it has been looked at if there may be a worker."""

    def take(self, step: int) -> GroupRollout:
        """The rollout of update `step`; the policy as it is now takes the place of the snapshot
        that drew it."""
        self._consider()
        found = self.drawn.pop(step, None)
        if found is None and self.worker is not None:  # on the same threads as all others
            _, found = self.worker.beside(lambda: None, "draw", step)
        if found is None:
            found = self.draw(step)
        self.snapshots[step % self.staleness].load_state_dict(self.groups.policy.state_dict())
        return found

    def beside(self, own: Callable[[], Own], step: int) -> Own:
        """What `own` returns, which trains on the rollout of update `step`; meanwhile that of
        update `step + max_staleness` is drawn, for which the weights are there now."""
        coming = step + self.staleness
        if self.worker is None:
            return own()
        if coming >= self.updates:
            with half_of_torch(self.worker.threads):  # as beside a draw: sums hang on threads
                return own()
        found, self.drawn[coming] = self.worker.beside(own, "draw", coming)
        return found

    def draw(self, step: int) -> GroupRollout:
        """The rollout of update `step`, from its snapshot, by all processes."""
        cfg, ctx = self.groups.cfg, self.groups.ctx
        policy = self.snapshots[step % self.staleness]
        groups = replace(self.groups, policy=policy, staleness=self.staleness)
        prompts = prompts_of(self.posts, cfg, ctx, step)
        return groups.gather_over_ranks(prompts, step, None, lambda name: None)

    def _consider(self) -> None:
        """Fork the worker, where there may be one; several processes have no threads to spare."""
        ctx = self.groups.ctx
        if self.considered:
            return
        self.considered = True
        if ctx.topology.world == 1 and side_by_side(ctx.config.compute, ctx.device):
            self.worker = Partner({"draw": self.draw}, weights=self.snapshots.parameters())

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.close()
            self.worker, self.considered = None, False
