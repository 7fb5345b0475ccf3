"""ECON: experts, their competition, layers, and the loss."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from objrl.models import econ_loss
from objrl.models.econ import (
    Econ,
    EconConfig,
    EconOutput,
    Part,
    layered,
    shape_cost,
)
from objrl.models.econ_loss import code_gap, econ_terms, hidden_gap
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.perceiver import FramePerceiver

SMALL = EconConfig(
    frame_size=(16, 20), experts=3, layers=4, attention=(6, 8), blocks=2, features=8, sigma=0.3
)


def build(config: EconConfig = SMALL) -> Econ:
    torch.manual_seed(0)
    return Econ(config)


def image(count: int = 4) -> Tensor:
    """A red and a green block on black, elsewhere in each image."""
    made = torch.zeros(count, 3, 16, 20)
    for b in range(count):
        made[b, 0, 2 + b % 8 : 8 + b % 8, 2:8] = 1
        made[b, 1, 6:12, 10 + b % 4 : 16 + b % 4] = 1
    return made


@pytest.mark.parametrize("training", [True, False])
def test_steps_share_the_image_and_the_last_takes_the_rest(training: bool) -> None:
    out: EconOutput = build().train(training)(image())
    region, scope = out.part.region, out.scope
    torch.testing.assert_close(region.sum(1), torch.ones(4, 1, 16, 20))
    torch.testing.assert_close(region[:, -1], scope[:, -1])
    assert (region <= scope + 1e-6).all()
    torch.testing.assert_close(scope[:, 1], 1 - region[:, 0])
    assert out.winner.shape == (4, 4)


def test_the_cheapest_expert_wins_and_does_what_it_does_alone() -> None:
    model = build().eval()
    with torch.no_grad():
        out: EconOutput = model(image())
        scope = torch.ones(4, 1, 16, 20)
        parts = [expert(image(), scope, False, False) for expert in model.experts]
    price = torch.stack([part.cost[:, 0] + part.cost[:, 2] for part in parts], 1)
    assert torch.equal(out.winner[:, 0], price.argmin(1))
    for b, winner in enumerate(out.winner[:, 0].tolist()):
        torch.testing.assert_close(out.part.mean[b, 0], parts[winner].mean[b])
        torch.testing.assert_close(out.part.cost[b, 0], parts[winner].cost[b])
    by_shape = Econ(replace(SMALL, appearance=0.0)).eval()
    by_shape.load_state_dict(model.state_dict())
    shape_price = torch.stack([part.cost[:, 2] for part in parts], 1)
    assert torch.equal(by_shape(image()).winner[:, 0], shape_price.argmin(1))


def test_what_is_left_may_count() -> None:
    model = build(replace(SMALL, rest=1.0, appearance=0.5)).eval()
    with torch.no_grad():
        parts = [
            expert(image(), torch.ones(4, 1, 16, 20), False, False) for expert in model.experts
        ]
        winner = model(image()).winner[:, 0]
    price = []
    for part in parts:
        left = 1 - part.region
        mean = (left * image()).mean((2, 3)) / left.mean((2, 3))
        far = left * (image() - mean[..., None, None]).square() / (2 * SMALL.sigma**2)
        torch.testing.assert_close(part.cost[:, 3], far.flatten(1).sum(1))
        price.append(0.5 * (part.cost[:, 0] + part.cost[:, 3]) + part.cost[:, 2])
    assert torch.equal(winner, torch.stack(price, 1).argmin(1))


def test_the_order_of_experts_plays_no_part() -> None:
    model, other = build().eval(), build().eval()
    order = [2, 0, 1]
    for here, there in enumerate(order):
        other.experts[here].load_state_dict(model.experts[there].state_dict())
    a, b = model(image()), other(image())
    torch.testing.assert_close(a.part.region, b.part.region)
    assert torch.equal(torch.tensor(order)[b.winner], a.winner)


def test_training_draws_winners_by_their_costs() -> None:
    model = build()
    with torch.no_grad():  # one that paints its shape everywhere is dear
        last = model.known[0].decoder[-1].bias
        assert isinstance(last, Tensor)
        last[3] += 20
    same = image(1).expand(64, -1, -1, -1)
    torch.manual_seed(0)
    assert len(model(same, temperature=1e9).winner[:, 0].unique()) == 3, "all the same to chance"
    cold = model(same, temperature=1e-3).winner[:, 0]
    assert set(cold.tolist()) <= {1, 2}


@pytest.mark.parametrize("training", [True, False])
def test_who_has_an_infinite_handicap_takes_no_part(training: bool) -> None:
    model, inf = build().train(training), torch.inf
    same = image(1).expand(64, -1, -1, -1)
    out = model(same, temperature=1e9, handicap=torch.tensor([inf, 0.0, inf]))
    assert (out.winner == 1).all()


def test_a_handicap_makes_dearer_where_winners_are_drawn() -> None:
    model = build()
    same = image(1).expand(64, -1, -1, -1)
    dear = torch.tensor([1e6, 1e6, 0.0])
    assert (model(same, temperature=10.0, handicap=dear).winner == 2).all()
    best = model.eval()(same).winner
    assert torch.equal(model(same, handicap=dear - dear.min()).winner, best)


@pytest.mark.parametrize("taken", [0.1, 0.9])
def test_attention_begins_with_the_share_that_is_asked_for(taken: float) -> None:
    out = build(replace(SMALL, taken=taken))(image())
    assert abs(out.part.region[:, 0].mean() - taken) < 0.06
    with pytest.raises(ValueError, match=r"taken: expected a share from 0\.01 to 0\.99, got 1"):
        replace(SMALL, taken=1.0)


def test_without_entropy_half_a_pixel_costs_something() -> None:
    q, p = torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.75])
    q, p = q.view(2, 1, 1, 1), p.view(2, 1, 1, 1)
    kl, cross = (shape_cost(q, p, entropy) for entropy in (1.0, 0.0))
    torch.testing.assert_close(kl, torch.tensor([0.0, -math.log(0.75)]), atol=2e-4, rtol=0)
    expected = torch.tensor([math.log(2), -math.log(0.75)])
    torch.testing.assert_close(cross, expected, atol=2e-4, rtol=0)


def test_a_flat_ground_has_the_mean_colour_of_what_is_left() -> None:
    model, seen = build().eval(), image()
    with torch.no_grad():
        out, usual = model(seen, flat=True), model(seen)
    scope = out.scope[:, -1]
    assert torch.equal(out.part.region[:, -1], scope)
    assert torch.equal(out.scope, usual.scope), "the steps before are as ever"
    for b in range(len(seen)):
        colour = [float((scope[b, 0] * seen[b, c]).sum() / scope[b, 0].sum()) for c in range(3)]
        assert out.part.mean[b, -1, :, 3, 4].tolist() == pytest.approx(colour, abs=1e-5)
    far = scope * (seen - out.part.mean[:, -1]).square() / (2 * SMALL.sigma**2)
    torch.testing.assert_close(out.part.cost[:, -1, 0], far.flatten(1).sum(1))
    assert (out.part.cost[:, -1, 1] == 0).all()
    assert (out.winner[:, -1] == 0).all()


def test_only_winners_learn() -> None:
    model = build(replace(SMALL, layers=2))
    out = model(image(1), temperature=1e-3)
    terms = econ_terms(out, 0.3)
    sum(term.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
    won = set(out.winner.flatten().tolist())
    assert len(won) < 3
    for number, expert in enumerate(model.experts):
        for name, parameter in expert.named_parameters():
            if number not in won:
                assert parameter.grad is None, name
            elif not name.startswith("attention"):  # the last step needs none
                assert parameter.grad is not None, name
    first = model.experts[int(out.winner[0, 0])]
    for name, parameter in first.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_terms_by_hand() -> None:
    """One pixel, half of the scope; nothing is asked of a shape where others are before it."""
    model = build(replace(SMALL, experts=1, sigma=0.2)).eval()
    expert = model.known[0]
    scope = torch.zeros(1, 1, 16, 20)
    scope[..., 3, 4] = 0.8
    seen = image(1)
    with torch.no_grad():
        part: Part = expert(seen, scope, False, False)
        region, mean = float(part.region[0, 0, 3, 4]), part.mean[0, :, 3, 4]
        far = float((seen[0, :, 3, 4] - mean).square().sum())
        shape = float(part.shape[0, 0, 3, 4])
    assert part.cost[0, 0].item() == pytest.approx(region * far / (2 * 0.2**2), rel=1e-4)
    p = 0.8 * shape
    kl = region * math.log(region / p) + (1 - region) * math.log((1 - region) / (1 - p))
    assert part.cost[0, 2].item() == pytest.approx(kl, rel=1e-3, abs=1e-6)
    m, s = part.code.mean[0], part.code.std[0]
    kl_z = 0.5 * (s**2 + m**2 - 1 - 2 * s.log()).sum()
    assert part.cost[0, 1].item() == pytest.approx(kl_z.item(), rel=1e-4)


def test_terms_are_sums_over_steps() -> None:
    cost = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]])
    none = torch.zeros(1, 2, 1, 1, 1)
    code = Gaussian(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    mean = torch.zeros(1, 2, 3, 1, 1)
    out = EconOutput(none, torch.zeros(1, 2), Part(none, code, mean, none, cost))
    terms = econ_terms(out, 0.2)
    assert terms["nll"].item() == pytest.approx(11 + 3 * math.log(0.2 * math.sqrt(2 * math.pi)))
    assert (terms["kl_what"].item(), terms["kl_mask"].item()) == (22, 33)


def coded(mean: Tensor, std: Tensor, winner: list[int]) -> EconOutput:
    """(T, L) codes of one image and who won them."""
    none = torch.zeros(1, len(mean), 1, 1, 1)
    part = Part(none, Gaussian(mean[None], std[None]), none, none, torch.zeros(1, len(mean), 4))
    return EconOutput(none, torch.tensor([winner]), part)


def test_the_gap_between_codes_and_prior_by_hand() -> None:
    mean = torch.tensor([[-1.0], [1.0], [3.0], [5.0], [9.0]])
    std = torch.tensor([[0.5], [0.5], [1.0], [1.0], [1.0]])
    # The first has mean 0 and variance 1 + 0.25; the second mean 4 and variance 1 + 1; of the
    # third there is but one code.
    first = 0.5 * (1.25 - 1 - math.log(1.25))
    second = 0.5 * (2 + 16 - 1 - math.log(2))
    gap = code_gap(coded(mean, std, [0, 0, 1, 1, 2]))
    assert gap.item() == pytest.approx(first + second)
    assert code_gap(coded(mean[4:], std[4:], [2])) == 0


def test_codes_on_a_line_are_not_spread_as_the_prior_is() -> None:
    torch.manual_seed(0)
    little = torch.full((500, 2), 0.1)
    spread = code_gap(coded(torch.randn(500, 2), little, [1] * 500))
    line = code_gap(coded(torch.randn(500, 1).expand(500, 2), little, [1] * 500))
    assert spread < 0.05
    assert line > 1


def test_the_gap_teaches_codes_to_spread() -> None:
    torch.manual_seed(0)
    mean = (0.1 * torch.randn(50, 2)).requires_grad_()
    optimizer = torch.optim.Adam([mean], lr=0.1)
    std = torch.full((50, 2), 0.1)
    for _ in range(60):
        gap = code_gap(coded(mean, std, [0] * 50))
        optimizer.zero_grad()
        gap.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert gap < 0.05
    assert 0.8 < mean.std() < 1.2


def test_parts_that_are_hidden_on_purpose_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build().eval(), image(3)
    torch.manual_seed(0)
    other = (torch.arange(3)[:, None] + torch.randint(1, 3, (2, 3, 3))) % 3
    step = torch.randint(0, 3, (2, 3, 3))
    monkeypatch.setattr(econ_loss, "_HIDDEN", 2)

    def chosen(region: Tensor) -> tuple[Tensor, Tensor]:
        assert region.shape == (3, 3, 1, 16, 20)  # the last part neither hides nor is hidden
        return other, step

    monkeypatch.setattr(econ_loss, "_occluders", chosen)
    with torch.no_grad():
        out: EconOutput = model(seen)
        # As if others had won: who guesses is whose part it is.
        out = replace(out, winner=torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 1, 1]]))
        gap, expected = hidden_gap(model, seen, out), 0.0
        for n, b, t in itertools.product(range(2), range(3), range(3)):  # no last part
            image_before, step_before = int(other[n, b, t]), int(step[n, b, t])
            region, before = out.part.region[b, t], out.part.region[image_before, step_before]
            shown = seen[b] * (1 - before) + seen[image_before] * before
            expert = model.known[int(out.winner[b, t])]
            guess = expert.encode(shown[None], (region * (1 - before))[None])
            code = Gaussian(out.part.code.mean[b, t], out.part.code.std[b, t])
            expected += float(gaussian_kl(code, guess.mean[0], guess.std[0]).sum()) / 18
        assert gap.item() == pytest.approx(expected, rel=1e-4)


def test_one_image_has_nothing_to_hide_behind() -> None:
    model, seen = build().eval(), image(1)
    assert hidden_gap(model, seen, model(seen)) == 0


def test_parts_are_hidden_by_what_hides_nearest_to_a_share_that_is_drawn() -> None:
    # Of the first part of the first image the others' parts hide 0, 1/4, 1/2 and all.
    region = torch.zeros(3, 2, 1, 1, 8)
    region[0, 0, ..., :4] = 1
    region[0, 1, ..., 4:] = 1
    region[1, 1, ..., 3:6] = 1
    region[2, 0, ..., 2:] = 1
    region[2, 1, ..., :5] = 1
    torch.manual_seed(0)
    drawn = [econ_loss._occluders(region) for _ in range(300)]
    other, step = (torch.cat(values) for values in zip(*drawn, strict=True))
    assert other.shape == (300 * econ_loss._HIDDEN, 3, 2)
    assert (other != torch.arange(3)[:, None]).all()
    chosen = torch.bincount((2 * other + step)[:, 0, 0], minlength=6) / len(other)
    # Nearest to a share below 1/8, from there to 3/8, to 3/4, and above.
    assert chosen.tolist() == pytest.approx([0, 0, 1 / 8, 1 / 4, 3 / 8, 1 / 4], abs=0.05)


def test_encoders_alone_learn_from_what_is_hidden_on_purpose() -> None:
    model = build().train()
    seen = image()
    hidden_gap(model, seen, model(seen)).backward()  # type: ignore[no-untyped-call]
    learnt = {name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"encoder"}


def test_what_is_in_front_hides_what_is_behind() -> None:
    mean = torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 2)
    shape = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 1.0]]).view(1, 3, 1, 1, 2)
    seen = layered(mean, shape)
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor([1.0, 0.5 * 0.5 + 0.5 * 0.2]))


def test_experts_paint_what_they_are_asked_for() -> None:
    model = build().eval()
    z = torch.randn(2, 2, 2)
    mean, shape = model.paint_parts(torch.tensor([[0, 2], [1, 1]]), z)
    alone = model.known[2].paint(z[:1, 1])
    torch.testing.assert_close(mean[0, 1], alone[0, :3])
    torch.testing.assert_close(shape[0, 1], alone[0, 3:])


def test_an_agent_gets_codes_and_experts() -> None:
    model = build().eval()
    frames = torch.randint(0, 256, (2, 40, 30, 3), dtype=torch.uint8)
    slots = FramePerceiver(model).encode(frames)
    assert slots.what.shape == (2, 4, 2 + 3)
    scene, out = model.explain(image()), model(image())
    torch.testing.assert_close(scene.code.mean[..., :2], out.part.code.mean)
    assert torch.equal(scene.code.mean[..., 2:], torch.eye(3)[out.winner])


def test_it_learns() -> None:
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        terms = econ_terms(model(image(), temperature=30.0), 0.3)
        loss = (terms["nll"] + 0.5 * terms["kl_what"] + terms["kl_mask"]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 200
