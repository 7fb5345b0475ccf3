"""What becomes of agents when the game looks different from how they learnt it.

    python -m objrl.agents.robustness runs/agents/Pong-* --changes recoloured hidden:Enemy

Whatever an agent sees, it plays the same games, whose frames are changed before anything else looks
at them: `recoloured`, all that differs from the game's usual picture has other colours;
`hidden:CLASS`, the objects of a class are not drawn (which and where the RAM tells, with OCAtari);
`unchanged`, as it is, for comparison. The RAM's objects do not go by frames: agents that see them
would play as before, and are refused. Games are played one by one, so that frames can be changed;
those that learn play in `AtariVecEnv`, which begins its games in other ways.

Letters: H W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
import tyro
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from objrl.agents.agent import AGENT, Agent, AgentConfig, load_agent
from objrl.agents.envs import PIXELS
from objrl.atomic import write_atomically
from objrl.wrappers import VecObjectSlots
from objrl.wrappers.ram_reader import RamObjects

Frame = npt.NDArray[np.uint8]

LEARNT_FROM = 400
"""Steps of random play, of whose frames the usual picture is the median."""
DIFFERENT = 24
"""From how far on a pixel is no background, of 255 in any channel."""


@dataclass(frozen=True)
class RobustnessConfig:
    """Let agents play games that look different."""

    agents: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs of `objrl train`, agents' files, or names of shipped ones."""
    changes: tuple[str, ...] = ("unchanged", "recoloured")
    """unchanged, recoloured, hidden:CLASS (a class of OCAtari's)."""
    games: int = 10
    """Whole games for each agent and change."""
    envs: int = 4
    """How many are played at once."""
    seed: int = 0
    """Of the games."""
    out: Path = Path("runs/agents/robustness.json")
    """The figures; those of other agents and changes stay in it."""


class ChangedFrames(gym.ObservationWrapper[Frame, Any, Frame]):
    """A game of ALE whose frames (H, W, 3) uint8 are changed."""

    def __init__(self, env: gym.Env[Frame, Any], change: str, usual: Frame) -> None:
        """Change the frames of a game.

        Args:
            env: one that shows its own RGB frames.
            change: unchanged, recoloured or hidden:CLASS.
            usual: (H, W, 3) uint8, what the game looks like without objects.

        Raises:
            ValueError: another change, or no such class.
            ImportError: a class is to be hidden, and OCAtari is not there.
        """
        super().__init__(env)
        self._usual = usual
        self._objects: RamObjects | None = None
        word, _, name = change.partition(":")
        if word == "hidden":
            spec = env.unwrapped.spec
            assert spec is not None
            self._objects = RamObjects(spec.kwargs["game"], hud=True)
            if name not in self._objects.classes:
                known = ", ".join(self._objects.classes)
                raise ValueError(f"changes: expected hidden:CLASS, one of {known}; got {change!r}")
            self._class = self._objects.classes.index(name)
        elif change not in ("unchanged", "recoloured"):
            raise ValueError(
                f"changes: expected unchanged, recoloured or hidden:CLASS, got {change!r}"
            )
        self._change = word

    def reset(self, **options: Any) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode."""
        if self._objects is not None:
            self._objects.begin()
        return super().reset(**options)

    def observation(self, observation: Frame) -> Frame:
        """Return the frame as it is to look."""
        if self._change == "recoloured":
            return recoloured(observation, self._usual)
        if self._objects is not None:
            atari: Any = self.env.unwrapped
            found = self._objects.read(atari.ale.getRAM())
            boxes = found[found[:, 1] == self._class, 2:]
            return without(observation, self._usual, boxes)
        return observation


def recoloured(frame: Frame, usual: Frame) -> Frame:
    """Give what differs from the usual picture other colours; what is grey becomes purple."""
    far = (np.abs(frame.astype(np.int16) - usual) > DIFFERENT).any(-1)
    other = frame[..., [1, 2, 0]]
    other[..., 1] = other[..., 1] * 0.6
    return np.asarray(np.where(far[..., None], other, frame))


def without(frame: Frame, usual: Frame, boxes: npt.NDArray[np.int64]) -> Frame:
    """Put the usual picture where (M, 4) boxes x, y, width, height are, and a pixel around them."""
    changed = frame.copy()
    for x, y, width, height in boxes.tolist():
        box = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
        changed[box] = usual[box]
    return changed


class Grey(gym.ObservationWrapper[Frame, Any, Frame]):
    """The small grey frames that agents see who see pixels."""

    def __init__(self, env: gym.Env[Frame, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (PIXELS, PIXELS, 1), np.uint8)

    def observation(self, observation: Frame) -> Frame:
        """(H, W, 3) -> (84, 84, 1)."""
        grey = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)[..., None]


def usual_picture(env_id: str) -> Frame:
    """Return (H, W, 3) uint8, the median of what is seen in random play."""
    with gym.make(env_id) as env:
        env.action_space.seed(0)
        frame, _ = env.reset(seed=0)
        frames = [frame]
        for _ in range(LEARNT_FROM):
            frame, _, terminated, truncated, _ = env.step(env.action_space.sample())
            frames.append(env.reset()[0] if terminated or truncated else frame)
    return np.asarray(np.median(np.stack(frames), axis=0), np.uint8)


def changed_envs(config: AgentConfig, change: str, usual: Frame, count: int, seed: int) -> VecEnv:
    """Make games for an agent that look different; true rewards, whole games in `episode`."""
    pixels = config.obs == "pixels"

    def make() -> gym.Env[Any, Any]:
        skip = gym.spec(config.env).kwargs["frameskip"]
        env: gym.Env[Any, Any] = gym.make(config.env, frameskip=1 if pixels else skip)
        env = Monitor(ChangedFrames(env, change, usual))
        env = atari_wrappers.NoopResetEnv(env, noop_max=30 if pixels else 30 // skip)
        if pixels:
            env = atari_wrappers.MaxAndSkipEnv(env, skip)
        env = atari_wrappers.EpisodicLifeEnv(env)
        if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
            env = atari_wrappers.FireResetEnv(env)
        return Grey(env) if pixels else env

    envs: VecEnv = DummyVecEnv([make] * count)
    envs.seed(seed)
    if config.obs == "slots":
        envs = VecObjectSlots(envs, config.weights)
    stack = config.recipe.stack
    return VecFrameStack(envs, stack) if stack > 1 else envs


def play(agent: Agent, change: str, usual: Frame, config: RobustnessConfig) -> list[float]:
    """Return what an agent comes to in games that look different."""
    envs = changed_envs(agent.config, change, usual, config.envs, config.seed + 2**21)
    try:
        returns, _ = evaluate_policy(
            *(agent.model, envs, config.games), return_episode_rewards=True
        )
    finally:
        envs.close()
    assert isinstance(returns, list)
    return [float(score) for score in returns]


def main(config: RobustnessConfig) -> list[dict[str, Any]]:
    """Play, print and write; return the figures, one entry an agent and change.

    Raises:
        FileNotFoundError: no such agent.
        ValueError: an agent that sees the RAM or learns its encoder, a change that is none.
    """
    gym.register_envs(ale_py)
    torch.set_num_threads(1)
    agents = {(p.parent if p.name == AGENT else p).name: load_agent(p) for p in config.agents}
    usual = _checked(agents, config)
    kept = json.loads(config.out.read_text()) if config.out.exists() else []
    entries = {(entry["agent"], entry["change"]): entry for entry in kept}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    for (name, agent), change in product(agents.items(), config.changes):
        env = agent.config.env
        scores = play(agent, change, usual[env], config)
        about = {"agent": name, "env": env, "change": change, "seed": config.seed}
        entries[name, change] = {**about, "returns": scores}
        print(f"{name} {change}: {np.mean(scores):.1f} ± {np.std(scores):.1f}", flush=True)
        found = [entries[key] for key in sorted(entries)]
        write_atomically(config.out, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _checked(agents: dict[str, Agent], config: RobustnessConfig) -> dict[str, Frame]:
    """Return each game's usual picture, if all agents can play all changes."""
    usual: dict[str, Frame] = {}
    for name, agent in agents.items():
        env, sees = agent.config.env, agent.config.sees
        if sees not in ("slots", "pixels"):
            raise ValueError(
                f"agents: expected some that see slots of a frozen encoder or pixels, got {name}, "
                f"which sees {sees}"
            )
        if env not in usual:
            usual[env] = usual_picture(env)
        for change in config.changes:
            ChangedFrames(gym.make(env), change, usual[env]).close()
    return usual


if __name__ == "__main__":
    main(tyro.cli(RobustnessConfig))
