"""SCALOR as a world model: futures of what was seen, and sequences from nothing.

Everything is drawn as eq. 3 has it, and no image is looked at: who is followed from the prior's
RNN, who is new from the fixed prior (with the rejection still on), the background from its
transition. An object keeps its row and its id, whether it is seen or imagined:

    seen = watch(model, images, model.initial_state(len(images)))
    future = imagine(model, seen.state, 10, background=seen.background, seed=0)
    story = dream(model, batch=4, frames=10, seed=0)

Letters: B environments, T frames, K rows, N cells, H W canvas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from objrl.models.boxes import repeated
from objrl.models.scalor import Scalor
from objrl.models.scalor_latents import Objects
from objrl.models.scalor_networks import Backdrop
from objrl.models.scalor_parts import draw, mask_of
from objrl.models.scalor_state import Fate, ScalorState, Seats, seat
from objrl.models.space_background import Static
from objrl.nn.distributions import take
from objrl.slots import Slots


@dataclass(frozen=True)
class Footage:
    """T frames of B environments as a model draws them, inferred or imagined.

    Attributes:
        images: (B, T, 3, H, W) float32 in [0, 1].
        slots: T of B environments; objects that are out of sight are not in them.
        state: after the last frame, to go on from.
        background: (B, 3, H, W) float32 of the last frame.
    """

    images: Tensor
    slots: tuple[Slots, ...]
    state: ScalorState
    background: Tensor


@torch.no_grad()
def watch(model: Scalor, images: Tensor, state: ScalorState) -> Footage:
    """See images as an agent does, and bring along what it takes to imagine how they go on.

    Args:
        model: in evaluation mode.
        images: (B, T, 3, H, W) float32 in [0, 1], H W the canvas.
        state: of the frame before the first; `model.initial_state(B)` where it begins an episode.
    """
    drawn: list[Tensor] = []
    slots: list[Slots] = []
    background = torch.zeros_like(images[:, 0])
    for image in images.unbind(1):
        frame, state = model.see(image, state, sample=False)
        assert frame.background is not None
        background = frame.background
        drawn.append(frame.reconstruction.clamp(0, 1))
        slots.append(model.slots(state, frame.differs))
    return Footage(torch.stack(drawn, dim=1), tuple(slots), state, background)


def imagine(
    model: Scalor,
    state: ScalorState,
    frames: int,
    *,
    background: Tensor | None = None,
    births: float = 0.0,
    sample: bool = True,
    seed: int | None = None,
) -> Footage:
    """Draw a future of what was seen.

    One may go on imagining from the result: 5 frames and 5 more are the 10 that would have been,
    where both draw from torch's own generator. The tracker's RNN and the map's memory stay as
    they were at the last frame that was seen.

    Args:
        model: in evaluation mode.
        state: after `watch`, or after frames of `Scalor.see`. That of `Scalor.step` will not do:
            an agent needs no prior, and so its RNN is not brought along there.
        frames: T.
        background: (B, 3, H, W) in [0, 1], what a known background looked like last; it has no
            transition, and stays. None: its usual picture. Models with another one need none.
        births: probability of a new object, each cell and frame. The paper's futures have none.
        sample: draw what becomes of objects and background, or take the likeliest. Births are
            drawn in either case.
        seed: of the draws. None goes on with torch's own generator.

    Raises:
        ValueError: frames below 1, births outside of [0, 1], or a state after `Scalor.step`.
    """
    _check(frames, births)
    if (state.fresh & state.alive.any(1)).any():
        raise ValueError(
            "state: expected one after `watch` or `Scalor.see`, got one after `Scalor.step`, which "
            "leaves the prior behind; watch the last frames, and imagine from there"
        )
    with torch.no_grad(), _seeded(seed):
        if background is None:
            background = _known(model, len(state))
        return _roll(model, state, background, [births] * frames, sample)


def dream(
    model: Scalor,
    batch: int,
    frames: int,
    *,
    first: float = 0.2,
    births: float = 0.0,
    seed: int | None = None,
) -> Footage:
    """Draw sequences from nothing: the paper's second generation (section 5.1, Experiment 3).

    Args:
        model: in evaluation mode.
        batch: B.
        frames: T.
        first: probability of an object in each cell of the first frame.
        births: the same of the frames after it.
        seed: of the draws. None goes on with torch's own generator.

    Raises:
        ValueError: frames below 1, or first or births outside of [0, 1].
    """
    _check(frames, births, first)
    with torch.no_grad(), _seeded(seed):
        known = model.background
        # A residual has no transition; one is drawn for all frames.
        background = (
            known.generate(batch).image.clamp(0, 1)
            if isinstance(known, Static)
            else _known(model, batch)
        )
        chances = [first] + [births] * (frames - 1)
        return _roll(model, model.initial_state(batch), background, chances, sample=True)


def _check(frames: int, *chances: float) -> None:
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    for chance in chances:
        if not 0 <= chance <= 1:
            raise ValueError(f"births: expected a probability in [0, 1], got {chance}")


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed within, and leave torch's own generators as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _known(model: Scalor, batch: int) -> Tensor:
    """Return a background (B, 3, H, W) that nothing was seen of: the usual one, or black."""
    if isinstance(model.background, Static):
        return model.background.usual.expand(batch, -1, -1, -1)
    return torch.zeros(batch, 3, *model.config.frame_size, device=model.device)


def _roll(
    model: Scalor, state: ScalorState, background: Tensor, births: Sequence[float], sample: bool
) -> Footage:
    images: list[Tensor] = []
    slots: list[Slots] = []
    for chance in births:
        if isinstance(model.background, Backdrop):
            ahead, h = model.background.foresee(state.z_bg, state.prior_bg, state.fresh)
            z_bg = draw(ahead, sample)
            background = model.background.decode(z_bg)
            state = replace(state, z_bg=z_bg, prior_bg=h)
        objects, state = _move(model, state, chance, sample)
        state = replace(state, fresh=torch.zeros_like(state.fresh))
        layers = model.draw(objects)
        image = (layers.mean + (1 - layers.alpha) * background).clamp(0, 1)
        images.append(image)
        slots.append(model.slots(state, model.differs(image)))
    return Footage(torch.stack(images, dim=1), tuple(slots), state, background)


def _move(
    model: Scalor, state: ScalorState, births: float, sample: bool
) -> tuple[Objects, ScalorState]:
    """Imagine the objects of the next frame, row by row, and the state after it."""
    prior, prior_state = model.propagation.foresee(state)
    chance = torch.sigmoid(prior.logit)
    z_pres = torch.bernoulli(chance) if sample else chance
    bias, z_what = draw(prior.where, sample), draw(prior.what, sample)
    appearance, mask = model.glimpses.decode(z_what)
    old = Objects(
        z_pres=z_pres * state.alive[..., None],
        z_where=model.propagation.moved(bias, state.z_where),
        bias=bias,
        z_depth=draw(prior.depth, sample),
        z_what=z_what,
        appearance=appearance,
        mask=mask,
    )
    # Who is drawn absent counts as not seen: the model's own rule says for how long one may be.
    fate = model.judge(old, z_pres[..., 0] < model.config.death, state)
    old = replace(old, z_pres=old.z_pres * fate.stays[..., None])
    held = model.held(old, fate, state)
    new, seats = held, seat(torch.zeros_like(fate.stays), old.z_pres[..., 0], fate.stays)
    if births > 0:
        new, seats = _born(model, held, fate, births)
    after = model.remember(held, new, seats, fate, state)
    after = after.with_minds(state.tracker, prior_state, seats)
    names = [field.name for field in fields(Objects)]
    rows = {name: seats.take(getattr(new, name), getattr(old, name)) for name in names}
    return Objects(**rows), after


def _born(model: Scalor, old: Objects, fate: Fate, births: float) -> tuple[Objects, Seats]:
    """Propose an object in every cell with a probability, and seat those that are accepted."""
    config, stays = model.config, fate.stays
    shape = (len(stays), config.cells)

    def noise(size: int) -> Tensor:
        return torch.randn(*shape, size, device=stays.device)

    lot = torch.rand(*shape, 1, device=stays.device)
    bias, z_depth, z_what = noise(4), noise(1), noise(config.z_what)
    z_where = model.discovery.placed(bias)
    appearance, mask = model.glimpses.decode(z_what)
    rejected = model.discovery.rejects(
        mask,
        z_where,
        mask_of(old, fate.covering(old.z_pres), config.masks),
        old.z_where * stays[..., None],
    )
    wanted = (lot < births) & ~rejected[..., None]
    if config.distinct < 1:
        # By lot, or the upper left of the canvas would be filled first.
        order = lot[..., 0].argsort(dim=1)
        again = repeated(take(z_where, order), take(wanted.float(), order), config.distinct)
        wanted = wanted & ~take(again, order.argsort(dim=1))
    new = Objects(wanted.float(), z_where, bias, z_depth, z_what, appearance, mask)
    return new, seat(wanted[..., 0], -lot[..., 0], stays)
