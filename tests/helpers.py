"""A detector without learning and an environment without a game, small and deterministic.

`make_stub_perceiver()` sees bright blobs; `MovingSquares-v0` shows some. With them, what stands
around a model (wrappers, agents, collecting) is tested in milliseconds and without weights.
`make_scalor()` has a memory of its own, and weights that have learnt nothing.

Letters: B batch, K slots, D features of `what`, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_state import ScalorState
from objrl.perceiver import Decomposition, FramePerceiver
from objrl.slots import NO_TRACK, Slots
from objrl.weights import registry

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlobConfig:
    max_slots: int = 6
    what_size: int = 4
    threshold: int = 100
    """Pixels whose brightest channel is above it belong to a blob."""


class BlobDetector(nn.Module):
    """Connected bright pixels are objects: exact boxes, `what` is the mean colour, cyclically."""

    def __init__(self, config: BlobConfig | None = None) -> None:
        super().__init__()
        self.config = config or BlobConfig()
        self.max_slots = self.config.max_slots
        self.what_size = self.config.what_size
        self.calls: list[int] = []
        """Batch size of every forward pass so far."""

    def detect(self, frames: Tensor) -> Slots:
        self.calls.append(len(frames))
        found = [self._blobs(frame)[0] for frame in frames.cpu().numpy()]
        columns = (torch.from_numpy(np.stack(column)) for column in zip(*found, strict=True))
        position, scale, depth, what, presence = columns
        ids = torch.full((len(frames), self.max_slots, 1), NO_TRACK, dtype=torch.int64)
        slots = Slots(
            position=position,
            velocity=torch.zeros_like(position),
            scale=scale,
            depth=depth,
            what=what,
            presence=presence,
            track_id=ids,
        )
        return slots.to(frames.device)

    def segment(self, frames: Tensor) -> Tensor:
        masks = np.stack([self._blobs(frame)[1] for frame in frames.cpu().numpy()])
        return torch.from_numpy(masks).to(frames.device)

    def decompose(self, frames: Tensor) -> Decomposition:
        image = to_image(frames, *frames.shape[1:3])
        alpha = 1 - self.segment(frames)[:, -1:]
        return Decomposition(image, image, image * alpha, image * (1 - alpha), alpha)

    def _blobs(self, frame: Frame) -> tuple[list[npt.NDArray[np.float32]], Any]:
        """Return position, scale, depth, what, presence (K, ·), and masks (K+1, H, W)."""
        height, width = frame.shape[:2]
        bright = (frame.max(axis=-1) > self.config.threshold).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
        largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[: self.max_slots]
        fields = [np.zeros((self.max_slots, n), np.float32) for n in (2, 2, 1, self.what_size, 1)]
        masks = np.zeros((self.max_slots + 1, height, width), np.float32)
        for row, label in enumerate(largest):
            left, top, w, h = stats[label, :4]
            colour = frame[labels == label].mean(axis=0) / 255
            fields[0][row] = (2 * left + w) / width - 1, (2 * top + h) / height - 1
            fields[1][row] = w / width, h / height
            fields[2][row] = top / height
            fields[3][row] = np.resize(colour, self.what_size)
            fields[4][row] = 1
            masks[row] = labels == label
        masks[-1] = 1 - masks[:-1].sum(axis=0)
        return fields, masks


def make_stub_perceiver(
    max_slots: int = 6, what_size: int = 4, threshold: int = 100
) -> FramePerceiver:
    return FramePerceiver(BlobDetector(BlobConfig(max_slots, what_size, threshold)))


SMALL_SCALOR = ScalorConfig(
    frame_size=(32, 40),
    architecture="fast",
    z_what=4,
    max_slots=6,
    window=24,
    mask_stride=4,
    anchor=None,
    distinct=0.6,
)


BACKGROUNDS: tuple[Literal["none", "decoder", "static"], ...] = ("none", "decoder", "static")


def make_scalor(config: ScalorConfig = SMALL_SCALOR, bias: float = 0.3, seed: int = 0) -> Scalor:
    """Make one of random weights; the higher the bias, the likelier are proposals.

    With 0.3 it finds something in any image, and follows it whatever comes.
    """
    torch.manual_seed(seed)
    model = Scalor(config).eval()
    assert model.discovery.heads.bias is not None
    with torch.no_grad():
        model.discovery.heads.bias[0] = bias
    return model


def bit_equal(a: ScalorState, b: ScalorState) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


class MovingSquares(gym.Env[Frame, np.int64]):
    """Bright squares on black: one is steered left or right, the others fall at their own pace.

    Everything follows from the seed; an episode ends after 3 to 8 steps, every other one by
    truncation. The reward is 1 a step, `info` tells the step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, size: int = 32, squares: int = 3, render_mode: str | None = None) -> None:
        self.size, self.squares, self.render_mode = size, squares, render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        low, high = (0, 0), (self.size - 4, self.size // 2)
        self._corners = self.np_random.integers(low, high, (self.squares, 2))
        self._paces = self.np_random.integers(1, 3, self.squares)
        self._length = int(self.np_random.integers(3, 9))
        self._steps = 0
        return self._frame(), {"steps": 0}

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._corners[0, 0] = np.clip(self._corners[0, 0] + 2 * (action - 1), 0, self.size - 4)
        self._corners[1:, 1] = np.minimum(self._corners[1:, 1] + self._paces[1:], self.size - 4)
        over, by_time = self._steps >= self._length, self._length % 2 == 0
        return self._frame(), 1.0, over and not by_time, over and by_time, {"steps": self._steps}

    def render(self) -> Frame | None:
        if self.render_mode is None:
            return None
        return np.repeat(np.repeat(self._frame(), 2, axis=0), 2, axis=1)  # not the frame's size

    def _frame(self) -> Frame:
        frame = np.zeros((self.size, self.size, 3), np.uint8)
        for number, (x, y) in enumerate(self._corners):
            frame[y : y + 4, x : x + 4] = 255, 80 * number, 255 - 80 * number
        return frame


MOVING_SQUARES = "MovingSquares-v0"
gym.register(MOVING_SQUARES, entry_point="tests.helpers:MovingSquares")


def ship_stubs(patch: pytest.MonkeyPatch, **data: Any) -> list[str]:
    """Let weights of Pong and of the squares be all that is shipped; return who gets loaded.

    Args:
        patch: to undo it.
        data: what their headers say of their frames.
    """
    entries = [
        registry.Weights(
            name=name, file="", sha256="", model="", env_ids=(env_id,), title="", metrics={}
        )
        for name, env_id in [("pong", "ALE/Pong-v5"), ("squares", MOVING_SQUARES)]
    ]
    loaded: list[str] = []

    def load(name: str, **_: Any) -> FramePerceiver:
        loaded.append(name)
        return make_stub_perceiver()

    patch.setattr(registry, "list_weights", lambda: entries)
    patch.setattr(registry, "load", load)
    patch.setattr(registry, "read_header", lambda _: {"data": data})
    return loaded


STILL_PONG = "objrl-test/StillPong-v0"
"""Pong whose course follows from the seed and the actions alone: no sticky ones."""
gym.register(
    STILL_PONG,
    entry_point="ale_py.env:AtariEnv",
    kwargs={
        **{"game": "pong", "repeat_action_probability": 0.0, "frameskip": 4},
        **{"full_action_space": False, "max_num_frames_per_episode": 108_000},
    },
)


def firsts(batch: int, *which: int) -> Tensor:
    first = torch.zeros(batch, dtype=torch.bool)
    first[list(which)] = True
    return first


def sure(model: Scalor) -> None:
    """Follow as a trained model does: nothing moves, and all is sure."""
    with torch.no_grad():
        for head in (model.propagation.where, model.propagation.pres):
            for parameter in head[-1].parameters():
                parameter.zero_()


def noise(count: int, batch: int, size: tuple[int, int] = (32, 40), seed: int = 0) -> Tensor:
    """(T, B, H, W, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, batch, *size, 3), dtype=torch.uint8, generator=generator)
