"""Who gets a row, who counts as seen and who is followed no longer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from objrl.models import scalor
from objrl.models.boxes import doubled
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_parts import mask_of
from objrl.models.scalor_state import Fate, ScalorState, seat
from objrl.slots import NO_TRACK
from tests.helpers import SMALL_SCALOR, firsts, make_scalor, noise, sure


class TestSeats:
    def test_the_likeliest_get_the_free_rows(self) -> None:
        new = torch.tensor([[True, True, False, True]])
        score = torch.tensor([[0.8, 0.9, 1.0, 0.95]])
        taken = torch.tensor([[True, False, True, False]])
        seats = seat(new, score, taken)
        assert seats.source.tolist() == [[-1, 3, -1, 1]]
        assert seats.number[0, [1, 3]].tolist() == [0, 1]
        assert seats.overflow.tolist() == [1]
        rows = seats.take(torch.arange(4.0)[None, :, None], torch.full((1, 4, 1), 9.0))
        assert rows[0, :, 0].tolist() == [9, 3, 9, 1]

    def test_fewer_proposals_than_rows(self) -> None:
        seats = seat(torch.tensor([[True]]), torch.ones(1, 1), torch.zeros(1, 3, dtype=torch.bool))
        assert seats.source.tolist() == [[0, -1, -1]]
        assert seats.born.tolist() == [[True, False, False]]


class TestVelocity:
    """Of four rows: newborn, followed, unseen for two frames, and newborn but unseen once."""

    def remembered(self, missed_now: list[int]) -> ScalorState:
        """Move all rows by 0.12 to the right."""
        model = make_scalor(replace(SMALL_SCALOR, max_slots=4))
        state = replace(
            model.initial_state(1),
            track_id=torch.arange(4)[None],
            velocity=torch.tensor([0.0, 0.2, 0.3, 0.0])[None, :, None].expand(1, 4, 2),
            newborn=torch.tensor([[True, False, False, True]]),
            missed=torch.tensor([[0, 0, 2, 1]]),
        )
        with torch.no_grad():
            frame, _ = model.see(torch.rand(1, 3, 32, 40), state, sample=False)
        old = replace(frame.propagated, z_where=state.z_where + torch.tensor([0, 0, 0.12, 0.12]))
        stays = torch.ones(1, 4, dtype=torch.bool)
        fate = Fate(torch.tensor([missed_now]), state.stopped, stays)
        nobody = seat(torch.zeros_like(stays), torch.zeros(1, 4), stays)
        return model.remember(old, old, nobody, fate, state)

    def test_the_first_counts_whole_and_what_was_waited_for_is_shared_out(self) -> None:
        after = self.remembered([0, 0, 0, 0])
        # It went 0.3 twice while it was not seen, and 0.12 now; a new one counts half.
        third = (0.3 + (2 * 0.3 + 0.12) / 3) / 2
        expected = torch.tensor([0.12, (0.2 + 0.12) / 2, third, 0.06])
        torch.testing.assert_close(after.velocity[0, :, 0], expected)
        assert not after.newborn.any()

    def test_who_is_not_seen_keeps_it_and_stays_newborn(self) -> None:
        after = self.remembered([1, 1, 3, 2])
        torch.testing.assert_close(after.velocity[0, :, 0], torch.tensor([0.0, 0.2, 0.3, 0.0]))
        assert after.newborn.tolist() == [[True, False, False, True]]


def test_who_is_out_of_sight_covers_its_place_until_it_is_let_go() -> None:
    stays = torch.tensor([[True, True, False]])
    fate = Fate(torch.tensor([[0, 1, 4]]), torch.zeros(1, 3), stays)
    assert fate.covering(torch.full((1, 3, 1), 0.25))[0, :, 0].tolist() == [0.25, 1.0, 0.25]


class TestDeath:
    def followed(self, config: ScalorConfig, shift: float, count: int) -> list[int]:
        """Follow with a presence of sigmoid(8.8 tanh(shift)); return who is alive each frame."""
        model = make_scalor(config)
        frame, state = noise(1, 1)[0], model.initial_state(1)
        _, state = model.step(frame, state, firsts(1, 0))
        ids = set(state.track_id[0].tolist()) - {NO_TRACK}
        assert ids
        with torch.no_grad():
            weight, bias = model.propagation.pres[-1].parameters()
            weight.zero_()
            bias.fill_(shift - 2)
            model.discovery.heads.bias[0] = -9.0  # type: ignore[index]
        alive = []
        for _ in range(count):
            _, state = model.step(frame, state, firsts(1))
            alive.append(len(ids & set(state.track_id[0].tolist())))
        return alive

    def test_who_is_unseen_is_waited_for(self) -> None:
        alive = self.followed(replace(SMALL_SCALOR, patience=2), -1.0, 4)
        assert alive[0] == alive[1] > 0
        assert alive[2:] == [0, 0]

    def doubly_followed(self, *raw: float) -> tuple[Scalor, ScalorState]:
        """Rows of ids 4 and 3 on one object, and of id 7 elsewhere.

        Args:
            raw: of each row's presence; above -2 the row is seen.
        """
        model = make_scalor(replace(SMALL_SCALOR, doubled=0.85, patience=1), bias=-5.0)
        sure(model)
        presence = torch.tensor([[*raw, 0.0, 0.0, 0.0]])[..., None]
        model.propagation.pres.register_forward_hook(lambda *_: presence)
        where = torch.tensor([0.2, 0.2, 0.1, 0.0]).expand(1, 6, 4).clone()
        where[0, 2, 2:] = -0.6
        ids = torch.tensor([[4, 3, 7, -1, -1, -1]])
        state = replace(model.initial_state(1), track_id=ids, z_where=where)
        return model, replace(state, next_id=torch.tensor([8]))

    def test_of_two_rows_on_one_object_the_younger_gives_up(self) -> None:
        model, state = self.doubly_followed(0.0, 0.0, 0.0)
        for _ in range(2):
            slots, state = model.step(noise(1, 1)[0], state, firsts(1))
            assert slots.track_id[0, :3, 0].tolist() == [NO_TRACK, 3, 7]
        assert state.track_id[0, :3].tolist() == [NO_TRACK, 3, 7]

    def test_who_is_unseen_silences_nobody(self) -> None:
        model, state = self.doubly_followed(0.0, -9.0, 0.0)
        for _ in range(2):
            slots, state = model.step(noise(1, 1)[0], state, firsts(1))
            assert slots.track_id[0, :3, 0].tolist() == [4, NO_TRACK, 7]
        assert state.track_id[0, :3].tolist() == [4, NO_TRACK, 7]

    def test_where_nothing_but_the_background_is_nobody_is_seen(self) -> None:
        """Whatever the network believes, where the background is known: here it is black."""
        model = make_scalor(replace(SMALL_SCALOR, background="static", patience=2))
        sure(model)
        some, none = noise(1, 1)[0], torch.zeros(1, 32, 40, 3, dtype=torch.uint8)
        some[:, :, 16:] = 0
        _, state = model.step(some, model.initial_state(1), firsts(1, 0))
        slots, state = model.step(some, state, firsts(1))
        ids = slots.track_id
        assert slots.mask.any()
        # A network that has learnt nothing leaps; who is not seen would go on leaping.
        state = replace(state, velocity=torch.zeros_like(state.velocity))
        for _ in range(2):
            slots, state = model.step(none, state, firsts(1))
            assert not slots.mask.any()
        back, _ = model.step(some, state, firsts(1))
        # Rows that were on nothing in the first place may be others' by now.
        assert torch.equal(back.track_id[ids >= 0], ids[ids >= 0])
        _, state = model.step(none, state, firsts(1))
        assert not state.alive.any()

    def test_who_is_not_seen_goes_on_as_it_went(self) -> None:
        model, state = self.doubly_followed(-9.0, -9.0, -9.0)
        velocity = torch.tensor([0.1, -0.05]).expand(1, 6, 2)
        _, after = model.step(noise(1, 1)[0], replace(state, velocity=velocity), firsts(1))
        torch.testing.assert_close(after.z_where[:, :3, :2], state.z_where[:, :3, :2])
        moved = (after.z_where - state.z_where)[:, :3, 2:]
        torch.testing.assert_close(moved, velocity[:, :3])
        assert torch.equal(after.velocity[:, :3], velocity[:, :3])

    def test_what_is_inferred_of_the_unseen_stays_to_be_judged(self) -> None:
        """Or a false absence would confirm itself: no gradient would ever tell where it is."""
        model, state = self.doubly_followed(-9.0, -9.0, -9.0)
        state = replace(state, velocity=torch.tensor([0.1, -0.05]).expand(1, 6, 2))
        image = torch.rand(1, 3, 32, 40)
        frame, after = model.see(image, state, sample=False)
        inferred = frame.propagated.z_where[:, :3]
        assert not torch.isclose(inferred, after.z_where[:, :3]).all(-1).any()
        inferred.sum().backward()  # type: ignore[no-untyped-call]
        weight = model.propagation.where[-1].weight.grad
        assert isinstance(weight, torch.Tensor)
        assert weight.any()

    def test_of_two_rows_on_one_object_who_was_lost_before_gives_up(self) -> None:
        model, state = self.doubly_followed(0.0, 0.0, 0.0)
        state = replace(state, missed=torch.tensor([[0, 1, 0, 0, 0, 0]]))
        slots, _ = model.step(noise(1, 1)[0], state, firsts(1))
        assert slots.track_id[0, :3, 0].tolist() == [4, NO_TRACK, 7]

    def test_of_two_rows_on_one_object_who_leapt_gives_up(self) -> None:
        model, state = self.doubly_followed(0.0, 0.0, 0.0)
        velocity = torch.zeros(1, 6, 2)
        velocity[0, 1, 0] = 0.9  # the elder would be far away by now
        with torch.no_grad():
            frame, _ = model.see(torch.rand(1, 3, 32, 40), state, sample=False)
        going = replace(state, velocity=velocity)
        unseen = model._unseen(frame.propagated, frame.posterior, going, None)
        assert unseen[0, :3].tolist() == [False, True, False]

    def test_a_leap_is_measured_in_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, state = self.doubly_followed(0.0, 0.0, 0.0)
        leaps: list[torch.Tensor] = []

        def noted(*given: torch.Tensor) -> torch.Tensor:
            leaps.append(given[3])
            return doubled(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(scalor, "doubled", noted)
        with torch.no_grad():
            frame, _ = model.see(torch.rand(1, 3, 32, 40), state, sample=False)
        where = frame.propagated.z_where
        gone = (where - state.z_where)[..., 2:].abs().sum(-1)
        torch.testing.assert_close(leaps[0], gone / where[..., :2].sum(-1))

    def test_who_is_not_seen_holds_the_place_where_it_would_be(self) -> None:
        """Not where it was looked for; or it would come back as another."""
        model, state = self.doubly_followed(-9.0, -9.0, -9.0)
        state = replace(state, velocity=torch.tensor([0.15, -0.1]).expand(1, 6, 2))
        given: list[tuple[torch.Tensor, ...]] = []
        model.discovery.register_forward_pre_hook(lambda _, args: given.append(args))
        with torch.no_grad():
            frame, after = model.see(torch.rand(1, 3, 32, 40), state, sample=False)
        (_, _, _, covered, boxes) = given[0]
        assert torch.equal(boxes[:, :3], state.ahead[:, :3])
        assert torch.equal(boxes[:, :3], after.z_where[:, :3])
        went = model.propagation.moved(after.bias, state.z_where)[..., 2:]
        torch.testing.assert_close(went[:, :3], after.z_where[:, :3, 2:])
        there = replace(frame.propagated, z_where=state.ahead)
        alive = state.alive[..., None].float()
        torch.testing.assert_close(covered, mask_of(there, alive, SMALL_SCALOR.masks))

    def test_who_is_born_where_another_dies_begins_anew(self) -> None:
        config = replace(SMALL_SCALOR, patience=0, rejection=False)
        model = make_scalor(config, bias=2.0)
        frame, state = noise(1, 1)[0], model.initial_state(1)
        _, state = model.step(frame, state, firsts(1, 0))
        assert state.alive.all()
        nobody = torch.full((1, 6, 1), -9.0)
        model.propagation.pres.register_forward_hook(lambda *_: nobody)
        state = replace(state, stopped=torch.full((1, 6), 0.5), newborn=~state.alive)
        _, after = model.step(frame, state, firsts(1))
        born = after.track_id > state.track_id.max()
        assert born.any()
        for name in ("missed", "stopped", "velocity", "tracker", "prior"):
            assert (getattr(after, name)[born] == 0).all(), name
        assert after.newborn[born].all()

    def test_in_a_frame_of_another_scene_nobody_is_seen_and_nobody_born(self) -> None:
        model = make_scalor(replace(SMALL_SCALOR, background="static"))
        sure(model)
        some = noise(1, 1)[0]
        some[:, :, 16:] = 0
        another = noise(1, 1)[0] // 2 + 128
        state = model.initial_state(1)
        for _ in range(2):
            slots, state = model.step(some, state, firsts(1))
        assert slots.mask.any()
        count = state.next_id.item()
        slots, state = model.step(another, state, firsts(1))
        assert not slots.mask.any()
        assert state.next_id.item() == count

    def test_what_is_no_number_is_no_index(self) -> None:
        """A diverged training is to be told by its loss."""
        model = make_scalor(replace(SMALL_SCALOR, background="static"))
        image, state = torch.full((1, 3, 32, 40), torch.nan), model.initial_state(1)
        with torch.no_grad():
            for _ in range(2):
                frame, state = model.see(image, state, sample=False)
        assert frame.reconstruction.isnan().any()

    def test_by_the_authors_rule_every_track_ends(self) -> None:
        alive = self.followed(replace(SMALL_SCALOR, deletion="paper"), 0.3, 30)
        assert alive[0] > 0
        assert alive[-1] == 0
        assert self.followed(SMALL_SCALOR, 0.3, 30)[-1] == alive[0]
