"""SCALOR follows objects, and nothing depends on chance or on neighbours that should not."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import objrl
from objrl.frames import to_image
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_parts import mask_of
from objrl.models.scalor_state import ScalorState
from objrl.nn.spatial import overlay
from objrl.perceiver import Perceiver
from objrl.slots import NO_TRACK
from objrl.weights import save_weights
from tests.helpers import SMALL_SCALOR, bit_equal, firsts, make_scalor, noise, sure


def close(a: ScalorState, b: ScalorState) -> None:
    for field in fields(a):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        # Convolutions round differently in batches of other sizes.
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


class TestState:
    def test_it_is_a_perceiver(self) -> None:
        model = make_scalor()
        assert isinstance(model, Perceiver)
        slots = model.encode(noise(1, 2)[0])
        assert slots.position.shape == (2, 6, 2)
        assert slots.what.shape == (2, 6, 4)

    def test_ids_rise_and_are_never_used_again(self) -> None:
        model = make_scalor(replace(SMALL_SCALOR, max_slots=12))
        state = model.initial_state(3)
        generator = torch.Generator().manual_seed(0)
        seen: list[set[int]] = [set(), set(), set()]
        died, born_again = 0, 0
        for t, frame in enumerate(noise(60, 3)):
            # Every env has resets, and objects that die between them.
            dies = state.alive & (torch.rand(3, 12, generator=generator) < 0.1)
            before, reset = state.freed(dies), t % 7 == 0
            _, state = model.step(frame, before, firsts(3, t % 3) if reset else firsts(3))
            died += int(dies.sum())
            for b in range(3):
                ids = state.track_id[b]
                if not reset:
                    stays = before.alive[b]
                    assert torch.equal(ids[stays], before.track_id[b, stays]), "changed its row"
                    born_again += int((state.alive[b] & dies[b]).sum())
                here = set(ids.tolist()) - {NO_TRACK}
                assert len(here) == state.alive[b].sum()
                new = here - set(before.track_id[b].tolist())
                assert new.isdisjoint(seen[b]), "an id came back"
                assert min(new, default=999) > max(seen[b], default=NO_TRACK)
                seen[b] |= new
                assert seen[b] == set(range(int(state.next_id[b])))
        assert died > 40
        assert born_again > 20, "rows that were freed are taken again"
        assert min(map(len, seen)) > 20

    def test_a_reset_leaves_the_others_bit_identical(self) -> None:
        model = make_scalor()
        state = model.initial_state(3)
        first, second, third = noise(3, 3)
        _, state = model.step(first, state, firsts(3, 0, 1, 2))
        _, state = model.step(second, state, firsts(3))
        with_reset = model.step(third, state, firsts(3, 1))
        without = model.step(third, state, firsts(3))
        for b in (0, 2):
            assert bit_equal(with_reset[1][b : b + 1], without[1][b : b + 1])
            assert torch.equal(with_reset[0].track_id[b], without[0].track_id[b])
        assert not set(with_reset[1].track_id[1].tolist()) & set(
            without[1].track_id[1].tolist()
        ) - {NO_TRACK}

    def test_an_environment_depends_on_itself_alone(self) -> None:
        model = make_scalor()
        states = model.initial_state(8)
        alone = model.initial_state(1)
        for t, frame in enumerate(noise(6, 8)):
            first = firsts(8, *range(8)) if t == 0 else firsts(8, t)
            slots, states = model.step(frame, states, first)
            mine, alone = model.step(frame[3:4], alone, first[3:4])
            close(states[3:4], alone)
            torch.testing.assert_close(slots[3:4].position, mine.position, atol=1e-4, rtol=1e-4)
            assert torch.equal(slots[3:4].track_id, mine.track_id)

    def test_in_chunks_it_is_the_same(self) -> None:
        model = make_scalor()
        images = torch.rand(2, 6, 3, 32, 40)
        first = torch.zeros(2, 6, dtype=torch.bool)
        first[:, 0] = first[1, 3] = True
        with torch.no_grad():
            torch.manual_seed(1)
            _, whole = model.unroll(images, first, model.initial_state(2))
            torch.manual_seed(1)
            state = model.initial_state(2)
            for begin, end in ((0, 1), (1, 4), (4, 6)):
                _, state = model.unroll(images[:, begin:end], first[:, begin:end], state)
        assert bit_equal(whole, state)

    def test_an_agent_sees_what_training_unrolls(self) -> None:
        """An agent's step leaves out the picture; nothing else comes of that."""
        model, shown = make_scalor(), noise(6, 2)
        first = torch.zeros(2, 6, dtype=torch.bool)
        first[:, 0] = first[1, 3] = True
        images = torch.stack([to_image(frame, 32, 40) for frame in shown], dim=1)
        with torch.no_grad():
            _, unrolled = model.unroll(images, first, model.initial_state(2), sample=False)
        state = model.initial_state(2)
        for t, frame in enumerate(shown):
            _, state = model.step(frame, state, first[:, t])
        assert state.alive.any()
        for name in {f.name for f in fields(state)} - {"prior", "z_bg", "prior_bg", "fresh"}:
            assert torch.equal(getattr(state, name), getattr(unrolled, name)), name

    def test_it_is_deterministic_for_an_agent(self) -> None:
        model = make_scalor()
        state = model.initial_state(2)
        once = model.step(noise(1, 2)[0], state, firsts(2, 0, 1))
        again = model.step(noise(1, 2)[0], state, firsts(2, 0, 1))
        assert bit_equal(once[1], again[1])

    def test_too_many_objects_are_counted_and_the_likeliest_stay(self) -> None:
        config = replace(SMALL_SCALOR, rejection=False, distinct=1.0)
        frame, first = noise(1, 2)[0], firsts(2, 0, 1)
        roomy = make_scalor(replace(config, max_slots=config.cells))
        _, everybody = roomy.step(frame, roomy.initial_state(2), first)
        model = make_scalor(replace(config, max_slots=3))
        sure(model)
        _, state = model.step(frame, model.initial_state(2), first)
        torch.testing.assert_close(state.z_pres, everybody.z_pres.topk(3, dim=1).values)
        assert torch.equal(state.overflow, everybody.alive.sum(1) - 3)
        for _ in range(4):
            before = state
            _, state = model.step(frame, state, firsts(2))
            assert state.track_id.tolist() == [[0, 1, 2], [0, 1, 2]]
            assert (state.overflow > before.overflow).all()
        assert state.next_id.tolist() == [3, 3]

    def test_who_is_sure_of_nothing_follows_nothing(self) -> None:
        model = make_scalor(bias=-1.0)
        slots, state = model.step(
            torch.zeros(2, 32, 40, 3, dtype=torch.uint8), model.initial_state(2), firsts(2, 0, 1)
        )
        assert not state.alive.any()
        for name in ("position", "scale", "depth", "what", "presence"):
            assert (getattr(slots, name) == 0).all()
        assert (slots.track_id == NO_TRACK).all()

    def test_a_still_scene_keeps_its_ids(self) -> None:
        model = make_scalor()
        frame, state = noise(1, 1)[0], model.initial_state(1)
        _, state = model.step(frame, state, firsts(1, 0))
        sure(model)
        ids = state.track_id
        for _ in range(100):
            slots, state = model.step(frame, state, firsts(1))
            alive = ids != NO_TRACK
            assert torch.equal(state.track_id[alive], ids[alive])
        assert (slots.presence[0, :, 0] > 0)[ids[0] != NO_TRACK].all()

    @pytest.mark.parametrize(
        ("environments", "first"),
        [(2, torch.ones(3, dtype=torch.bool)), (3, torch.ones(2, dtype=torch.bool))],
    )
    def test_what_does_not_belong_together_is_refused(
        self, environments: int, first: Tensor
    ) -> None:
        model = make_scalor()
        with pytest.raises(
            ValueError, match=r"expected one of 3 environments|expected shape \(3,\) bool"
        ):
            model.step(noise(1, 3)[0], model.initial_state(environments), first)


@pytest.mark.parametrize("rows", [None, 3])
def test_weights_alone_rebuild_it(rows: int | None, tmp_path: Path) -> None:
    model = make_scalor()
    path = save_weights(
        *(tmp_path / "scalor.safetensors", model),
        model_name="scalor",
        data={},
        training={},
        metrics={},
    )
    copy = objrl.load(path, device="cpu", max_slots=rows)
    assert isinstance(copy, Scalor)
    assert not copy.training
    assert copy.max_slots == (rows or 6)
    frame = noise(1, 2)[0]
    seen, expected = copy.encode(frame), model.encode(frame)
    assert expected.mask.sum(1).min() > 3
    for name in ("position", "scale", "depth", "what", "presence", "track_id"):
        # Rows are by falling presence: fewer of them are the likeliest.
        assert torch.equal(getattr(seen, name), getattr(expected, name)[:, :rows]), name


class TestDrawing:
    def test_objects_lie_over_each_other_as_algorithm_3_has_it(self) -> None:
        torch.manual_seed(0)
        appearance, mask = torch.rand(2, 3, 3, 4, 4), torch.rand(2, 3, 1, 4, 4)
        where = torch.rand(2, 3, 4) * 0.4 + 0.2
        depth = torch.randn(2, 3, 1)
        whole = overlay(appearance, mask, where, depth, canvas=(20, 24), window=(20, 24))
        part = overlay(appearance, mask, where, depth, canvas=(20, 24), window=(18, 20))
        torch.testing.assert_close(whole.mean, part.mean, atol=1e-5, rtol=1e-5)
        # One object alone: the mean is its appearance times its mask, twice weighted by neither.
        one = overlay(
            torch.ones(1, 1, 3, 4, 4),
            torch.full((1, 1, 1, 4, 4), 0.5),
            torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]),
            torch.zeros(1, 1, 1),
            canvas=(16, 16),
            window=(16, 16),
        )
        assert one.alpha[0, 0, 8, 8] == pytest.approx(0.5)
        assert one.mean[0, :, 8, 8].tolist() == pytest.approx([0.5] * 3, abs=1e-3)
        assert one.alpha[0, 0, 0, 0] == 0

    def test_the_nearer_covers_the_farther(self) -> None:
        both = overlay(
            torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1).expand(-1, -1, 3, 4, 4),
            torch.ones(1, 2, 1, 4, 4),
            torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 2, -1),
            torch.tensor([[[2.0], [-2.0]]]),
            canvas=(16, 16),
            window=(16, 16),
        )
        near, far = torch.sigmoid(torch.tensor([2.0, -2.0])).tolist()
        assert both.mean[0, :, 8, 8].tolist() == pytest.approx([near / (near + far)] * 3, abs=1e-4)
        assert both.alpha[0, 0, 8, 8] == 1

    def test_masks_sum_to_one(self) -> None:
        model = make_scalor()
        masks = model.segment(noise(1, 2, (48, 40))[0])
        assert masks.shape == (2, 7, 48, 40)
        torch.testing.assert_close(masks.sum(1), torch.ones(2, 48, 40))
        assert masks.min() > -1e-5
        assert masks[:, :-1].max() > 0.1

    def test_a_proposal_on_what_is_followed_is_rejected(self) -> None:
        model = make_scalor()
        mask = torch.ones(1, 2, 1, 16, 16)
        where = torch.tensor([[[0.25, 0.25, 0.0, 0.0], [0.25, 0.25, 0.75, 0.75]]])
        covered = torch.zeros(1, 1, *SMALL_SCALOR.masks)
        covered[..., :6, :7] = 1
        nobody = torch.zeros(1, 6, 4)
        rejected = model.discovery.rejects(mask, where, covered, nobody)
        assert rejected.tolist() == [[True, False]]
        boxes = torch.cat([where[:, 1:] + 0.01, nobody], dim=1)
        assert model.discovery.rejects(mask, where, covered, boxes).tolist() == [[True, False]]
        model = make_scalor(replace(SMALL_SCALOR, known=0.8))
        assert model.discovery.rejects(mask, where, covered, boxes).tolist() == [[True, True]]
        model = make_scalor(replace(SMALL_SCALOR, known=0.8, rejection=False))
        assert not model.discovery.rejects(mask, where, covered, boxes).any()


def test_masks_of_what_is_followed_are_at_most_one() -> None:
    model = make_scalor()
    with torch.no_grad():
        frame, _ = model.see(torch.rand(2, 3, 32, 40), model.initial_state(2), sample=False)
    objects = frame.discovered.objects
    mask = mask_of(objects, torch.ones_like(objects.z_pres), SMALL_SCALOR.masks)
    assert mask.shape == (2, 1, 8, 10)
    assert 0 < mask.max() <= 1


def test_the_authors_sizes() -> None:
    """5,000,002 parameters at 128 x 128 (facts/scalor.md); ours has fewer peepholes."""
    config = ScalorConfig(frame_size=(128, 128), cell=16, glimpse=64)
    count = sum(p.numel() for p in Scalor(config).parameters())
    assert count == pytest.approx(5_000_002, rel=0.01)
    with pytest.raises(ValueError, match="expected for the paper's layers"):
        Scalor(ScalorConfig(frame_size=(96, 96)))
