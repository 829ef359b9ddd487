"""Studies: recipes that are several runs under several seeds, and one comparison of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nplus.config import RunConfig
from nplus.recipes.algorithms import CELLS
from nplus.recipes.online import online


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing that is compared: a policy of the runs called `cell`."""

    label: str
    cell: str
    policy: str
    """The stage that makes it, as `evaluate` names it."""


@dataclass(frozen=True, slots=True)
class Study:
    """What `nplus run` makes of a recipe that is a study."""

    title: str
    cells: Mapping[str, Callable[[], RunConfig]]
    """The runs of each seed by name; they share what they have in common."""
    arms: tuple[Arm, ...]
    contrasts: tuple[tuple[str, str], ...]
    """Labels of arms whose difference is told, the first less the second."""
    seeds: int = 3


_TUNED = (
    Arm("PPO", "PPO", "ppo"),
    Arm("RLOO", "RLOO", "reinforce"),
    Arm("GRPO", "GRPO", "reinforce"),
    Arm("online DPO", "online DPO", "online_dpo"),
    Arm("iterative DPO", "iterative DPO", "online"),
    Arm("RAFT", "RAFT", "online"),
)
STUDIES: dict[str, Study] = {
    "toy:online": Study(
        title="Offline against online preference learning",
        cells={"online": online},
        arms=(
            Arm("SFT", "online", "sft"),
            Arm("offline DPO", "online", "dpo"),
            Arm("iterative DPO", "online", "online"),
        ),
        contrasts=(
            ("offline DPO", "SFT"),
            ("iterative DPO", "SFT"),
            ("iterative DPO", "offline DPO"),
        ),
    ),
    "toy:algorithms": Study(
        title="Algorithms on one road",
        cells=CELLS,
        arms=(Arm("SFT", "best of n", "sft"), *_TUNED),
        contrasts=tuple((arm.label, "SFT") for arm in _TUNED),
    ),
}
"""Recipe name to study: `nplus run NAME` runs it, `nplus run NAME --seed N` one run of it."""
