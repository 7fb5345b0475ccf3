"""`VectorObjectSlots`: many environments, one forward pass a step.

Letters: N environments, H W pixels, K slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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

    Attributes:
        perceiver: what sees; it lives in this process, also where the environments do not.
        slots: (N, K, ·) `Slots` of the last frames, on the host.

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
        self.slots = Slots.empty(self.num_envs, rows, features)
        self._state = self.perceiver.initial_state(self.num_envs)
        self._begins = np.zeros(self.num_envs, dtype=np.bool_)  # whose next frame is a first one

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
                self._state = self.perceiver.initial_state(self.num_envs)
            self._see(frames, np.ones(self.num_envs, dtype=np.bool_))
            self._begins = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            self._begin(frames, mask)
            self._begins = self._begins & ~mask
        return self._layout.batch(self.slots), infos

    def step(self, actions: Any) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Act everywhere, and see what comes of it."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        frames = as_frames(observations, self._frame_shape)
        over = np.logical_or(terminations, truncations)
        if self._autoreset is AutoresetMode.SAME_STEP and over.any():
            infos = self._see_both_ends(frames, over, infos)
        else:
            self._see(frames, self._begins)
        if self._autoreset is AutoresetMode.NEXT_STEP:
            self._begins = over
        return self._layout.batch(self.slots), rewards, terminations, truncations, infos

    def render(self) -> tuple[RenderFrame, ...] | None:
        """Render the environments; in mode `rgb_array` with the boxes and ids of the slots."""
        frames = self.env.render()
        if frames is None:
            return None
        return tuple(annotate(frame, self.slots[index]) for index, frame in enumerate(frames))

    def _see(self, frames: Tensor, is_first: Mask) -> None:
        """See the next frame of every environment."""
        slots, self._state = self.perceiver.step(frames, self._state, torch.from_numpy(is_first))
        self.slots = slots.to("cpu")

    def _see_both_ends(self, frames: Tensor, over: Mask, infos: dict[str, Any]) -> dict[str, Any]:
        """See the last frames of the episodes that are over, then the first ones of the next."""
        final_frames = np.stack(list(infos["final_obs"][over]))  # of (N,) objects, or ALE's array
        last = frames.clone()
        last[torch.from_numpy(over)] = as_frames(final_frames, self._frame_shape)
        self._see(last, np.zeros_like(over))
        final = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(over):
            final[index] = self._layout.single(self.slots, int(index))
        self._begin(frames, over)
        return {**infos, "final_obs": final, "_final_obs": over.copy()}

    @torch.no_grad()  # not inference_mode: its tensors could not enter a policy that learns
    def _begin(self, frames: Tensor, chosen: Mask) -> None:
        """See the first frame of an episode in some environments; the others stay as they are."""
        host = torch.from_numpy(np.flatnonzero(chosen))
        index = host.to(self.perceiver.device)
        part = _map(lambda field: field[index], self._state)
        is_first = torch.ones(len(host), dtype=torch.bool)
        slots, part = self.perceiver.step(frames[host], part, is_first)
        self._state = _map(lambda whole, new: whole.index_copy(0, index, new), self._state, part)
        self.slots = _map(
            lambda whole, new: whole.index_copy(0, host, new), self.slots, slots.to("cpu")
        )


def _map(change: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply a function to the tensors of one or several states of the same structure.

    A state is a tensor (N, ...), or a dataclass or tuple of states.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return change(*trees)
    if isinstance(first, tuple):
        return tuple(_map(change, *parts) for parts in zip(*trees, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        changed = {name: _map(change, *(getattr(tree, name) for tree in trees)) for name in names}
        return dataclasses.replace(first, **changed)
    raise TypeError(
        "a perceiver's state: expected tensors (B, ...), or dataclasses or tuples of them, got "
        f"{type(first).__name__}"
    )


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
