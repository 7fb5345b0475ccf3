"""From slots to one vector: feature extractors of Stable-Baselines3 for what `ObjectSlots` shows.

    PPO("MultiInputPolicy", envs, policy_kwargs={"features_extractor_class": SlotExtractor})

`SlotExtractor` (attention), `DeepSetsExtractor` (sums) and `RelationalExtractor` (pairs) take the
rows as a set: neither their order matters nor how many are empty. `FlatExtractor` tells rows apart
by their number.

All take the keys of `ObjectSlots` that there are, `presence` always, also stacked by VecFrameStack,
which puts a row's frames beside each other, the newest last. What a row shows in a frame without
an object there is not looked at, whatever it is. `presence` weighs a row and is one of its inputs;
VecNormalize must leave it alone (`norm_obs_keys`). `track_id` is not looked at: it is a name, and
of two names the larger means nothing; who is followed keeps a row and has a velocity, which are.

Letters: B batch, K rows, n stacked frames (1 where not stacked), F inputs of a row, D features,
W width of what is made of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from objrl.wrappers.spaces import KEYS

__all__ = ["DeepSetsExtractor", "FlatExtractor", "RelationalExtractor", "SlotExtractor"]

_SIZES = {"position": 2, "velocity": 2, "scale": 2, "depth": 1, "presence": 1}
"""Numbers of a row in one frame; `what` has as many as the perceiver gives it."""
_USUAL = {"velocity": 0.05, "scale": 0.1, "depth": 1.0, "what": 1.0}
"""A usual value of what is mostly small or has no bounds; the others lie in [-1, 1]."""
_APART = ("position", "velocity", "scale")
"""Of which fields it matters by how much two rows differ."""
_CROWD = 16
"""Objects of a busy frame; sums over rows are divided by it."""
_WAVES = 4
"""Octaves of the waves that tell where a row is in the newest frame (Tancik et al. 2020, arXiv
2006.10739)."""


@dataclass(frozen=True)
class _Rows:
    """Slots as networks want them.

    Attributes:
        newest: by key (B, K, ·) of the newest frame, about as large as 1; 0 without an object.
        inputs: (B, K, F) everything of all frames, likewise, and waves of the newest position.
        weight: (B, K) presence in the frame where it is highest; a row of weight 0 does not count.
    """

    newest: dict[str, Tensor]
    inputs: Tensor
    weight: Tensor


class _Extractor(BaseFeaturesExtractor):
    """Checks that observations are slots, and reads them.

    Attributes:
        keys: those that are looked at.
        rows: K.
        frames: n.
        row_inputs: F.
    """

    def __init__(self, observation_space: gym.Space[Any], sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        shapes = _shapes(observation_space)
        super().__init__(observation_space, sizes["features_dim"])
        self.keys, (self.rows, self.frames) = tuple(shapes), shapes["presence"]
        self.row_inputs = sum(width for _, width in shapes.values())
        self.row_inputs += 4 * _WAVES if "position" in shapes else 0

    def pack(self, observations: dict[str, Tensor], most: int | None = None) -> dict[str, Tensor]:
        """Leave out rows that are empty everywhere, and all but the `most` likeliest ones.

        Empty rows change nothing but the time it takes, and mostly there are many. Not in compiled
        code: how many there are is not known before.
        """
        presence = observations["presence"].amax(-1)
        count = min(self.rows, most or self.rows)
        if not torch.compiler.is_compiling():
            count = min(count, max(1, int((presence > 0).sum(1).max())))
        if count == self.rows:
            return observations
        chosen = presence.topk(count, dim=1).indices[..., None]
        return {
            key: observations[key].gather(1, chosen.expand(-1, -1, observations[key].shape[-1]))
            for key in self.keys
        }

    def read(self, observations: dict[str, Tensor]) -> _Rows:
        """Leave out what shows no object, and bring the rest to a size of about 1."""
        presence = observations["presence"]
        there = presence > 0
        fields = {}
        for key in self.keys:
            field = observations[key]
            field = field.reshape(*field.shape[:2], self.frames, -1)
            # Chosen, not multiplied: NaN times 0 is NaN.
            fields[key] = _usual(key, torch.where(there[..., None], field, 0))
        newest = {key: field[:, :, -1] for key, field in fields.items()}
        inputs = [field.flatten(2) for field in fields.values()]
        if "position" in newest:
            inputs.append(_waves(newest["position"]) * there[..., -1:])
        return _Rows(newest, torch.cat(inputs, dim=-1), presence.clamp(min=0).amax(-1))


class SlotExtractor(_Extractor):
    """Rows look at each other by attention, and learned questions look at the rows.

    The likelier a row holds an object, the more it is looked at. One row more, the same in every
    frame, is always there: it is what an empty frame consists of, and as the others share attention
    with it, how many there are can be told.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        features_dim: int = 128,
        *,
        width: int = 64,
        heads: int = 4,
        blocks: int = 1,
        questions: int = 4,
    ) -> None:
        """Make it for the slots of one environment.

        Args:
            observation_space: Dict of `ObjectSlots`, stacked or not.
            features_dim: D.
            width: W, a multiple of `heads`.
            heads: of attention.
            blocks: how many times rows look at each other.
            questions: how many summaries are drawn from the rows.

        Raises:
            ValueError: another space, or a size that cannot be.
        """
        sizes = {"features_dim": features_dim, "width": width, "heads": heads}
        super().__init__(observation_space, {**sizes, "blocks": blocks, "questions": questions})
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads={heads}, got {width}")
        self.embed = _embedding(self.row_inputs, width)
        self.always = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.questions = nn.Parameter(torch.randn(1, questions, width))
        self.answers = _Attention(width, heads)
        self.out = nn.Sequential(nn.Linear((questions + 1) * width, features_dim), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, K, ·) by key -> (B, D)."""
        rows = self.read(self.pack(observations))
        batch = len(rows.weight)
        tokens = torch.cat([self.always.expand(batch, -1, -1), self.embed(rows.inputs)], dim=1)
        # exp(score + log(weight)) = weight * exp(score). The logarithm of 0 is put in afterwards,
        # for its gradient is not a number.
        there = rows.weight > 0
        logs = torch.where(there, rows.weight, 1).log().masked_fill(~there, -torch.inf)
        bias = F.pad(logs, (1, 0))[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, bias)
        tokens = self.norm(tokens)
        answers = self.answers(self.questions.expand(batch, -1, -1), tokens, bias)
        most = (tokens[:, 1:].relu() * rows.weight[..., None]).amax(1)
        features: Tensor = self.out(torch.cat([answers.flatten(1), most], dim=1))
        return features


class DeepSetsExtractor(_Extractor):
    """Every row by itself through a small network; mean, sum and maximum of what comes out."""

    def __init__(
        self, observation_space: gym.Space[Any], features_dim: int = 128, *, width: int = 64
    ) -> None:
        """Make it for the slots of one environment.

        Args:
            observation_space: Dict of `ObjectSlots`, stacked or not.
            features_dim: D.
            width: W.

        Raises:
            ValueError: another space, or a size that cannot be.
        """
        super().__init__(observation_space, {"features_dim": features_dim, "width": width})
        self.embed = nn.Sequential(_embedding(self.row_inputs, width), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(3 * width, features_dim), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, K, ·) by key -> (B, D)."""
        rows = self.read(self.pack(observations))
        found = self.embed(rows.inputs)
        features: Tensor = self.out(_summary(found, rows.weight))
        return features


class RelationalExtractor(_Extractor):
    """A relation network: how every row stands to every other in the newest frame.

    A pair is described by both rows, and by how far apart they are, in x, y and as the crow flies,
    and how velocities and sizes differ; the mean over a row's pairs is what it knows of the others.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        features_dim: int = 128,
        *,
        width: int = 64,
        pair_width: int = 32,
        most: int = 64,
    ) -> None:
        """Make it for the slots of one environment.

        Args:
            observation_space: Dict of `ObjectSlots`, stacked or not.
            features_dim: D.
            width: W.
            pair_width: width of what is made of a pair.
            most: how many rows are looked at, those of the highest presence: pairs are many. Where
                more objects are equally likely, their rows' order tells which are left out.

        Raises:
            ValueError: another space, or a size that cannot be.
        """
        sizes = {"features_dim": features_dim, "width": width, "pair_width": pair_width}
        super().__init__(observation_space, {**sizes, "most": most})
        self.most = most
        self.embed = nn.Sequential(_embedding(self.row_inputs, width), nn.ReLU())
        self.one = nn.Linear(width, pair_width)
        self.other = nn.Linear(width, pair_width, bias=False)
        apart = sum(_SIZES[key] for key in self.keys if key in _APART) + ("position" in self.keys)
        self.apart = nn.Linear(apart, pair_width, bias=False) if apart else None
        self.update = nn.Sequential(nn.Linear(width + pair_width, width), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(3 * width, features_dim), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, K, ·) by key -> (B, D)."""
        rows = self.read(self.pack(observations, self.most))
        found = self.embed(rows.inputs)
        pairs = self.one(found)[:, :, None] + self.other(found)[:, None]
        if self.apart is not None:
            pairs = pairs + self.apart(_apart(rows.newest))
        others, _ = _mean(pairs.relu(), rows.newest["presence"].mT)
        found = self.update(torch.cat([found, others], dim=-1))
        features: Tensor = self.out(_summary(found, rows.weight))
        return features


class FlatExtractor(_Extractor):
    """All rows beside each other through a small network; not permutation-invariant.

    For rows that keep their object: an object that comes back in another row is another to it.
    """

    def __init__(
        self, observation_space: gym.Space[Any], features_dim: int = 128, *, width: int = 256
    ) -> None:
        """Make it for the slots of one environment.

        Args:
            observation_space: Dict of `ObjectSlots`, stacked or not.
            features_dim: D.
            width: of the hidden layer.

        Raises:
            ValueError: another space, or a size that cannot be.
        """
        super().__init__(observation_space, {"features_dim": features_dim, "width": width})
        self.out = nn.Sequential(
            *(nn.Linear(self.rows * self.row_inputs, width), nn.ReLU()),
            *(nn.Linear(width, features_dim), nn.ReLU()),
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, K, ·) by key -> (B, D)."""
        features: Tensor = self.out(self.read(observations).inputs.flatten(1))
        return features


class _Attention(nn.Module):
    """Multi-head attention with a bias on who is looked at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, asking: Tensor, asked: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, W) look at (B, K, W), with (B, 1, 1, K) added to the scores -> (B, Q, W)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(asking), *self.key_value(asked).chunk(2, dim=-1))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        answers: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return answers


class _Block(nn.Module):
    """Pre-norm: rows look at each other, then think by themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.think = nn.Sequential(
            *(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU()),
            nn.Linear(2 * width, width),
        )

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        calm = self.norm(tokens)
        tokens = tokens + self.attention(calm, calm, bias)
        thought: Tensor = tokens + self.think(tokens)
        return thought


def _embedding(inputs: int, width: int) -> nn.Sequential:
    """(…, F) -> (…, W)."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
    )


def _waves(position: Tensor) -> Tensor:
    """(…, 2) in [-1, 1] -> (…, 4 * _WAVES): sines and cosines, the longest as long as the frame."""
    octaves = torch.pi * 2 ** torch.arange(_WAVES, dtype=position.dtype, device=position.device)
    angles = (position[..., None] * octaves).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _usual(key: str, field: Tensor) -> Tensor:
    """Bring a field to a size of about 1: linear up to what is usual, logarithmic beyond."""
    return torch.asinh(field / _USUAL[key]) if key in _USUAL else field


def _apart(newest: dict[str, Tensor]) -> Tensor:
    """(B, K, ·) by key -> (B, K, K, ·) how rows differ."""
    parts = [newest[key][:, :, None] - newest[key][:, None] for key in _APART if key in newest]
    if "position" in newest:
        parts.append(torch.linalg.vector_norm(parts[0], dim=-1, keepdim=True))
    return torch.cat(parts, dim=-1)


def _mean(found: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(…, K, W) by (…, K) -> (…, W) weighted mean and sum over rows; 0 of none."""
    total = (weight[..., None, :] @ found)[..., 0, :]
    return total / weight.sum(-1, keepdim=True).clamp(min=1), total


def _summary(found: Tensor, weight: Tensor) -> Tensor:
    """(B, K, W) not negative, by (B, K) -> (B, 3 W) mean, sum and maximum over rows; 0 of none."""
    mean, total = _mean(found, weight)
    most = (found * weight[..., None]).amax(1)
    return torch.cat([mean, total / _CROWD, most], dim=1)


def _shapes(space: gym.Space[Any]) -> dict[str, tuple[int, ...]]:
    """Return (K, n * size) of the keys that are looked at, in the order of `KEYS`.

    Raises:
        ValueError: no space of slots; it says what to change.
    """
    if isinstance(space, Box):
        raise ValueError(
            "observation_space: expected the Dict of slots that ObjectSlots shows, got one Box "
            f"{space.shape}; leave flatten out of ObjectSlots and take 'MultiInputPolicy' (a flat "
            "vector needs no extractor of ours: 'MlpPolicy' takes it as it is)"
        )
    found = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {}
    if "presence" not in found or not set(found) <= set(KEYS):
        raise ValueError(
            f"observation_space: expected a Dict of keys of ObjectSlots, {KEYS}, presence among "
            f"them, got {tuple(found) or space}; in ObjectSlots(keys=...) name presence too"
        )
    shapes = {key: found[key].shape or () for key in KEYS if key in found and key != "track_id"}
    first = shapes["presence"]
    for key, shape in shapes.items():
        if not _fits(shape, first, _SIZES.get(key)):
            raise ValueError(
                f"observation_space: expected {key} of shape (K, n * {_SIZES.get(key, 'D')}) for n "
                f"frames, got {shape}, where presence has {first}; to stack frames put "
                "VecFrameStack above the slots"
            )
    return shapes


def _fits(shape: tuple[int, ...], presence: tuple[int, ...], size: int | None) -> bool:
    """Say whether a field has as many rows and frames as presence has, `size` numbers in each."""
    if len(shape) != 2 or len(presence) != 2 or shape[0] != presence[0]:
        return False
    each, left = divmod(shape[1], presence[1])
    return left == 0 and each == (size or each)
