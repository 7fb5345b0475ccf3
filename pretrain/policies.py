"""Who plays while frames are collected: nobody in particular, or a trained SB3 agent.

A saved SB3 agent is a zip of tensors, JSON and pickled Python objects. Only the tensors and the
plain JSON are read here: the policy is built anew as SB3 builds its `CnnPolicy` (PPO, A2C, DQN) and
the tensors must fit it exactly. The pickled objects are left alone. The tensors are in a pickle as
well, torch's, and are read with its restricted reader (`weights_only`), which makes tensors and
refuses whatever would run code; a zip from a stranger is as safe as that reader.

Letters: B environments, H W pixels, C channels (frames stacked).
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Frames = npt.NDArray[np.uint8]
Actions = npt.NDArray[Any]


class Policy(Protocol):
    """Chooses the next action of every environment."""

    def __call__(self, frames: Frames, is_first: npt.NDArray[np.bool_]) -> Actions:
        """Act on (B, H, W, 3) uint8 RGB frames; where `is_first` (B,), an episode begins."""
        ...

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        ...


def make_policy(
    name: str, actions: gym.Space[Any], single: gym.Space[Any], epsilon: float
) -> Policy:
    """Return who plays.

    Args:
        name: 'random', 'wander', or the zip of an SB3 agent.
        actions: of all environments together.
        single: of one environment.
        epsilon: how often an agent acts at random instead.

    Raises:
        FileNotFoundError, ValueError: as `SavedPolicy`.
    """
    if name == "random":
        return RandomPolicy(actions)
    if name == "wander":
        return WanderPolicy(actions)
    return SavedPolicy(Path(name), single, epsilon)


class RandomPolicy:
    """Every action as likely as any other."""

    def __init__(self, actions: gym.Space[Any]) -> None:
        """Draw from `actions`, the action space of all environments together."""
        self._actions = actions

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._actions.seed(seed)

    def __call__(self, frames: Frames, is_first: npt.NDArray[np.bool_]) -> Actions:
        """Draw one action an environment; neither argument is looked at."""
        drawn: Actions = self._actions.sample()
        return drawn


class WanderPolicy:
    """At random in every other environment; in the others each drawn action is held for a while.

    A single environment is one of the others.

    Jitter stays where it began; what holds its course gets about and sees more of a game.
    """

    def __init__(self, actions: gym.Space[Any], hold: float = 8.0) -> None:
        """Draw from `actions`, the action space of all environments together.

        Args:
            actions: of B environments.
            hold: mean number of steps that an action is held.
        """
        self._actions, self._change = actions, 1 / hold
        self._rng = np.random.default_rng(0)
        self._last: Actions | None = None

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._actions.seed(seed)
        self._rng, self._last = np.random.default_rng(seed), None

    def __call__(self, frames: Frames, is_first: npt.NDArray[np.bool_]) -> Actions:
        """Draw where it is time to; the frames are not looked at."""
        drawn: Actions = self._actions.sample()
        if self._last is not None:
            held = (self._rng.random(len(frames)) > self._change) & ~is_first
            if len(held) > 1:
                held[::2] = False
            held = held.reshape(-1, *[1] * (drawn.ndim - 1))
            drawn = np.where(held, self._last, drawn)
        self._last = drawn
        return drawn


class SavedPolicy:
    """The convolutional policy of a saved SB3 agent, seeing what it saw in training.

    Frames are made grey, resized as SB3's `WarpFrame` does and stacked. SB3's wrappers also take
    the maximum of two raw frames, which a frame of 4 emulator steps does not tell: where things
    flicker, the agent may play a little worse than it did.
    """

    def __init__(self, path: Path, actions: gym.Space[Any], epsilon: float) -> None:
        """Load the agent.

        Args:
            path: the zip that SB3's `save` wrote.
            actions: action space of one environment.
            epsilon: in [0, 1]. How often to act at random instead, so that a play differs from
                the last.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not an SB3 zip, not a `CnnPolicy` of PPO, A2C or DQN, or of other actions.
        """
        weights, shape = _read_zip(path)
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"policy: expected discrete actions, got {actions}")
        self._count = int(actions.n)
        self._policy, self._actor = _build(path, weights, shape, self._count)
        self._channels, self._height, self._width = shape
        self._epsilon = epsilon
        self._rng = np.random.default_rng(0)
        self._stack = np.zeros((0, *shape), dtype=np.uint8)

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._rng = np.random.default_rng(seed)

    def __call__(self, frames: Frames, is_first: npt.NDArray[np.bool_]) -> Actions:
        """Draw from the policy's probabilities, or take its best action where it has none."""
        seen = np.stack([self._shrink(frame) for frame in frames])[:, None]
        if len(self._stack) != len(frames):
            self._stack = np.zeros((len(frames), *self._stack.shape[1:]), dtype=np.uint8)
        # As SB3's VecFrameStack: an episode begins with zeros before its first frame.
        past = np.where(is_first[:, None, None, None], 0, self._stack[:, 1:])
        self._stack = np.concatenate([past, seen], axis=1, dtype=np.uint8)
        with torch.inference_mode():
            logits = self._logits(torch.from_numpy(self._stack))
        # Gumbel's trick: the best of logits plus such noise is a draw from their softmax.
        noise = self._rng.gumbel(size=logits.shape) if self._actor else 0.0
        chosen = np.argmax(logits.numpy() + noise, axis=1)
        drawn = self._rng.integers(self._count, size=len(chosen))
        return np.where(self._rng.random(len(chosen)) < self._epsilon, drawn, chosen)

    def _shrink(self, frame: Frames) -> npt.NDArray[Any]:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (self._width, self._height), interpolation=cv2.INTER_AREA)

    def _logits(self, stack: Tensor) -> Tensor:
        """(B, actions) log-probabilities of an actor, values of DQN."""
        if self._actor:
            logits: Tensor = self._policy.get_distribution(stack).distribution.logits
            return logits
        values: Tensor = self._policy.q_net(stack)
        return values


def _read_zip(path: Path) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Return the policy's tensors and its observation's shape (C, H, W)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --policy: random, wander or an SB3 zip")
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = archive.read("policy.pth")
            # Of the pickled observation space SB3 also notes the plain parts, its shape among them.
            shape = json.loads(archive.read("data"))["observation_space"]["_shape"]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as problem:
        raise _no_agent(path, repr(problem)) from problem
    weights = _read_tensors(path, tensors)
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise _no_agent(path, f"its observations have shape {shape!r}")
    if len(shape) == 3 and shape[2] < shape[0]:
        shape = [shape[2], *shape[:2]]
    return weights, tuple(shape)


def _read_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Return what a state dict of torch holds, if it is nothing but tensors."""
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as problem:  # what is damaged or made to harm fails it in ways of its own
        # Without torch's message: many lines, which advise to trust the file.
        raise ValueError(
            f"{path}: expected tensors in its policy.pth, got what torch's restricted reader "
            f"(weights_only) refuses ({type(problem).__name__}): it is damaged, or holds objects "
            "that could run code; save the agent again, or get it from somebody you trust"
        ) from problem
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise _no_agent(path, "its policy.pth is no dictionary of tensors")
    return weights


def _no_agent(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: expected a zip written by Stable-Baselines3's `save` of an agent that sees "
        f"images, got something else ({found})"
    )


def _build(
    path: Path, weights: dict[str, Tensor], shape: tuple[int, ...], count: int
) -> tuple[Any, bool]:
    """Return the policy with its weights, and whether it is an actor (else DQN)."""
    from stable_baselines3.common.policies import ActorCriticCnnPolicy
    from stable_baselines3.dqn.policies import CnnPolicy as DqnCnnPolicy

    actor = "action_net.weight" in weights
    head = weights.get("action_net.weight" if actor else "q_net.q_net.0.weight")
    known = "a CnnPolicy of PPO, A2C or DQN on grey frames, trained with SB3's default network"
    if head is None or len(shape) != 3 or shape[0] == 3:
        raise ValueError(
            f"{path}: expected {known}, got one for observations {shape}; "
            "collect with your own loop and objrl.pretrain.store.FrameWriter"
        )
    if head.shape[:1] != (count,):
        raise ValueError(
            f"{path}: expected an agent with the environment's {count} actions, got one with "
            f"{head.shape[:1].numel()}; was it trained on another game?"
        )
    build = ActorCriticCnnPolicy if actor else DqnCnnPolicy
    try:
        policy: Any = build(
            gym.spaces.Box(0, 255, shape, np.uint8), gym.spaces.Discrete(count), lambda _: 0.0
        )
        policy.load_state_dict(weights)
    except (AssertionError, RuntimeError) as problem:
        raise ValueError(f"{path}: expected {known}, got other layers ({problem})") from problem
    return policy.eval(), actor
