"""`ObjectSlots`: a Gymnasium environment whose observations are objects instead of pixels.

Letters: H W pixels, K slots, D features of `what`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import torch
from gymnasium.core import ActType, RenderFrame
from gymnasium.utils import RecordConstructorArgs
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


class ObjectSlots(
    gym.Wrapper[Any, ActType, Any, ActType],
    RecordConstructorArgs,
):
    """Replace RGB frames by the K object slots that a perceiver sees in them.

    The observation is a `Dict` of `Box`, one row per slot; a followed object keeps its row, and
    a row without an object is 0 (its `track_id` -1):

    ========== ============== =================================================================
    position   (K, 2) float32 centre (x, y), each in [-1, 1], x right, y down
    velocity   (K, 2) float32 smoothed displacement a step, in units of position, in [-2, 2]
    scale      (K, 2) float32 (width, height) as a fraction of the frame, in [0, 1]
    depth      (K, 1) float32 larger is nearer
    what       (K, D) float32 appearance
    presence   (K, 1) float32 probability, in [0, 1]
    track_id   (K, 1) int64   identity, kept as long as the object is followed
    ========== ============== =================================================================

    With `flatten` it is one float32 vector: row by row, and within a row the columns of the keys
    in the order of `keys`, by default that of the table without `track_id`;
    `observation.reshape(K, -1)` brings the rows back.

    A reset begins a new episode: nothing is followed across it, and ids go on counting, so that
    none is used twice. A reset with a seed begins everything anew, ids too, so that the same seed
    gives the same observations. The step after the end of an episode, which an environment that
    resets itself answers (`gymnasium.wrappers.Autoreset`), begins a new one as well.

    What is remembered of the past frames can be saved and put back, for a search that tries out
    actions and for checkpoints. The environment's own state, and what other wrappers count, is
    saved by other means; in ALE:

        >>> saved = env.get_state(), env.unwrapped.clone_state(include_rng=True)  # doctest: +SKIP
        >>> env.step(2)                                                           # doctest: +SKIP
        >>> env.set_state(saved[0])                                               # doctest: +SKIP
        >>> env.unwrapped.restore_state(saved[1])                                 # doctest: +SKIP

    `render()` in mode `rgb_array` draws boxes and ids on the frame. There is a vector version,
    `VectorObjectSlots`.

    Attributes:
        perceiver: what sees.

    Example:
        >>> import ale_py, gymnasium as gym, objrl
        >>> gym.register_envs(ale_py)
        >>> env = objrl.ObjectSlots(gym.make("ALE/SpaceInvaders-v5"))  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)                      # doctest: +SKIP
        >>> observation["position"].shape                              # doctest: +SKIP
        (64, 2)
    """

    def __init__(
        self,
        env: gym.Env[Any, ActType],
        weights: str | Path | Perceiver | None = None,
        *,
        max_slots: int | None = None,
        device: str | torch.device = "auto",
        keys: Sequence[str] | None = None,
        flatten: bool = False,
    ) -> None:
        """Wrap an environment that shows RGB frames.

        Args:
            env: observations (H, W, 3) or (1, H, W, 3) uint8, any H and W.
            weights: a name that `objrl.list_weights()` shows, or a path; by default what is
                shipped for the game in the environment's id, and where nothing is, with a
                warning, `objrl.models.median`: a baseline without learning, fitted on a few
                seconds of random play in a second environment made from `env.spec`. A ready
                perceiver is taken as it is, but then `env.spec` cannot be written as JSON.
            max_slots: K; by default what the weights were trained with.
            device: "auto" takes CUDA where there is one.
            keys: the fields of the observation, in order; by default all of them, and with
                `flatten` all but `track_id`: an id grows without end, a network makes nothing of
                its size, and float32 holds none above 2^24 exactly.
            flatten: one vector instead of a dictionary, for policies that take nothing else.

        Raises:
            ValueError: observations that are no RGB frames, an environment without an id or of a
                game without weights that cannot be made again, bad keys, or `max_slots` or
                `device` beside a ready perceiver.
            TypeError: `weights` that are none.
        """
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            **plain_arguments(weights, max_slots, device, keys, flatten),
        )
        gym.Wrapper.__init__(self, env)
        self._frame_shape = frame_shape(env.observation_space)
        self.perceiver = choose_perceiver(
            *(weights, env.spec, self._frame_shape, max_slots, device),
            last_two=shows_last_two(env.spec),
        )
        rows, features = self.perceiver.max_slots, self.perceiver.what_size
        self._layout = make_layout(rows, features, keys, flatten)
        self.observation_space = self._layout.space()
        self._memory = Memory.empty(self.perceiver, 1)

    @property
    def slots(self) -> Slots:
        """(1, K, ·) `Slots` of the last frame, on the host, also the fields left out of `keys`."""
        return self._memory.slots

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, begin the counting of ids as well."""
        frame, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._memory = Memory.empty(self.perceiver, 1)
        return self._see(frame, is_first=True, over=False), info

    def step(
        self, action: ActType
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act, and see what comes of it."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        begins = bool(self._memory.begins)
        observation = self._see(frame, is_first=begins, over=terminated or truncated)
        return observation, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Tensor]:
        """Return a copy of what is remembered of the past: named tensors, (1, ...) each.

        It is the perceiver's state, the last slots, and whether the next frame begins an episode;
        later steps do not change it. `torch.save` writes it, `torch.load` reads it. The same rows
        of `VectorObjectSlots.get_state()` have the same names.
        """
        return save(self._memory)

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `get_state` returned, also in counting ids; it may be used again.

        Raises:
            ValueError: a state of several environments, or of another perceiver.
        """
        self._memory = restore(state, self._memory)

    def render(self) -> RenderFrame | list[RenderFrame] | None:
        """Render the environment; in mode `rgb_array` with the boxes and ids of the slots."""
        frame: RenderFrame | list[RenderFrame] | None = annotate(self.env.render(), self.slots)
        return frame

    def _see(self, frame: Array, is_first: bool, over: bool) -> Observation:
        """See the next frame, after which the episode is over or not."""
        frames = as_frames(frame, self._frame_shape)
        seen = self._memory.see(self.perceiver, frames, torch.tensor([is_first]))
        self._memory = replace(seen, begins=torch.tensor([bool(over)]))
        return self._layout.single(self.slots, 0)


def plain_arguments(
    weights: str | Path | Perceiver | None,
    max_slots: int | None,
    device: str | torch.device,
    keys: Sequence[str] | None,
    flatten: bool,
) -> dict[str, Any]:
    """Return a wrapper's arguments as `env.spec` keeps them: JSON-plain, but for a perceiver."""
    return {
        "weights": str(weights) if isinstance(weights, Path) else weights,
        "max_slots": max_slots,
        "device": str(device),
        "keys": None if keys is None else list(keys),
        "flatten": flatten,
    }
