"""How agents are trained: the hyperparameters of PPO and DQN, by what they see.

Those for pixels are the RL Zoo's for Atari (DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml and
dqn.yml), whose networks and frame stacks are Mnih et al. 2015's. Those for objects are ours, the
same for objects from the RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Algorithm = Literal["ppo", "dqn"]
Sight = Literal["slots", "ram", "pixels", "frames"]
Extractor = Literal["set", "deepsets", "relational", "flat"]
Encoder = Literal["freeze", "finetune", "joint"]


@dataclass(frozen=True)
class Recipe:
    """How an agent is trained."""

    envs: int
    """Environments that it acts in at once."""
    stack: int
    """Frames that it sees at once; slots have a velocity instead."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the algorithm's class in Stable-Baselines3."""
    learning_rate: float = 2.5e-4
    falling: bool = False
    """Whether the learning rate falls to zero over the run, and PPO's clipping with it."""
    layers: tuple[int, ...] = ()
    """Hidden layers between features and heads; pixels have theirs within the features."""

    def rates(self) -> dict[str, Any]:
        """Return what changes over the run, as Stable-Baselines3 takes it."""
        clip = self.arguments.get("clip_range")
        if not self.falling:
            return {"learning_rate": self.learning_rate}
        falling = {"learning_rate": _to_zero(self.learning_rate)}
        return falling if clip is None else falling | {"clip_range": _to_zero(clip)}


def _to_zero(start: float) -> Callable[[float], float]:
    return lambda remaining: remaining * start


_PPO = {"n_steps": 128, "batch_size": 256, "vf_coef": 0.5, "ent_coef": 0.01}
_DQN = {
    "train_freq": 4,
    "gradient_steps": 1,
    "target_update_interval": 1000,
    "exploration_fraction": 0.1,
    "exploration_final_eps": 0.01,
}

_RECIPES: dict[tuple[Algorithm, bool], Recipe] = {
    ("ppo", True): Recipe(
        *(8, 4, {**_PPO, "n_epochs": 4, "clip_range": 0.1}), learning_rate=2.5e-4, falling=True
    ),
    ("ppo", False): Recipe(
        *(8, 1, {**_PPO, "n_epochs": 8, "clip_range": 0.2}), learning_rate=1e-3, layers=(64,)
    ),
    ("dqn", True): Recipe(
        *(1, 4, {**_DQN, "buffer_size": 100_000, "learning_starts": 100_000, "batch_size": 32}),
        learning_rate=1e-4,
    ),
    ("dqn", False): Recipe(
        *(1, 1, {**_DQN, "buffer_size": 100_000, "learning_starts": 10_000, "batch_size": 32}),
        learning_rate=1e-4,
        layers=(64,),
    ),
}


def recipe_for(algorithm: Algorithm, sight: Sight) -> Recipe:
    """Return how an agent is trained."""
    return _RECIPES[algorithm, sight == "pixels"]
