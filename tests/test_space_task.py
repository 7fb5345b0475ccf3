"""SPACE's part of the loop: batches with evidence, a loss that reaches everything, a verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from objrl.models.median import Scenes
from objrl.models.space import SpaceConfig
from objrl.models.space_background import Smooth, Static
from objrl.perceiver import FramePerceiver
from objrl.pretrain.configure import configure, fit_canvas, look
from objrl.pretrain.presets import SPACE
from objrl.pretrain.report import final_metrics, picture
from objrl.pretrain.space_task import SpaceTask, at_centres, blobs_by_cell, cells_within
from tests.squares import SIDE, make_frames


@pytest.fixture(scope="module")
def task() -> SpaceTask:
    torch.manual_seed(0)
    found = look(make_frames(100))
    return SpaceTask(configure(SPACE["space-fast"], found), found)


class TestEvidence:
    def test_a_blob_belongs_to_the_cell_of_its_centre(self) -> None:
        config = SpaceConfig(frame_size=(32, 64), cell=8)  # 4 rows of 8 cells
        boxes = np.array([[18, 9, 22, 13]], np.float32)  # its centre (20, 11): column 2, row 1
        cell, where = blobs_by_cell(boxes, config, margin=1.5)
        assert cell.tolist() == [8 + 2]
        expected = [1.5 * 4 / 64, 1.5 * 4 / 32, 2 * 20 / 64 - 1, 2 * 11 / 32 - 1]
        assert where[0].tolist() == pytest.approx(expected)

    def test_of_two_in_a_cell_the_larger_has_it_and_the_other_the_nearest_free_one(self) -> None:
        config = SpaceConfig(frame_size=(32, 32), cell=8)
        boxes = np.array([[0, 0, 7, 7], [3, 5, 7, 8], [24, 24, 32, 32]], np.float32)
        cell, where = blobs_by_cell(boxes, config, margin=1)
        assert cell.tolist() == [0, 4, 15]  # centre (5, 6.5): nearer to the cell below
        assert where[:, 0].tolist() == pytest.approx([7 / 32, 4 / 32, 8 / 32])

    def test_what_no_free_cell_can_reach_is_left_out(self) -> None:
        config = SpaceConfig(frame_size=(16, 16), cell=8)
        boxes = np.array([[0, 0, 7, 7], [0, 0, 2, 2], [9, 0, 15, 7], [0, 9, 7, 15]], np.float32)
        cell, _ = blobs_by_cell(boxes, config, margin=1)
        assert cell.tolist() == [0, -1, 1, 2]  # (1, 1) is more than a cell from every other centre

    def test_no_cell_has_two(self) -> None:
        config = SpaceConfig(frame_size=(32, 32), cell=8)
        rng = np.random.default_rng(0)
        low = rng.uniform(0, 28, (40, 2)).astype(np.float32)
        cell, where = blobs_by_cell(np.concatenate([low, low + 3], axis=1), config, margin=1)
        cell, where = cell[cell >= 0], where[cell >= 0]
        assert len(set(cell.tolist())) == len(cell) > 10
        centre = (torch.stack([cell % 4, cell // 4], dim=1) + 0.5) * 8
        assert ((where[:, 2:] + 1) * 16 - centre).abs().max() < 8

    def test_what_lies_beyond_the_last_whole_cell_is_the_last_ones(self) -> None:
        config = SpaceConfig(frame_size=(21, 16), cell=8)  # 2 x 2 cells, 5 rows of pixels left over
        cell, _ = blobs_by_cell(np.array([[10, 17, 16, 21]], np.float32), config, margin=1)
        assert cell.tolist() == [3]

    def test_no_blobs_no_evidence(self) -> None:
        cell, where = blobs_by_cell(np.zeros((0, 4), np.float32), SpaceConfig(), margin=1)
        assert cell.shape == (0,)
        assert where.shape == (0, 4)

    def test_cells_whose_centres_lie_in_a_blob_are_within(self) -> None:
        config = SpaceConfig(frame_size=(32, 64), cell=8)  # centres at 4, 12, 20, …
        boxes = np.array([[4, 4, 20, 12], [56, 24, 59, 27]], np.float32)
        assert np.flatnonzero(cells_within(boxes, config)).tolist() == [0, 1]
        assert not cells_within(boxes[:0], config).any()

    @pytest.mark.parametrize("cell", [8, 16])
    def test_a_cell_has_what_is_at_its_centre(self, cell: int) -> None:
        config = SpaceConfig(frame_size=(37, 64), cell=cell)  # some rows are left over
        rows, columns = config.grid
        for number in range(config.cells):
            row, column = divmod(number, columns)
            mask = np.zeros((37, 64), np.bool_)
            mask[row * cell + cell // 2, column * cell + cell // 2] = True
            assert np.flatnonzero(at_centres(mask, config)).tolist() == [number]
        assert at_centres(np.ones((37, 64), np.bool_), config).shape == (rows * columns,)

    def test_batches_mark_the_squares(self, task: SpaceTask) -> None:
        frames = make_frames(3, seed=5)
        batch = task.prepare(frames)
        assert torch.equal(batch.frames, torch.from_numpy(frames))
        squares = (frames != (20, 20, 60)).any(-1) & (frames != (90, 60, 0)).any(-1)
        alpha = batch.alpha[:, 0].numpy() > 0
        assert alpha[squares].all()
        assert alpha[~squares].sum() < 0.1 * squares.sum()  # gaps of a pixel or two are closed
        assert batch.presence.sum() > 0
        on = batch.presence[..., 0] == 1
        assert (batch.z_where[on][:, :2] >= SIDE / 64).all()
        assert (batch.z_where[~on] == 0).all()

    def test_of_what_is_no_piece_in_a_shaded_scene_nothing_is_said(self, task: SpaceTask) -> None:
        """Two of one hue that touch, say: how many they are, is not known; that they are is."""
        assert task.found is not None
        (one,) = task.found.seen.every
        frame = one.scenery.faces[0].copy()
        frame[8:16, 8:40] = (250, 30, 30)  # too long for one thing
        frame[30:36, 34:40] = (240, 240, 240)
        flat = task.prepare(frame[None])
        cells = task.recipe.model
        assert cells.cell == 8
        assert flat.presence.nonzero().tolist() == [[0, 8 * 4 + 4, 0]]
        assert (flat.weight >= 1).all()
        assert flat.alpha.sum() == 36
        shaded = replace(one, scenery=replace(one.scenery, shaded=True))
        other = SpaceTask(task.recipe, replace(task.found, seen=Scenes((shaded,))))
        batch = other.prepare(frame[None])
        assert torch.equal(batch.presence, flat.presence)
        assert torch.equal(batch.z_where, flat.z_where)
        unknown = torch.zeros(64, dtype=torch.bool)
        unknown[8 + 1 : 8 + 5] = True
        assert (batch.weight[0, :, 0] == 0).equal(unknown)
        assert torch.equal(batch.weight[0, ~unknown], flat.weight[0, ~unknown])
        assert batch.alpha.sum() == 36 + 8 * 32
        assert batch.alpha[0, 0, 8:16, 8:40].all()

    def test_frames_of_another_size_are_fitted(self) -> None:
        frames = make_frames(2)
        assert fit_canvas(frames, (64, 64)) is frames
        assert fit_canvas(frames, (32, 48)).shape == (2, 32, 48, 3)


class TestLoss:
    def test_is_the_weighted_sum_of_its_terms(self, task: SpaceTask) -> None:
        torch.manual_seed(0)
        total, terms = task(task.prepare(make_frames(2)), 0.05)
        recipe = task.recipe
        weight = {"evidence_pres": recipe.evidence(0.05), "evidence_where": recipe.evidence(0.05)}
        weight["evidence_alpha"] = recipe.alpha_evidence(0.05)
        parts = {k: v for k, v in terms.items() if k not in ("loss", "objects", "mse")}
        expected = sum(weight.get(name, 1) * float(term.detach()) for name, term in parts.items())
        assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
        assert {"nll", "kl_pres", "kl_what", "evidence_alpha"} <= parts.keys()

    def test_every_parameter_gets_a_gradient(self, task: SpaceTask) -> None:
        task.train()
        task.zero_grad()
        # The background's last layer begins at zero and lets nothing through on the first step.
        parts = dict(task.named_parameters())
        last = [p for n, p in parts.items() if n.startswith("model.background.decoder.2")]
        with torch.no_grad():
            for parameter in last:
                parameter.normal_(std=0.01)
        task(task.prepare(make_frames(4)), 0.05)[0].backward()
        for parameter in last:
            torch.nn.init.zeros_(parameter)
        without = [n for n, p in parts.items() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []

    def test_terms_end_when_their_schedules_say(self, task: SpaceTask) -> None:
        batch = task.prepare(make_frames(2))
        assert "evidence_alpha" not in task(batch, 1.0)[1]
        recipe = replace(task.recipe, boundary_until=0.5, boundary_weight=10.0)
        bounded = SpaceTask(recipe, task.found)
        assert "boundary" in bounded(batch, 0.4)[1]
        assert "boundary" not in bounded(batch, 0.5)[1]

    def test_a_few_steps_on_one_batch_make_it_smaller(self, task: SpaceTask) -> None:
        torch.manual_seed(0)
        task = SpaceTask(task.recipe, task.found).train()
        optimizers, batch, losses = task.optimizers(), task.prepare(make_frames(8)), []
        for _ in range(15):
            total, _ = task(batch, 0.5)
            for optimizer in optimizers:
                optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), task.recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
            losses.append(float(total.detach()))
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1 * abs(np.mean(losses[:3]))


def test_boxes_begin_at_their_prior(task: SpaceTask) -> None:
    fresh = SpaceTask(task.recipe, task.found).eval()
    image = torch.from_numpy(make_frames(2)).permute(0, 3, 1, 2) / 255
    scale = fresh.model(image).z_where[..., :2].mean((0, 1))
    prior = torch.sigmoid(torch.tensor(task.recipe.priors(0).scale_mean))
    assert scale.tolist() == pytest.approx(prior.tolist(), rel=0.3)


def test_the_background_is_the_one_that_was_found(task: SpaceTask) -> None:
    assert task.found is not None
    state = SpaceTask(task.recipe, task.found).model.state_dict()["background.faces"]
    assert np.array_equal(state.permute(0, 2, 3, 1).numpy(), task.found.seen.every[0].scenery.faces)


def test_of_several_games_each_has_as_many_faces_as_the_richest(task: SpaceTask) -> None:
    assert task.found is not None
    (one,) = task.found.seen.every
    usual = one.scenery.faces[0]
    two = replace(one, scenery=replace(one.scenery, faces=np.stack([usual + 1, usual + 2])))
    found = replace(task.found, seen=Scenes((one, two)))
    joint = SpaceTask(configure(SPACE["space-fast"], found), found)
    state = joint.model.state_dict()["background.faces"].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(state, np.stack([usual, usual, usual + 1, usual + 2]))


def test_frames_and_model_agree_which_game_a_frame_is_of(task: SpaceTask) -> None:
    assert task.found is not None
    (one,) = task.found.seen.every
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (3, 1, *one.scenery.median.shape), np.uint8)
    every = tuple(replace(one, scenery=replace(one.scenery, faces=face)) for face in faces)
    found = replace(task.found, seen=Scenes(every))
    joint = SpaceTask(configure(SPACE["space-fast"], found), found)
    assert isinstance(joint.model.background, Static)
    # Frames between two of them, nearer to the one or the other.
    frames = np.stack([f // 2 + g // 2 for f in faces[:, 0] for g in rng.permutation(faces[:, 0])])
    chosen = joint.model.background.scene(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    assert set(chosen.tolist()) == {0, 1, 2}
    for frame, scene in zip(frames, chosen.tolist(), strict=True):
        assert found.seen.of(frame) is every[scene]
    # And what is before its own background is the evidence.
    frames, thing = np.concatenate(faces), np.zeros((64, 64), np.bool_)
    frames[:, 20:26, 30:36] ^= 128
    thing[20:26, 30:36] = True
    for alpha in joint.prepare(frames).alpha:
        assert np.array_equal(alpha[0].numpy() > 0, thing)


def test_several_shaded_games_make_one_detector(task: SpaceTask) -> None:
    assert task.found is not None
    (one,) = task.found.seen.every
    shaded = replace(one, scenery=replace(one.scenery, shaded=True, changing=True))
    found = replace(task.found, seen=Scenes((shaded, shaded)))
    joint = SpaceTask(configure(SPACE["space-fast"], found), found)
    assert isinstance(joint.model.background, Smooth)
    total, terms = joint(joint.prepare(make_frames(2)), 1.0)
    assert total.isfinite()
    assert "evidence_alpha" in terms


class TestReport:
    def test_metrics_do_not_depend_on_the_batch_size(self, task: SpaceTask) -> None:
        frames = make_frames(7)
        whole, parts = (final_metrics(task, frames, batch=size) for size in (7, 3))
        assert whole == pytest.approx(parts, rel=1e-4)
        assert whole.keys() == {"val_elbo", "val_mse", "val_objects"}

    def test_a_picture_has_a_row_of_panels_for_every_frame(self, task: SpaceTask) -> None:
        one, three = (picture(FramePerceiver(task.model), make_frames(n)) for n in (1, 3))
        assert one.dtype == np.uint8
        assert one.shape[1] == three.shape[1]
        assert one.shape[1] > 4 * 64  # panels side by side
        assert three.shape[0] > 2 * one.shape[0]
