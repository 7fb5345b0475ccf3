"""An agent and its file: what it sees, how it is built, and safetensors to keep it in.

Stable-Baselines3's own zip files are pickled in part, and what is unpickled may do anything. Here
tensors are safetensors, and what builds the agent around them is JSON in their header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from objrl.agents import extractors
from objrl.agents.end_to_end import EncoderAdam, EncoderExtractor
from objrl.agents.envs import make_envs
from objrl.agents.presets import Algorithm, Encoder, Extractor, Recipe, Sight, recipe_for
from objrl.atomic import write_atomically
from objrl.checkpoint import put_back, read_tensors, tensors_of
from objrl.weights import WEIGHTS

FORMAT = "objrl-agent-1"
AGENT = "agent.safetensors"
"""An agent's file in the folder of its run."""
SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the agents that come with objrl, one a game."""

EXTRACTORS: dict[Extractor, type[BaseFeaturesExtractor]] = {
    "set": extractors.SlotExtractor,
    "deepsets": extractors.DeepSetsExtractor,
    "relational": extractors.RelationalExtractor,
    "flat": extractors.FlatExtractor,
}
ALGORITHMS: dict[Algorithm, type[BaseAlgorithm]] = {"ppo": PPO, "dqn": DQN}


@dataclass(frozen=True)
class AgentConfig:
    """What an agent is: enough to build it, but for what it has learnt."""

    env: str
    """Gymnasium id of an ALE game."""
    algo: Algorithm
    obs: Sight
    weights: str | None
    """Of the perceiver, by name or path; None where nothing is perceived."""
    extractor: Extractor = "deepsets"
    """What makes features of objects."""
    encoder: Encoder = "freeze"
    """Slots in the buffer; or pixels, and the encoder learns with the agent, its own loss too."""

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return recipe_for(self.algo, self.sees)

    @property
    def sees(self) -> Sight:
        """What environments are to show."""
        return "frames" if self.obs == "slots" and self.encoder != "freeze" else self.obs

    @property
    def digest(self) -> str:
        """SHA-256 of the perceiver's weights, empty where there are none.

        Raises:
            FileNotFoundError: they are not there any more.
        """
        if self.weights is None:
            return ""
        if self.weights in WEIGHTS:
            return WEIGHTS[self.weights].sha256
        path = Path(self.weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights: expected the perceiver's file {path}, got none")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def envs(
        self, count: int, *, learning: bool, seed: int, device: str = "auto", threads: int = 1
    ) -> VecEnv:
        """Make environments for it; see `make_envs`."""
        return make_envs(
            *(self.env, self.sees, count),
            learning=learning,
            seed=seed,
            stack=self.recipe.stack,
            weights=self.weights,
            device=device,
            threads=threads,
        )

    def build(
        self, envs: VecEnv, *, seed: int, device: str = "auto", learning: bool = True
    ) -> BaseAlgorithm:
        """Make it, untaught; with room for what it has seen only if it is to learn."""
        recipe = self.recipe
        room = {} if learning or self.algo != "dqn" else {"buffer_size": 1}
        return ALGORITHMS[self.algo](
            "CnnPolicy" if self.sees in ("pixels", "frames") else "MultiInputPolicy",
            envs,
            policy_kwargs=self._policy(recipe),
            seed=seed,
            device=device,
            **{**recipe.arguments, **recipe.rates(), **room},
        )

    def _policy(self, recipe: Recipe) -> dict[str, Any]:
        if self.sees == "pixels":
            return {}
        layers = {"net_arch": list(recipe.layers)}
        head = EXTRACTORS[self.extractor]
        if self.sees != "frames":
            return {"features_extractor_class": head, **layers}
        return {
            "features_extractor_class": EncoderExtractor,
            "features_extractor_kwargs": {
                "weights": self.weights,
                "head": head,
                "own_loss": 1.0 if self.encoder == "joint" else 0.0,
            },
            "normalize_images": False,
            "optimizer_class": EncoderAdam,
            **layers,
        }


@dataclass(frozen=True)
class Agent:
    """One that was loaded.

    Attributes:
        config: what it is.
        model: Stable-Baselines3's, whose `predict` acts.
        envs: the environment that it was built for, which it can play in.
        about: JSON-plain, what its file says of its training and its scores.
    """

    config: AgentConfig
    model: BaseAlgorithm
    envs: VecEnv
    about: dict[str, Any]


def save_agent(
    path: Path, config: AgentConfig, model: BaseAlgorithm, about: Mapping[str, Any]
) -> None:
    """Write an agent as safetensors, without pickle.

    Args:
        path: of the file.
        config: what it is.
        model: what it has learnt; of it the policy is kept, not the optimiser.
        about: JSON-plain: steps, scores and the like.
    """
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in tensors_of(model.policy).items()
    }
    header = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(config)),
        "weights_sha256": config.digest,
        "about": json.dumps(dict(about)),
    }
    write_atomically(path, safetensors.torch.save(tensors, header))


def shipped_agents() -> dict[str, Path]:
    """Return the files of the agents that come with objrl, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def load_agent(agent: str | Path, *, device: str = "auto", seed: int = 0) -> Agent:
    """Read an agent, and make the game that it plays.

    Args:
        agent: a file, the folder of a run, or the name of one that comes with objrl.
        device: where it computes.
        seed: of the game.

    Raises:
        FileNotFoundError: no such agent, or the perceiver that it learnt with is not there.
        ValueError: no agent of ours, or its perceiver has changed.
    """
    path = Path(agent)
    if path.is_dir():
        path /= AGENT
    if not path.is_file():
        path = shipped_agents().get(str(agent), path)
    if not path.is_file():
        names = ", ".join(shipped_agents()) or "none"
        raise FileNotFoundError(
            f"{path}: no such agent; `objrl train` makes some, and by name there are: {names}"
        )
    header, tensors = read_tensors(path, "agent", FORMAT, "train it again with `objrl train`")
    config = AgentConfig(**json.loads(header["config"]))
    if config.digest != header["weights_sha256"]:
        raise ValueError(
            f"{path}: this agent learnt with other weights than {config.weights!r} are now; what "
            "it sees would be another world to it. Train it anew, or take objrl's version of then"
        )
    envs = config.envs(1, learning=False, seed=seed, device=device)
    with warnings.catch_warnings():
        # Its rollouts would be too short for its batches here; it has none.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        model = config.build(envs, seed=seed, device=device, learning=False)
    put_back(tensors, model.policy)
    return Agent(config, model, envs, json.loads(header["about"]))
