"""`VectorObjectSlots`: many environments, one forward pass a step.

Letters: N environments, H W pixels, K slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.core import RenderFrame
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from objrl.perceiver import Perceiver
from objrl.slots import Slots
from objrl.wrappers.choose import ENTRY_POINT, choose_perceiver, shows_last_two
from objrl.wrappers.memory import Memory, restore, save
from objrl.wrappers.object_slots import plain_arguments
from objrl.wrappers.spaces import (
    Array,
    Observation,
    annotate,
    as_frames,
    frame_shape,
    make_layout,
)

Mask = npt.NDArray[np.bool_]


class VectorObjectSlots(VectorWrapper, RecordConstructorArgs):
    """`ObjectSlots` for Gymnasium's vector environments, and the same in every environment.

    All autoreset modes are understood; whatever the mode, no object is followed from one episode
    into the next. With `SAME_STEP` the last frames of finished episodes are seen as well:
    `infos["final_obs"]` is an array (N,) of observations, None for episodes that go on, and
    `infos["_final_obs"]` (N,) bool tells which (ALE's own arrays are brought into this form).

    What is remembered of the past frames can be saved and put back (`get_state`, `set_state`), for
    a search that tries out actions and for checkpoints. The environments' own state, and which of
    them they will reset next, is saved by other means.

    Attributes:
        perceiver: what sees; it lives in this process, also where the environments do not.

    Example:
        >>> import gymnasium as gym, objrl
        >>> envs = gym.make_vec(                                        # doctest: +SKIP
        ...     "ALE/SpaceInvaders-v5", 8, grayscale=False, stack_num=1,
        ...     img_height=210, img_width=160, maxpool=False,
        ... )
        >>> observations, infos = objrl.VectorObjectSlots(envs).reset()  # doctest: +SKIP
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        weights: str | Path | Perceiver | None = None,
        *,
        max_slots: int | None = None,
        device: str | torch.device = "auto",
        keys: Sequence[str] | None = None,
        flatten: bool = False,
    ) -> None:
        """Wrap a vector environment that shows RGB frames; see `ObjectSlots` for the arguments.

        Where no weights are shipped, the baseline is fitted on one environment alone: resized like
        these, but without what a vector wrapper in between does to colours.

        Raises:
            ValueError: as `ObjectSlots`; or an environment that does not tell its autoreset mode,
                or that answers for fewer environments than it has (ALE's `batch_size`).
        """
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            **plain_arguments(weights, max_slots, device, keys, flatten),
        )
        VectorWrapper.__init__(self, env)
        self._frame_shape = frame_shape(env.single_observation_space)
        self._autoreset = _autoreset_mode(env)
        spec = _single_spec(env)
        # ALE's own vector environments are told at once what to do to frames, others one by one.
        own = env.spec is not None and env.spec.kwargs.get("vectorization_mode") == ENTRY_POINT
        self.perceiver = choose_perceiver(
            *(weights, spec, self._frame_shape, max_slots, device),
            last_two=shows_last_two(env.spec if own else spec),
        )
        rows, features = self.perceiver.max_slots, self.perceiver.what_size
        self._layout = make_layout(rows, features, keys, flatten)
        self.single_observation_space = self._layout.space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._memory = Memory.empty(self.perceiver, self.num_envs)

    @property
    def slots(self) -> Slots:
        """(N, K, ·) `Slots` of the last frames, on the host, also the fields left out of `keys`."""
        return self._memory.slots

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin new episodes, in all environments or in those of `options["reset_mask"]`.

        Environments that are not reset keep their slots. A reset of all with a seed begins the
        counting of ids as well.
        """
        # Read first: SyncVectorEnv takes the mask out of the dictionary.
        mask = (options or {}).get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)
        frames = as_frames(observations, self._frame_shape)
        if mask is None:
            if seed is not None:
                self._memory = Memory.empty(self.perceiver, self.num_envs)
            mask = np.ones(self.num_envs, dtype=np.bool_)
            self._see(frames, torch.from_numpy(mask))
        else:
            self._memory = self._memory.begin(self.perceiver, frames, torch.from_numpy(mask))
        self._expect(self._memory.begins.numpy() & ~mask)
        return self._layout.batch(self.slots), infos

    def step(self, actions: Any) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Act everywhere, and see what comes of it."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        frames = as_frames(observations, self._frame_shape)
        over = np.logical_or(terminations, truncations)
        if self._autoreset is AutoresetMode.SAME_STEP and over.any():
            infos = self._see_both_ends(frames, over, infos)
        else:
            self._see(frames, self._memory.begins)
        if self._autoreset is AutoresetMode.NEXT_STEP:
            self._expect(over)
        return self._layout.batch(self.slots), rewards, terminations, truncations, infos

    def get_state(self) -> dict[str, Tensor]:
        """Return a copy of what is remembered of the past: named tensors, (N, ...) each.

        It is the perceiver's state, the last slots, and whose next frame begins an episode; later
        steps do not change it. `torch.save` writes it, `torch.load` reads it. One environment's
        rows, `{name: tensor[i : i + 1] for name, tensor in state.items()}`, are a state for
        `ObjectSlots`.
        """
        return save(self._memory)

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `get_state` returned, also in counting ids; it may be used again.

        Raises:
            ValueError: a state of another number of environments, or of another perceiver.
        """
        self._memory = restore(state, self._memory)

    def render(self) -> tuple[RenderFrame, ...] | None:
        """Render the environments; in mode `rgb_array` with the boxes and ids of the slots."""
        frames = self.env.render()
        if frames is None:
            return None
        return tuple(annotate(frame, self.slots[index]) for index, frame in enumerate(frames))

    def _see(self, frames: Tensor, is_first: Tensor) -> None:
        """See the next frame of every environment."""
        self._memory = self._memory.see(self.perceiver, frames, is_first)

    def _expect(self, begins: Mask) -> None:
        """Note whose next frame is the first of an episode."""
        self._memory = dataclasses.replace(self._memory, begins=torch.from_numpy(begins))

    def _see_both_ends(self, frames: Tensor, over: Mask, infos: dict[str, Any]) -> dict[str, Any]:
        """See the last frames of the episodes that are over, then the first ones of the next."""
        last = np.stack(list(infos["final_obs"][over]))  # of (N,) objects, or ALE's array
        ended, self._memory = self._memory.see_both_ends(
            *(self.perceiver, frames, as_frames(last, self._frame_shape), torch.from_numpy(over))
        )
        final = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(over):
            final[index] = self._layout.single(ended.slots, int(index))
        return {**infos, "final_obs": final, "_final_obs": over.copy()}


def _autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """Return how the environments begin new episodes."""
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            "expected a vector environment whose metadata['autoreset_mode'] is an AutoresetMode, "
            f"got {mode!r}; without it the ends of episodes cannot be told"
        )
    answered = (env.observation_space.shape or ())[:1]
    if answered != (env.num_envs,):
        raise ValueError(
            f"expected an answer from all {env.num_envs} environments in every step, got "
            f"{answered}; leave out batch_size"
        )
    return mode


def _single_spec(env: VectorEnv[Any, Any, Any]) -> EnvSpec | None:
    """Return what `gym.make` can make one of the environments from, if they tell."""
    several = env.unwrapped
    if isinstance(several, gym.vector.SyncVectorEnv):
        return several.envs[0].spec
    if isinstance(several, gym.vector.AsyncVectorEnv):
        # One more is made here, as AsyncVectorEnv itself does to learn the spaces: a spec with
        # functions in it cannot be sent by those that live elsewhere.
        with several.env_fns[0]() as one:
            return one.spec
    if env.spec is None or env.spec.id not in gym.registry:
        return env.spec
    # Beside the game's own arguments stand those of all together and of what they do to frames.
    known = gym.spec(env.spec.id).kwargs
    kwargs = {name: value for name, value in env.spec.kwargs.items() if name in known}
    return dataclasses.replace(env.spec, kwargs=kwargs)
