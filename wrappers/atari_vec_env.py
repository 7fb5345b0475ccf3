"""`AtariVecEnv`: ALE's own vector environments for a Stable-Baselines3 agent.

They live in C++, step in threads, and resize there: no process and no pipe for each game.

Letters: N environments, H W pixels, C channels, S stacked frames.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from objrl.wrappers.choose import unknown_env
from objrl.wrappers.spaces import Array

_TOLD = ("lives", "episode_frame_number", "frame_number")
_ARGUMENTS = {
    *("game", "frameskip", "repeat_action_probability"),
    *("full_action_space", "max_num_frames_per_episode"),
}
"""What an id may say of its game that this environment can do as well."""


class AtariVecEnv(VecEnv):
    """N games of ALE as a `VecEnv` that shows RGB frames, with the options of SB3's AtariWrapper.

    With `grayscale=True, stack_num=4, screen_size=84, maxpool=True` it shows stacks of grey frames
    as `make_atari_env` under `VecFrameStack` does, for agents that see pixels; the shades of grey
    are ALE's own.

    Episodes are counted as by `Monitor` below `AtariWrapper`: where a game is over,
    `infos[i]["episode"]` holds its return "r" before clipping, over all its lives, its length "l"
    in emulator frames, and the seconds "t" since the start. So leave `VecMonitor` out; it would
    put lives and clipped rewards in their place, and warns of that.

    Rewards, dones and infos are those of `make_atari_env`, but for these differences:

    - A game begins with fewer than `noop_max` frames without action; SB3 waits for 1 to `noop_max`.
    - Where the game knows FIRE, it stands in for the agent's action in the first step of a game and
      of a life. SB3 plays a step of FIRE and one of the action 2, unseen. So the beginnings agree
      with `noop_max=0` in games without FIRE.
    - A lost life, with `terminal_on_life_loss`, ends the agent's episode, and the next step goes on
      with the game; `terminal_observation` is then the frame that the next episode begins with, and
      a stack keeps its frames. SB3 plays one step without action first, unseen, and gives the
      rewards of what is unseen away.
    - `reset()` begins new games, also after a lost life.
    - Sticky actions and no-ops follow from the seed, but by other random numbers.
    - When a game is over its last frame is not drawn any more; the one before it is shown.
    - In the last info of a game that was cut off by time, `lives` is that of the step before.

    Attributes:
        spec: what `gym.make` can make one such game from, which plays and shows alike; without
            the no-ops, FIRE, lives, clipping and resizing.

    Example:
        >>> from objrl.wrappers import AtariVecEnv
        >>> envs = AtariVecEnv("ALE/Pong-v5", 2, screen_size=128)
        >>> envs.reset().shape
        (2, 128, 128, 3)
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        *,
        screen_size: int | tuple[int, int] = (210, 160),
        grayscale: bool = False,
        stack_num: int = 1,
        maxpool: bool = False,
        noop_max: int = 30,
        frame_skip: int = 4,
        terminal_on_life_loss: bool = True,
        clip_reward: bool = True,
        fire_reset: bool = True,
        action_repeat_probability: float = 0.0,
        full_action_space: bool = False,
        max_num_frames_per_episode: int = 108_000,
        num_threads: int = 0,
    ) -> None:
        """Start N games.

        Args:
            env_id: a Gymnasium id of the game, `ALE/Pong-v5`. It names the game alone: what its
                version says of sticky actions and skipped frames is said below.
            n_envs: N.
            screen_size: (H, W) of the frames, or one number for both; the emulator's own as a
                rule is (210, 160).
            grayscale: C is 1 instead of 3.
            stack_num: S; observations are (H, W, C * S) uint8, the newest frame last.
            maxpool: a frame is the brighter of the last two emulator frames, as SB3 always has
                it; the shipped weights learnt from the last one alone.
            noop_max: how many frames without action a game begins with at most; 0 for none.
            frame_skip: emulator frames a step; the action is repeated.
            terminal_on_life_loss: a lost life ends the episode, not the game.
            clip_reward: -1, 0 or 1 by the sign.
            fire_reset: press FIRE in the first step of a game and, with `terminal_on_life_loss`, of
                a life.
            action_repeat_probability: that an emulator frame repeats the last action instead.
            full_action_space: all 18 actions instead of those that the game knows.
            max_num_frames_per_episode: emulator frames after which a game is cut off.
            num_threads: 0 for as many as there are cores, at most N.

        Raises:
            ValueError: an id that is not registered or not of one of ALE's games, or an argument
                out of its range.
        """
        height, width = (screen_size,) * 2 if isinstance(screen_size, int) else screen_size
        _at_least(1, n_envs=n_envs, screen_size=min(height, width), stack_num=stack_num)
        _at_least(1, frame_skip=frame_skip, max_num_frames_per_episode=max_num_frames_per_episode)
        _at_least(0, noop_max=noop_max, num_threads=num_threads)
        if not 0 <= action_repeat_probability <= 1:
            raise ValueError(
                f"action_repeat_probability: expected 0 to 1, got {action_repeat_probability}"
            )
        game = _registered(env_id)
        self._envs: Any = AtariVectorEnv(
            *(game.kwargs["game"], n_envs),
            img_height=height,
            img_width=width,
            grayscale=grayscale,
            stack_num=stack_num,
            maxpool=maxpool,
            noop_max=noop_max,
            frameskip=frame_skip,
            # ALE's own `episodic_life` begins a new game with every life, so that an agent would
            # never see what comes after the first.
            life_loss_info=terminal_on_life_loss,
            reward_clipping=False,  # the returns of whole games are counted before it
            # ALE presses for one emulator frame, which a sticky action may swallow: a game that
            # waits for it would never begin.
            use_fire_reset=False,
            repeat_action_probability=action_repeat_probability,
            full_action_space=full_action_space,
            max_num_frames_per_episode=max_num_frames_per_episode,
            num_threads=num_threads,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        chosen = {
            "frameskip": frame_skip,
            "repeat_action_probability": action_repeat_probability,
            "full_action_space": full_action_space,
            "max_num_frames_per_episode": max_num_frames_per_episode,
        }
        self.spec = _single_spec(replace(game, kwargs={**game.kwargs, **chosen}), maxpool)
        self._clip = clip_reward
        known = self._envs.ale.get_action_set()
        fires = fire_reset and ale_py.Action.FIRE in known
        self._fire: int | None = known.index(ale_py.Action.FIRE) if fires else None
        self._channels = 1 if grayscale else 3
        shape = (height, width, self._channels * stack_num)
        super().__init__(
            *(n_envs, gym.spaces.Box(0, 255, shape, np.uint8), self._envs.single_action_space)
        )
        metadata: dict[str, Any] = self.metadata
        metadata["render_fps"] = max(1, 60 // frame_skip)
        self._since = time.time()
        self._frames = np.zeros((n_envs, *shape), np.uint8)
        self._returns = np.zeros(n_envs)
        self._lives: Array = np.zeros(n_envs, np.int32)
        self._begun: Array = np.zeros(n_envs, np.int32)
        # Whose next step is the first of a game or a life.
        self._begins: npt.NDArray[np.bool_] = np.ones(n_envs, np.bool_)

    def reset(self) -> npt.NDArray[np.uint8]:
        """Begin new games everywhere, from the seeds of `seed()` if it was called."""
        # ALE's seeds are C++ ints from 0 on.
        seeds = None if self._seeds[0] is None else np.array(self._seeds) % 2**31
        observations, told = self._envs.reset(seed=seeds)
        self._frames = self._arrange(observations)
        self._lives, self._begun = told["lives"], _begun(told)
        self._returns[:] = 0
        self._begins[:] = True
        self.reset_infos = _rows(told)
        self._reset_seeds()
        self._reset_options()
        return self._frames

    def step_async(self, actions: npt.ArrayLike) -> None:
        """Take note of the actions, (N,) whole numbers.

        Raises:
            ValueError: anything else, or actions that the game does not know.
        """
        chosen = np.asarray(actions)
        count = self._envs.single_action_space.n
        whole = chosen.shape == (self.num_envs,) and np.issubdtype(chosen.dtype, np.integer)
        # ALE would wait for ever for the game that was told an unknown action.
        if not whole or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(
                f"actions: expected ({self.num_envs},) whole numbers from 0 to {count - 1}, got "
                f"{chosen.shape} {chosen.dtype}: {chosen.tolist()}"
            )
        self._actions = chosen.astype(np.int64)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Act everywhere; where a game is over the next one begins in the same step."""
        actions = self._actions
        if self._fire is not None:
            actions = np.where(self._begins, self._fire, actions)
        observations, points, terminated, truncated, told = self._envs.step(actions)
        self._frames = self._arrange(observations)
        rewards = points.astype(np.float32)
        self._returns += rewards
        infos = _rows(told)
        for info, by_time, ended in zip(infos, truncated, terminated, strict=True):
            info["TimeLimit.truncated"] = bool(by_time and not ended)
        dones = self._begins = terminated | truncated
        begun = _begun(told)
        lost = dones & (begun == self._begun)  # a life, and the game goes on
        if dones.any():
            final = self._arrange(told["final_obs"])  # of games that are over; the rest is waste
            for index in np.flatnonzero(dones).tolist():
                self.reset_infos[index] = {name: infos[index][name] for name in _TOLD}
                last = self._frames if lost[index] else final
                infos[index]["terminal_observation"] = last[index].copy()
            for index in np.flatnonzero(dones & ~lost).tolist():
                lives = 0 if terminated[index] else int(self._lives[index])
                infos[index] |= self._end_of_game(index, lives, int(begun[index]))
        self._lives, self._begun = told["lives"], begun
        return self._frames, np.sign(rewards) if self._clip else rewards, dones, infos

    def close(self) -> None:
        """Let go of the games."""
        self._envs.close()

    def get_images(self) -> list[Array]:
        """Return N (H, W, 3) uint8, the newest frames."""
        newest = self._frames[..., -self._channels :]
        return list(np.broadcast_to(newest, (*newest.shape[:3], 3)))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object, once for every game: they all have the same."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: there are no objects that could have it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"set_attr({attr_name!r}): {_NO_OBJECTS}")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: there are no objects that could be asked.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"env_method({method_name!r}): {_NO_OBJECTS}")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Say yes to `Monitor` alone, whose work is done here.

        So that `evaluate_policy` takes whole games for episodes, not lives.
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _arrange(self, observations: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return (N, H, W, C * S), from ALE's (N, S, H, W, 3) or (N, S, H, W); a view if S is 1."""
        many, stack, height, width = observations.shape[:4]
        frames = observations.reshape(many, stack, height, width, self._channels)
        return frames.transpose(0, 2, 3, 1, 4).reshape(many, height, width, -1)

    def _end_of_game(self, index: int, lives: int, frame: int) -> dict[str, Any]:
        """Return what to tell of a game that is over; ALE tells of the next one already."""
        length = frame - int(self._begun[index])
        seconds = round(time.time() - self._since, 6)
        episode = {"r": float(self._returns[index]), "l": length, "t": seconds}
        self._returns[index] = 0
        return {
            "lives": lives,
            "episode_frame_number": length,
            "frame_number": frame,
            "episode": episode,
        }


_NO_OBJECTS = (
    "ALE's vector environments live in C++, without an object for each; use "
    "stable_baselines3.common.env_util.make_atari_env if you need one"
)


def _at_least(lowest: int, **arguments: int) -> None:
    """Check arguments by name."""
    for name, value in arguments.items():
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")


def _rows(told: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Return ALE's info of every game, as `AtariEnv` tells it."""
    columns = (told[name].tolist() for name in _TOLD)
    return [dict(zip(_TOLD, row, strict=True)) for row in zip(*columns, strict=True)]


def _begun(told: Mapping[str, Array]) -> Array:
    """Return (N,) the number of the emulator frame before each game's first.

    It tells a new game from a new life, which ALE does not.
    """
    begun: Array = told["frame_number"] - told["episode_frame_number"]
    return begun


def _registered(env_id: str) -> EnvSpec:
    """Return what is registered of a game."""
    spec = gym.registry.get(env_id)
    if spec is None:
        raise unknown_env(env_id)
    if spec.entry_point != "ale_py.env:AtariEnv" or not set(spec.kwargs) <= _ARGUMENTS:
        raise ValueError(
            f"env_id: expected a game of ALE without arguments beside {sorted(_ARGUMENTS)}, got "
            f"{env_id!r}: {spec.entry_point} with {spec.kwargs}; use "
            "stable_baselines3.common.env_util.make_vec_env for others"
        )
    return spec


def _single_spec(spec: EnvSpec, maxpool: bool) -> EnvSpec:
    """Return what makes a game alone that shows single frames or the brighter of two, as asked."""
    skip = spec.kwargs["frameskip"]
    if not maxpool or skip == 1:
        return spec
    pooled = WrapperSpec(
        "MaxAndSkipObservation",
        "gymnasium.wrappers.stateful_observation:MaxAndSkipObservation",
        {"skip": skip},
    )
    return replace(spec, kwargs={**spec.kwargs, "frameskip": 1}, additional_wrappers=(pooled,))
