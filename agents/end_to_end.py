"""The encoder inside the policy: pixels in the buffer, and what is rewarded teaches to see.

    PPO(
        "CnnPolicy", envs,   # that show single RGB frames: no ObjectSlots around them
        policy_kwargs={
            "features_extractor_class": EncoderExtractor,
            "features_extractor_kwargs": {"weights": "space-pong"},
            "normalize_images": False,
            "optimizer_class": EncoderAdam,
            "optimizer_kwargs": {"encoder_rate": 0.1},
        },
    )

By default the policy's loss alone goes on teaching pretrained weights (finetune); with `own_loss`
the encoder's own is minimised with it (joint). Slots from a frozen encoder in the buffer
(`ObjectSlots`, freeze) cost a small part of either and know more: objects are followed and so have
velocities, boxes are tight, and none is shown twice. None of that has a gradient worth having, and
a buffer's frames come shuffled, without a past. What the policy gets here are SPACE's latents as
they are, of the K likeliest cells: centre and size of z_where, depth, the mean of z_what, and for
z_pres its probability, by which rows are weighed, not chosen: none is cut off at a threshold, for
what is cut off could not be learnt. Which cells are the likeliest has no gradient.

A frame does not tell how things move. Where that matters take a policy with a memory, such as
sb3-contrib's RecurrentPPO, or freeze.

Letters: B batch, K rows, H W pixels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from objrl.agents.extractors import FlatExtractor, SlotExtractor
from objrl.frames import to_image
from objrl.models.space import Space
from objrl.models.space_loss import Priors, elbo_terms
from objrl.perceiver import FramePerceiver
from objrl.schedule import Linear
from objrl.weights import load, read_header
from objrl.wrappers.spaces import make_layout

__all__ = ["EncoderAdam", "EncoderExtractor"]

_KEYS = ("position", "scale", "depth", "what", "presence")
_MARK = "objrl_encoder"
"""Attribute of parameters by which `EncoderAdam` tells the encoder's from the others."""


class EncoderExtractor(BaseFeaturesExtractor):
    """Frames -> a pretrained SPACE -> slots -> another extractor, with the gradient on throughout.

    A policy that was saved with it needs the weights file again on loading, for the encoder's
    shape alone: what it has learnt is in the policy.

    Attributes:
        encoder: what sees.
        head: what makes features of slots.
        trainable: whether the encoder learns.
        own_loss: the weight of its own loss.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        weights: str | Path,
        *,
        head: type[BaseFeaturesExtractor] = SlotExtractor,
        head_kwargs: Mapping[str, Any] | None = None,
        max_slots: int | None = None,
        trainable: bool = True,
        own_loss: float = 0.0,
    ) -> None:
        """Load the encoder, and put the head on it.

        Args:
            observation_space: one RGB frame, (3, H, W) or (H, W, 3) uint8, any H and W.
            weights: a SPACE: a name that `objrl.list_weights()` shows, or the path of a file.
            head: extractor for the Dict of slots; its D is the features' number.
            head_kwargs: what it takes beside the space.
            max_slots: K; by default what the weights were trained with.
            trainable: False keeps the encoder as it is, for a comparison.
            own_loss: weight of the negative ELBO (eq. 6 of SPACE, by the priors that the weights'
                training ended with, in nats per value of a pixel) that is added to the policy's
                loss in every training step. Where the gradient is clipped, both are together.

        Raises:
            ValueError: observations that are no single RGB frames, weights that are unknown or no
                SPACE's, a head for rows that keep their object, an `own_loss` that is negative, of
                an encoder that does not learn, or with weights that do not tell their priors.
            FileNotFoundError: no such file.
        """
        _check_space(observation_space)
        encoder = _load(weights, max_slots)
        if issubclass(head, FlatExtractor):
            raise ValueError(
                "head: expected an extractor for sets, got FlatExtractor; without a past a row's "
                "object is another in every frame: take SlotExtractor"
            )
        if own_loss < 0 or (own_loss and not trainable):
            raise ValueError(
                "own_loss: expected 0, or above it of an encoder that learns, got "
                f"{own_loss} with trainable={trainable}"
            )
        layout = make_layout(encoder.max_slots, encoder.what_size, _KEYS, flatten=False)
        made = head(layout.space(), **(head_kwargs or {}))
        super().__init__(observation_space, made.features_dim)
        self.encoder, self.head = encoder, made
        self.trainable, self.own_loss = trainable, own_loss
        self._ending = _ending(weights) if own_loss else None
        self._seen_colour = False
        for parameter in encoder.parameters():
            parameter.requires_grad_(trainable)
            setattr(parameter, _MARK, True)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, 3, H, W) or (B, H, W, 3) pixels from 0 to 255, uint8 or float32 -> (B, D).

        Raises:
            ValueError: pixels that were normalised.
        """
        frames = self._frames(observations)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            seen = self.encoder.perceive(frames)
        slots = {
            "position": seen.z_where[..., 2:],
            "scale": seen.z_where[..., :2],
            "depth": seen.z_depth,
            "what": seen.z_what,
            "presence": seen.presence,
        }
        features: Tensor = self.head(slots)
        if self.own_loss and self.training and torch.is_grad_enabled():
            loss = self.own_loss * self.encoder_loss(frames)
            features = _WithLoss.apply(features, loss)  # type: ignore[no-untyped-call]
        return features

    def encoder_loss(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> () the negative ELBO, in nats per value of a pixel."""
        if self._ending is None:
            raise ValueError("encoder_loss: expected an extractor made with own_loss above 0")
        priors, temperature = self._ending
        image = to_image(frames, *self.encoder.config.frame_size)
        terms = elbo_terms(self.encoder(image, temperature), image, priors)
        return torch.stack(list(terms.values())).sum() / image.numel()

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Apply to the head alone: PPO's `ortho_init` would undo all that the encoder knows."""
        self.head.apply(fn)
        return self

    def _frames(self, observations: Tensor) -> Tensor:
        """Return (B, H, W, 3) uint8 frames of what a policy hands over."""
        if not self._seen_colour:
            self._check_pixels(observations)
        frames = observations.to(torch.uint8)
        assert self._observation_space.shape is not None
        if self._observation_space.shape[-1] != 3:
            frames = frames.permute(0, 2, 3, 1)
        return frames

    def _check_pixels(self, pixels: Tensor) -> None:
        """Raise where pixels were normalised, until some have shown that they are not.

        A frame of black and white alone tells nothing.
        """
        if pixels.is_floating_point() and bool((pixels != pixels.round()).any()):
            raise ValueError(
                "observations: expected pixels from 0 to 255 as they are, got fractions up to "
                f"{float(pixels.max()):.3g}; give the policy normalize_images=False "
                "(policy_kwargs), and leave out VecNormalize"
            )
        self._seen_colour = bool((pixels > 1).any())


class EncoderAdam(torch.optim.Adam):
    """Adam that lets the encoder of an `EncoderExtractor` learn at a rate of its own.

    A smaller gradient would not do: Adam divides by its size. A learning rate in a parameter group
    would not, either: Stable-Baselines3 writes its schedule's into all groups before every update.
    So each group has a factor here, by which its rate is multiplied during a step.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        encoder_rate: float = 0.1,
        eps: float = 1e-5,
        **options: Any,
    ) -> None:
        """Tell the encoder's parameters from the others.

        Args:
            params: of a policy.
            lr: of the others; Stable-Baselines3 gives it.
            encoder_rate: what the encoder's is of that.
            eps: as Stable-Baselines3 has it for its own Adam.
            **options: what else `torch.optim.Adam` takes.

        Raises:
            ValueError: a policy without an encoder, or a rate that is not above 0.
        """
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for parameter in params:
            groups[getattr(parameter, _MARK, False)].append(parameter)
        if not groups[True]:
            raise ValueError(
                "EncoderAdam: expected a policy with an encoder inside, got one without; take "
                "features_extractor_class=EncoderExtractor, or torch.optim.Adam"
            )
        if not encoder_rate > 0:
            raise ValueError(
                f"encoder_rate: expected above 0, got {encoder_rate}; trainable=False of the "
                "EncoderExtractor keeps an encoder as it is"
            )
        parts = [
            {"params": groups[False], "factor": 1.0},
            {"params": groups[True], "factor": encoder_rate},
        ]
        super().__init__(parts, lr=lr, eps=eps, **options)

    def step(self, closure: Any = None) -> Any:
        """Do what Adam does, each group at its own rate."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["factor"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class _WithLoss(torch.autograd.Function):
    """Features as they are; whoever goes back through them goes back through a loss, too.

    Stable-Baselines3 has no place for a second loss, and so it needs none.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, loss: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones(())


def _load(weights: str | Path, max_slots: int | None) -> Space:
    perceiver = load(weights, device="cpu", max_slots=max_slots)  # the policy moves it
    if not isinstance(perceiver, FramePerceiver):
        raise ValueError(
            f"weights: expected a SPACE's, got '{weights}', a {type(perceiver).__name__}, which "
            "remembers earlier frames: those in a buffer are drawn without their past, so it could "
            "only be taught to see badly; take its slots, ObjectSlots(env, weights)"
        )
    model = perceiver.detector
    if not isinstance(model, Space):
        raise ValueError(
            f"weights: expected a SPACE's, got '{weights}', a {type(model).__name__}, in which "
            "there is nothing that a gradient could teach; take its slots, ObjectSlots(env, "
            "weights)"
        )
    return model


def _ending(weights: str | Path) -> tuple[Priors, float]:
    """Return the priors and the temperature that the weights' training ended with."""
    recipe = read_header(weights)["training"].get("recipe")
    if recipe is None:
        raise ValueError(
            f"own_loss: expected weights that tell their priors, got '{weights}', whose header has "
            "no training recipe; take weights that `objrl pretrain` wrote"
        )

    def last(schedule: Mapping[str, float]) -> float:
        return Linear(**schedule)(math.inf)

    width, height = map(last, recipe["scale_mean"])
    same = {key: recipe[key] for key in ("scale_std", "sigma_fg", "sigma_bg", "mixture", "gate")}
    priors = Priors(presence=last(recipe["presence"]), scale_mean=(width, height), **same)
    return priors, last(recipe["temperature"])


def _check_space(space: gym.Space[Any]) -> None:
    """Raise where observations are no single RGB frames; say what to change."""
    shape = space.shape or ()
    image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(shape) == 3
    channels = min(shape[0], shape[-1]) if image else 0
    if channels == 3:
        return
    if isinstance(space, gym.spaces.Dict):
        advice = "leave out ObjectSlots: the encoder is inside the policy"
    elif channels > 3 and channels % 3 == 0:
        advice = (
            "leave out VecFrameStack: frames are seen one by one, and what moved between them "
            "would not be known; a policy with a memory or ObjectSlots knows"
        )
    else:
        advice = "show frames in colour, 0 to 255, and leave out wrappers that change them"
    raise ValueError(
        "observation_space: expected single RGB frames, Box(0, 255, (3, H, W) or (H, W, 3), "
        f"uint8), got {space}; {advice}"
    )
