"""IODINE: refinement, its gradients and its inputs, and what agents get."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from objrl.models.iodine import Explained, Iodine, IodineConfig, iodine_terms
from objrl.models.mixture import Scene
from objrl.nn.distributions import Gaussian
from objrl.perceiver import Perceiver

SMALL = IodineConfig(
    frame_size=(12, 14),
    slots=3,
    refinements=3,
    z_what=4,
    decoder=(8, 8),
    encoder=(8, 8),
    kernel=3,
    hidden=(16,),
    memory=12,
    sigma=0.3,
)


def build(config: IodineConfig = SMALL) -> Iodine:
    torch.manual_seed(0)
    return Iodine(config)


def blocks(count: int) -> Tensor:
    """A red and a green block on black, elsewhere in each image."""
    image = torch.zeros(count, 3, 12, 14)
    for b in range(count):
        image[b, 0, 1 + b % 5 : 6 + b % 5, 1:5] = 1
        image[b, 1, 3:8, 7 + b % 3 : 12 + b % 3] = 1
    return image


def frames(count: int) -> Tensor:
    return (blocks(count) * 255).byte().permute(0, 2, 3, 1).contiguous()


def test_it_guesses_one_time_more_than_it_refines() -> None:
    explained = build()(blocks(2))
    assert len(explained) == 4
    for now in explained:
        torch.testing.assert_close(now.scene.mask.sum(1), torch.ones(2, 1, 12, 14))
    # Nobody has looked yet: every slot of every image is believed to be the prior.
    torch.testing.assert_close(explained[0].kl, torch.zeros(2), atol=1e-5, rtol=0)
    assert (explained[1].kl > 0).all()


@pytest.mark.parametrize("likelihood", ["mixture", "blend"])
@pytest.mark.parametrize("memory", [0, 12])
def test_gradients_reach_every_parameter(
    likelihood: Literal["mixture", "blend"], memory: int
) -> None:
    model = build(replace(SMALL, likelihood=likelihood, memory=memory))
    terms = iodine_terms(model(blocks(2)))
    (terms["nll"] + terms["kl_what"]).mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_what_it_looks_at_are_the_true_slopes() -> None:
    """The slope of what an image costs, by a mean of a posterior, equals a difference's."""
    model = build().eval()
    seen: list[Tensor] = []
    model.refinement.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    image = blocks(1)
    model(image)

    def costs(raw: Tensor) -> float:
        with torch.no_grad():
            now = model.look(replace(model.begin(1), raw=raw), image, 0)
        return float(now.nll + now.kl)

    raw, slopes = model.begin(1).raw.detach().clone(), []
    for slot in range(3):
        for at in range(8):
            step = torch.zeros_like(raw)
            step[0, slot, at] = 1e-2
            slopes.append((costs(raw + step) - costs(raw - step)) / 2e-2)
    expected = torch.nn.functional.layer_norm(torch.tensor(slopes).view(1, 3, 8), (8,))
    torch.testing.assert_close(seen[0], expected, atol=0.05, rtol=0.05)


def test_gradients_do_not_flow_through_the_slopes() -> None:
    """Dropped double derivatives: nothing that refinement looks at with a stop leads anywhere."""
    model = build()
    inputs: list[tuple[Tensor, Tensor]] = []
    model.refinement.register_forward_pre_hook(lambda _, given: inputs.append(given[1:]))
    model(blocks(1))
    assert len(inputs) == 3
    for seen, slope in inputs:
        assert seen.requires_grad  # what is decoded leads on
        assert not slope.requires_grad


def test_the_first_guess_counts_nothing_and_the_last_most() -> None:
    code = Gaussian(torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    scene = Scene(torch.zeros(2, 1, 3, 1, 1), torch.zeros(2, 1, 1, 1, 1), code)
    costs = [torch.full((2,), nats) for nats in (8.0, 1.0, 4.0)]
    told = [Explained(scene, cost, 10 * cost) for cost in costs]
    terms = iodine_terms(told)
    assert terms["nll"].tolist() == pytest.approx([(1 * 1 + 2 * 4) / 3] * 2)
    assert terms["kl_what"].tolist() == pytest.approx([30.0] * 2)


def test_likelihoods_by_hand() -> None:
    """Where both slots paint alike, both are a Gaussian's, summed over channels and pixels."""
    for config in (SMALL, replace(SMALL, likelihood="blend")):
        model = build(replace(config, slots=2)).eval()
        image, guess = blocks(2), model.begin(2)
        same = replace(guess, raw=guess.raw.detach().clone())
        now = model.look(same, image, config.refinements)  # at the mean, so they are alike
        far = (image - now.scene.mean[:, 0]).square().sum((1, 2, 3)) / 0.3**2
        each = 3 * 12 * 14 * (0.5 * math.log(2 * math.pi) + math.log(0.3))
        torch.testing.assert_close(now.nll, 0.5 * far + each)


def test_it_learns_to_refine() -> None:
    model = build(replace(SMALL, likelihood="blend", sigma=0.05))
    image = blocks(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        terms = iodine_terms(model(image))
        optimizer.zero_grad()
        (terms["nll"] + terms["kl_what"]).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    losses = [float((now.nll + now.kl).mean()) for now in model.eval()(image)]
    assert losses[0] - 500 > losses[1] > losses[-1] + 20


# ---- what agents get -------------------------------------------------------------------------


def test_it_is_a_perceiver_that_gives_the_same_for_the_same() -> None:
    model = build().eval()
    assert isinstance(model, Perceiver)
    first = model.encode(frames(2))
    torch.manual_seed(7)
    with torch.inference_mode():
        again = model.encode(frames(2))
    torch.testing.assert_close(first.what, again.what)
    masks = model.segment(frames(2))
    assert masks.shape == (2, 4, 12, 14)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 12, 14))
    assert not first.what.requires_grad
    assert not masks.requires_grad


def test_environments_do_not_see_each_other() -> None:
    model = build().eval()
    state, new = model.initial_state(3), torch.ones(3, dtype=torch.bool)
    alone, one = model.initial_state(1), new[:1]
    for time in range(3):
        seen = frames(9)[3 * time : 3 * time + 3]
        slots, state = model.step(seen, state, new)
        own, alone = model.step(seen[1:2], alone, one)
        for field in ("position", "scale", "what", "presence", "track_id"):
            torch.testing.assert_close(
                getattr(slots, field)[1:2], getattr(own, field), atol=1e-4, rtol=1e-4
            )
        new = torch.zeros(3, dtype=torch.bool)
        one = new[:1]


def test_a_frame_is_refined_from_what_was_believed_of_the_last() -> None:
    model = build().eval()
    seen = frames(1)
    new, old = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    slots, state = model.step(seen, model.initial_state(1), new)
    torch.testing.assert_close(slots.what, model.encode(seen).what)
    later, gone_on = model.step(seen, state, old)
    assert not torch.equal(gone_on.guess.raw, state.guess.raw)
    same = slots.mask & later.mask
    assert torch.equal(slots.track_id[same], later.track_id[same])
    anew, _ = model.step(seen, gone_on, new)
    torch.testing.assert_close(anew.what, slots.what)
    ids = anew.track_id[anew.mask]
    assert (ids > later.track_id.max()).all(), "no id is used twice"


def test_slots_and_refinements_may_be_changed_after_training() -> None:
    model = build()
    other = Iodine(replace(SMALL, slots=5, refinements=6))
    other.load_state_dict(model.state_dict())
    explained = other.eval()(blocks(1))
    assert len(explained) == 7
    assert explained[-1].scene.mask.shape == (1, 5, 1, 12, 14)


def test_sequences_are_held_against_frames_not_seen_yet() -> None:
    """With one frame a guess, a guess depends on the frames before it, and not on its own."""
    model = build().eval()
    one, other = blocks(4)[None], blocks(4)[None].clone()
    other[:, 2:] = 0.5
    a, b = model(one), model(other)
    for number in range(3):
        torch.testing.assert_close(a[number].scene.code.mean, b[number].scene.code.mean)
    assert not torch.equal(a[2].nll, b[2].nll)
    assert not torch.equal(a[3].scene.code.mean, b[3].scene.code.mean)
