"""What the wrappers take and what they give: spaces, and the way from one to the other.

In go single RGB frames, out come slots as arrays; both wrappers share this, so that an agent
sees the same thing from one environment and from many.

Letters: B environments, H W pixels, K slots, D features of `what`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box
from torch import Tensor

from objrl import draw
from objrl.slots import NO_TRACK, Slots

Array = npt.NDArray[Any]
Observation = dict[str, Array] | Array
"""Arrays by key, or one flat array."""

KEYS = ("position", "velocity", "scale", "depth", "what", "presence", "track_id")
"""Every field of `Slots` that an observation may hold."""

_BOUNDS: dict[str, tuple[float, float]] = {
    "position": (-1, 1),
    "velocity": (-2, 2),  # in a step a centre goes at most from one edge to the other
    "scale": (0, 1),
    "depth": (-np.inf, np.inf),
    "what": (-np.inf, np.inf),
    "presence": (0, 1),
}
# One below the largest int64: Box.sample() adds one to the upper bound, which must not overflow.
_LAST_ID = np.iinfo(np.int64).max - 1


@dataclass(frozen=True)
class SlotLayout:
    """How slots become an observation.

    Attributes:
        rows: K.
        what_size: D.
        keys: the fields that are wanted, in order.
        flatten: one vector instead of a dictionary: row by row, and within a row the keys in
            their order, so that column `row * width + offset` belongs to `row`.
    """

    rows: int
    what_size: int
    keys: tuple[str, ...]
    flatten: bool

    def __post_init__(self) -> None:
        known = set(self.keys) <= set(KEYS)
        if not self.keys or not known or len(set(self.keys)) < len(self.keys):
            raise ValueError(f"keys: expected some of {KEYS}, each at most once, got {self.keys}")

    def space(self) -> gym.Space[Any]:
        """Return the space of one environment: Dict of Box (K, ·), or Box (K * width,)."""
        boxes: dict[str, gym.Space[Any]] = {key: self._box(key) for key in self.keys}
        if not self.flatten:
            return gym.spaces.Dict(boxes)
        low, high = (
            np.concatenate([getattr(box, side) for box in boxes.values()], axis=1, dtype=np.float32)
            for side in ("low", "high")
        )
        return Box(low.ravel(), high.ravel(), dtype=np.float32)

    def _box(self, key: str) -> Box:
        if key == "track_id":
            return Box(NO_TRACK, _LAST_ID, (self.rows, 1), np.int64)
        low, high = _BOUNDS[key]
        width = {"position": 2, "velocity": 2, "scale": 2, "what": self.what_size}.get(key, 1)
        return Box(low, high, (self.rows, width), np.float32)

    def batch(self, slots: Slots) -> Observation:
        """Return the observation of B environments; it shares no memory with the slots."""
        fields = {key: getattr(slots, key).numpy() for key in self.keys}
        if not self.flatten:
            return {key: field.copy() for key, field in fields.items()}
        flat = np.concatenate(list(fields.values()), axis=-1, dtype=np.float32)
        return flat.reshape(len(flat), -1)

    def single(self, slots: Slots, index: int) -> Observation:
        """Return the observation of one environment out of B."""
        batch = self.batch(slots[index])
        return (
            {key: field[0] for key, field in batch.items()} if isinstance(batch, dict) else batch[0]
        )


def make_layout(rows: int, what_size: int, keys: Sequence[str] | None, flatten: bool) -> SlotLayout:
    """Return the layout that a caller of a wrapper asks for; see `ObjectSlots` for `keys`."""
    if keys is None:
        keys = [key for key in KEYS if not (flatten and key == "track_id")]
    if isinstance(keys, str):
        raise ValueError(f"keys: expected a sequence of names, got {keys!r}; write ({keys!r},)")
    return SlotLayout(rows, what_size, tuple(keys), flatten)


def frame_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return (H, W, 3) of the frames of an environment that shows one RGB frame at a time.

    Args:
        space: of one environment: (H, W, 3) uint8, or (1, H, W, 3), a stack of one.

    Raises:
        ValueError: anything else; it says what to change.
    """
    shape = space.shape or ()
    one = len(shape) == 3 or (len(shape) == 4 and shape[0] == 1)
    if isinstance(space, Box) and space.dtype == np.uint8 and one and shape[-1] == 3:
        return shape[-3:]
    raise ValueError(
        "expected observations that are single RGB frames, Box(0, 255, (H, W, 3), uint8), "
        f"got {space}; {_advice(space, shape)}"
    )


def _advice(space: gym.Space[Any], shape: tuple[int, ...]) -> str:
    """Say what to change about an observation that is no RGB frame."""
    colour = (
        "for frames in colour use obs_type='rgb', AtariPreprocessing(grayscale_obs=False), or in "
        "gym.make_vec grayscale=False, stack_num=1"
    )
    single = "for several frames stack the slots: FrameStackObservation goes above the slots"
    if not isinstance(space, Box) or len(shape) not in (1, 2, 3, 4):
        return "wrap the environment that shows frames, below wrappers that change what it shows"
    if len(shape) == 1:
        return "numbers are no picture: make the environment with obs_type='rgb'"
    if space.dtype != np.uint8:
        return "leave frames as they are, 0 to 255: AtariPreprocessing(scale_obs=False)"
    if len(shape) == 4 and shape[-1] == 3:
        return f"show one frame at a time (in gym.make_vec stack_num=1); {single}"
    if len(shape) == 3 and shape[0] == 3:
        return "put the colours last: (H, W, 3)"
    if len(shape) == 2 or shape[-1] == 1:
        return f"it looks grayscale: {colour}"
    return f"it looks like a grayscale stack: {colour}; {single}"


def as_frames(observations: Array, shape: tuple[int, ...]) -> Tensor:
    """Return (B, H, W, 3) uint8 frames of one or B observations, without a copy where possible."""
    frames = np.require(observations, requirements=["C", "W"])  # what torch.from_numpy can share
    return torch.from_numpy(frames.reshape(-1, *shape))


def annotate(frame: Any, slots: Slots) -> Any:
    """Draw the boxes and ids of one environment's slots on what it rendered.

    Args:
        frame: (H, W, 3) uint8 of any size; anything else (no frame, text) is returned as it is.
        slots: (1, K, ·) on the host.
    """
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        return frame
    boxes = slots.boxes(*frame.shape[:2])[0]
    presence, track_id = slots.presence[0, :, 0], slots.track_id[0, :, 0]
    return draw.draw_slots(frame, boxes.numpy(), presence.numpy(), track_id.numpy())
