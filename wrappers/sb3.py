"""`VecObjectSlots`: the environments of a Stable-Baselines3 agent, seen as objects.

Letters: N environments, H W pixels, K slots, D features of `what`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from objrl.perceiver import Perceiver
from objrl.slots import Slots
from objrl.wrappers.choose import choose_perceiver, shows_last_two
from objrl.wrappers.memory import Memory, restore, save
from objrl.wrappers.spaces import (
    Array,
    Observation,
    annotate,
    as_frames,
    frame_shape,
    make_layout,
)


class VecObjectSlots(VecEnvWrapper):
    """`ObjectSlots` for Stable-Baselines3: N environments, one forward pass a step.

    Every environment sees what it would see alone under `ObjectSlots`, in the same observation
    space. The last frame of an episode, `infos[i]["terminal_observation"]`, is seen with what went
    before and becomes slots as well; the first frame of the next one begins anew. A reset after
    `seed()` begins the counting of ids, too.

    It goes right above what shows frames; only `VecMonitor`, and a `VecNormalize` of rewards alone,
    may stand between. Above it `VecFrameStack` puts the columns of a row side by side (zeros, also
    for ids, where an episode has no past yet), and `VecNormalize` is best told
    `norm_obs_keys=["depth", "what"]`: the other fields are bounded, and a row without an object
    would not stay 0. From above all is found as usual: `VecFrameStack(envs, 4).slots`.

    `render()` and `get_images()` draw boxes and ids on the frames.

    Attributes:
        perceiver: what sees; it lives in this process, also where the environments do not.

    Example:
        >>> from stable_baselines3 import PPO                                # doctest: +SKIP
        >>> from objrl.agents import SlotExtractor                           # doctest: +SKIP
        >>> from objrl.wrappers import AtariVecEnv, VecObjectSlots           # doctest: +SKIP
        >>> envs = VecObjectSlots(AtariVecEnv("ALE/SpaceInvaders-v5", 8))    # doctest: +SKIP
        >>> policy = {"features_extractor_class": SlotExtractor}             # doctest: +SKIP
        >>> PPO("MultiInputPolicy", envs, policy_kwargs=policy)              # doctest: +SKIP
    """

    def __init__(
        self,
        venv: VecEnv,
        weights: str | Path | Perceiver | None = None,
        *,
        max_slots: int | None = None,
        device: str | torch.device = "auto",
        keys: Sequence[str] | None = None,
        flatten: bool = False,
    ) -> None:
        """Wrap environments that show RGB frames (H, W, 3); see `ObjectSlots` for the arguments.

        What they are made from, for the choice of weights, is the `spec` that the first one tells.

        Raises:
            ValueError: as `ObjectSlots`; or frames with the colours first, a stack of frames, or
                environments in other processes whose spec cannot be sent from there.
            TypeError: `weights` that are none.
        """
        self._frame_shape = _frame_shape(venv.observation_space)
        # A ready perceiver is not chosen by the spec, which not all environments can tell.
        spec = None if isinstance(weights, Perceiver) else _single_spec(venv)
        self.perceiver = choose_perceiver(
            *(weights, spec, self._frame_shape, max_slots, device),
            last_two=shows_last_two(spec),
        )
        rows, features = self.perceiver.max_slots, self.perceiver.what_size
        self._layout = make_layout(rows, features, keys, flatten)
        super().__init__(venv, observation_space=self._layout.space())
        self._memory = Memory.empty(self.perceiver, self.num_envs)

    @property
    def slots(self) -> Slots:
        """(N, K, ·) `Slots` of the last frames, on the host, also the fields left out of `keys`."""
        return self._memory.slots

    def reset(self) -> Observation:
        """Begin new episodes everywhere; after `seed()`, begin the counting of ids as well."""
        # Kept by the innermost and used up by its reset; who gave them need not have asked us.
        seeds = self.venv.unwrapped._seeds
        if any(seed is not None for seed in seeds):
            self._memory = Memory.empty(self.perceiver, self.num_envs)
        frames = self._as_frames(self.venv.reset())
        is_first = torch.ones(self.num_envs, dtype=torch.bool)
        self._memory = self._memory.see(self.perceiver, frames, is_first)
        self.reset_infos = self.venv.unwrapped.reset_infos
        return self._layout.batch(self.slots)

    def step_wait(self) -> tuple[Observation, Array, Array, list[dict[str, Any]]]:
        """See what came of the actions, and both ends where an episode is over."""
        observations, rewards, dones, infos = self.venv.step_wait()
        frames = self._as_frames(observations)
        infos = list(infos)
        if dones.any():
            self._see_both_ends(frames, np.flatnonzero(dones).tolist(), infos)
            self.reset_infos = self.venv.unwrapped.reset_infos
        else:
            is_first = torch.zeros(self.num_envs, dtype=torch.bool)
            self._memory = self._memory.see(self.perceiver, frames, is_first)
        return self._layout.batch(self.slots), rewards, dones, infos

    def get_state(self) -> dict[str, Tensor]:
        """Return a copy of what is remembered of the past: named tensors, (N, ...) each.

        As `VectorObjectSlots.get_state`, whose states may be put back here, and the reverse. The
        environments' own state is saved by other means.
        """
        return save(self._memory)

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `get_state` returned, also in counting ids; it may be used again.

        Raises:
            ValueError: a state of another number of environments, or of another perceiver.
        """
        self._memory = restore(state, self._memory)

    def get_images(self) -> list[Array | None]:
        """Return what the environments render, with the boxes and ids of the slots."""
        images = self.venv.get_images()
        return [annotate(image, self.slots[index]) for index, image in enumerate(images)]

    def render(self, mode: str | None = None) -> Array | None:
        """Render all environments side by side, with the boxes and ids of the slots."""
        return VecEnv.render(self, mode)  # a wrapper's own would ask those below for the images

    def _as_frames(self, observations: Any) -> Tensor:
        """Return (·, H, W, 3) uint8 of observations, arrays since the space is a `Box`."""
        return as_frames(observations, self._frame_shape)

    def _see_both_ends(self, frames: Tensor, over: list[int], infos: list[dict[str, Any]]) -> None:
        """See the last frames of the episodes that are over, then the first ones of the next."""
        last = np.stack([infos[index]["terminal_observation"] for index in over])
        chosen = torch.zeros(self.num_envs, dtype=torch.bool)
        chosen[over] = True
        ended, self._memory = self._memory.see_both_ends(
            *(self.perceiver, frames, self._as_frames(last), chosen)
        )
        for index in over:
            terminal = self._layout.single(ended.slots, index)
            infos[index] = {**infos[index], "terminal_observation": terminal}


def _frame_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return (H, W, 3) of the frames, or say which of SB3's wrappers has to move."""
    shape = space.shape or ()
    if len(shape) == 3 and shape[0] == 3 != shape[-1]:
        raise ValueError(
            f"expected RGB frames with the colours last, (H, W, 3), got {shape}; put "
            "VecObjectSlots below VecTransposeImage"
        )
    if len(shape) == 3 and shape[-1] > 3 and shape[-1] % 3 == 0:
        raise ValueError(
            f"expected single RGB frames, (H, W, 3), got {shape}, which looks like a stack; put "
            "VecObjectSlots below VecFrameStack, which then stacks the slots"
        )
    return frame_shape(space)


def _single_spec(venv: VecEnv) -> EnvSpec | None:
    """Return what `gym.make` can make one of the environments from, if they tell."""
    try:
        spec: EnvSpec | None = venv.get_attr("spec", indices=0)[0]
    except AttributeError:
        return None
    except (EOFError, ConnectionError) as problem:  # the process fell over its answer
        raise ValueError(
            "expected environments whose spec can be sent from their processes, got one with "
            "something in it that cannot (a function among the arguments of gym.make or of a "
            "wrapper?); give a ready perceiver, weights=objrl.load(name), and make them anew"
        ) from problem
    if spec is None:
        return None
    # Monitor, which make_vec_env puts around every environment, changes nothing that is seen, and
    # gym.make cannot put it around another.
    others = [wrapper for wrapper in spec.additional_wrappers if wrapper.name != "Monitor"]
    return replace(spec, additional_wrappers=tuple(others))
