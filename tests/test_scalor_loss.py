"""SCALOR's objective, and what its teacher shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_latents import Look
from objrl.models.scalor_loss import ScalorPriors, Shown, elbo_terms, look_loss, pupils, taught
from tests.helpers import BACKGROUNDS, SMALL_SCALOR, make_scalor


class TestLoss:
    def unrolled(
        self, config: ScalorConfig = SMALL_SCALOR
    ) -> tuple[Scalor, list[dict[str, Tensor]]]:
        model = make_scalor(config, bias=1.0).train()
        images = torch.rand(2, 4, 3, *config.frame_size)
        # Less than half differs from a known background, which is black here.
        images = images * (torch.rand(2, 4, 1, *config.frame_size) < 0.4)
        first = torch.zeros(2, 4, dtype=torch.bool)
        seen, _ = model.unroll(images, first, model.initial_state(2))
        priors = ScalorPriors(presence=0.1, sigma=0.1)
        return model, [elbo_terms(f, images[:, t], priors) for t, f in enumerate(seen)]

    @pytest.mark.parametrize(
        "config",
        [
            *(replace(SMALL_SCALOR, background=kind) for kind in BACKGROUNDS),
            ScalorConfig(z_what=8, max_slots=4, background="decoder"),
        ],
        ids=[*BACKGROUNDS, "the authors' layers"],
    )
    def test_gradients_reach_every_parameter(self, config: ScalorConfig) -> None:
        model, terms = self.unrolled(config)
        total: Any = torch.stack([term.sum() for frame in terms for term in frame.values()]).sum()
        total.backward()
        missing = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.any()
        ]
        if config.background == "static":
            # The residual's last layer begins at zero, and lets nothing through yet.
            missing = [name for name in missing if not name.startswith("background.")]
        assert missing == []

    def test_no_divergence_is_negative_and_a_first_frame_propagates_nothing(self) -> None:
        _, terms = self.unrolled()
        for frame in terms:
            assert all((v >= -1e-4).all() for name, v in frame.items() if name.startswith("kl_"))
        for name in ("pres", "where", "depth", "what"):
            assert (terms[0][f"kl_prop_{name}"] == 0).all()
            assert (terms[2][f"kl_prop_{name}"] > 0).any()

    def test_a_teacher_is_followed(self) -> None:
        """A piece is to be proposed, and who follows it is to be where it is shown to be."""
        model = make_scalor(replace(SMALL_SCALOR, max_slots=4), bias=2.0)
        image, state = torch.rand(1, 3, 32, 40), model.initial_state(1)
        where = torch.tensor([[[0.3, 0.3, 0.0, 0.0], [0.2, 0.2, 0.5, 0.5]]])
        with torch.no_grad():
            frame, state = model.see(image, state, sample=False)
        rows = frame.discovered.index.gather(1, frame.seats.source.clamp(min=0))
        assert frame.seats.born[0, 1]
        cell = int(rows[0, 1])
        shown = Shown(
            track=torch.tensor([[7, -1]]),
            z_where=where,
            cell=torch.tensor([[cell, -1]]),
            weight=torch.ones(1, SMALL_SCALOR.cells, 1),
        )
        pupil = torch.full((1, 4), -1)
        with torch.no_grad():
            pupil, after = pupils(frame, shown, pupil)
            terms = taught(frame, shown, pupil)
            assert terms["taught_prop_pres"] == 0
            assert terms["taught_disc_where"] > 0
            assert after.tolist() == [[-1, 7, -1, -1]]
            more = taught(frame, replace(shown, weight=3 * shown.weight), pupil)
            asked = F.softplus(-frame.discovered.logit[0, cell, 0])  # its own does not count more
            rest = terms["taught_disc_pres"] - asked
            torch.testing.assert_close(more["taught_disc_pres"], 3 * rest + asked)
            pupil = torch.tensor([[7, -1, -1, -1]])
            frame, state = model.see(image, state, sample=False)
            terms = taught(frame, shown, pupil)
            assert terms["taught_disc_where"] > 0
            assert terms["taught_prop_where"] > 0
            gone = replace(shown, track=torch.tensor([[-1, -1]]))
            absent = taught(frame, gone, pupil)
            assert absent["taught_prop_where"] == absent["taught_disc_where"] == 0
            assert absent["taught_prop_pres"] > terms["taught_prop_pres"]

    def test_what_is_taught_reaches_the_search(self) -> None:
        model = make_scalor(replace(SMALL_SCALOR, max_slots=4), bias=2.0)
        image = torch.rand(1, 3, 32, 40)
        with torch.no_grad():
            _, state = model.see(image, model.initial_state(1), sample=False)
        frame, _ = model.see(image, state, sample=False)
        shown = Shown(
            track=torch.tensor([[7]]),
            z_where=state.z_where[:, :1] + 0.05,
            cell=torch.tensor([[9]]),
            weight=torch.ones(1, SMALL_SCALOR.cells, 1),
        )
        terms = taught(frame, shown, torch.tensor([[7, -1, -1, -1]]))
        expected = sum(
            look_loss(look, shown.z_where[:, :1].expand(-1, 4, -1))[0, 0] for look in frame.looks
        )
        torch.testing.assert_close(terms["taught_prop_look"][0], expected)
        terms["taught_prop_look"].sum().backward()  # type: ignore[no-untyped-call]
        for window in (model.propagation.search.far, model.propagation.search.near):  # type: ignore[union-attr]
            for parameter in (window.usual, window.score.weight, window.wanted.weight):
                assert parameter.grad is not None
                assert parameter.grad.any()

    def test_who_is_on_a_piece_follows_it_and_who_is_on_none_is_to_be_absent(self) -> None:
        model = make_scalor(replace(SMALL_SCALOR, max_slots=4), bias=2.0)
        image = torch.rand(1, 3, 32, 40)
        with torch.no_grad():
            _, state = model.see(image, model.initial_state(1), sample=False)
            frame, _ = model.see(image, state, sample=False)
            where = torch.full((1, 4, 4), 0.2)
            where[0, :, 2:] = torch.tensor([[-0.8, -0.8], [0, 0.8], [0.4, 0.4], [0.42, 0.4]])
            frame = replace(frame, propagated=replace(frame.propagated, z_where=where))
            shown = Shown(
                track=torch.tensor([[7, 8]]),
                z_where=torch.stack([where[0, 2], where[0, 3] + 5])[None],
                cell=torch.tensor([[9, 10]]),
                weight=torch.ones(1, SMALL_SCALOR.cells, 1),
            )
            nobody = torch.full((1, 4), -1)
            now, on_it = pupils(frame, shown, nobody)
            terms = taught(frame, shown, now)
            taken = pupils(frame, shown, torch.tensor([[7, -1, -1, -1]]))[1]
        assert frame.followed.all()
        # Two rows on one piece are taught the same; the first has lost it.
        assert on_it.tolist() == taken.tolist() == [[-1, -1, 7, 7]]
        wrong = torch.where(on_it[..., None] < 0, 1.0, -1.0)  # present or absent, which is wrong
        expected = F.softplus(wrong * frame.posterior.logit).sum()
        torch.testing.assert_close(terms["taught_prop_pres"][0], expected)


class TestLooks:
    """A window of 8 x 8 cells around (0.2, 0.1), 0.4 wide and 0.8 high."""

    def look(self, logits: Tensor) -> Look:
        return Look(torch.tensor([[[0.2, 0.1]]]), torch.tensor([[[0.2, 0.4]]]), logits)

    def test_the_place_is_the_mean_of_what_looks_like_it(self) -> None:
        logits = torch.full((1, 1, 8, 8), -100.0)
        torch.testing.assert_close(self.look(logits).place, torch.tensor([[[0.2, 0.1]]]))
        logits[0, 0, 1, 6] = logits[0, 0, 1, 7] = 0  # second row; between the last two columns
        torch.testing.assert_close(self.look(logits).place, torch.tensor([[[0.35, -0.15]]]))

    @pytest.mark.parametrize("goal", [(0.2, 0.1), (0.31, -0.2), (0.05, 0.47), (0.395, 0.49)])
    def test_who_learns_from_it_finds_the_goal(self, goal: tuple[float, float]) -> None:
        logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
        box = torch.tensor([[[0.1, 0.1, *goal]]])
        optimizer = torch.optim.Adam([logits], lr=0.3)
        for _ in range(200):
            optimizer.zero_grad()
            look_loss(self.look(logits), box).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        # Beyond the middle of the outermost cell there is nothing to take a mean of.
        expected = torch.tensor([[goal]]).clamp(
            torch.tensor([0.025, -0.25]), torch.tensor([0.375, 0.45])
        )
        torch.testing.assert_close(self.look(logits.detach()).place, expected, atol=5e-3, rtol=0)

    def test_what_is_out_of_sight_is_not_taught(self) -> None:
        box = torch.tensor([[[0.1, 0.1, 0.2, 0.6]]])
        assert look_loss(self.look(torch.rand(1, 1, 8, 8)), box) == 0
