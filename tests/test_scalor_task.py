"""SCALOR's part of the loop: what a teacher shows in sequences, a loss over time, whole runs."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import objrl
from objrl.checkpoint import load_checkpoint
from objrl.models.scalor import Scalor
from objrl.models.scalor_latents import ScalorFrame
from objrl.models.scalor_state import ScalorState
from objrl.models.space_background import Static
from objrl.pretrain import run, tasks
from objrl.pretrain.configure import configure, look
from objrl.pretrain.report import final_metrics
from objrl.pretrain.scalor_presets import SCALOR
from objrl.pretrain.scalor_task import ScalorTask, Sequences
from objrl.pretrain.train import train
from objrl.schedule import Linear
from objrl.weights import read_header
from tests.squares import SIDE, SIZE, config, events, make_frames, same, tensors, write_store
from tests.test_configure import findings

Frames = npt.NDArray[np.uint8]
Square = tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]
"""Colour, left and top in the first frame, and the step to the next."""
RED, GREEN, WHITE = (250, 30, 30), (30, 250, 30), (240, 240, 240)
TWO: tuple[Square, ...] = ((RED, (4, 9), (3, 0)), (GREEN, (48, 41), (-3, -1)))
FAST = SCALOR["scalor-fast"]


def film(length: int, squares: tuple[Square, ...] = TWO) -> Frames:
    """(T, 64, 64, 3) uint8: squares go their ways and turn back at the edges."""
    frames = np.repeat(np.median(make_frames(31), axis=0)[None], length, axis=0).astype(np.uint8)
    room = SIZE - SIDE
    for colour, (left, top), (dx, dy) in squares:
        for t, frame in enumerate(frames):
            x, y = (room - abs((a + t * d) % (2 * room) - room) for a, d in ((left, dx), (top, dy)))
            frame[y : y + SIDE, x : x + SIDE] = colour
    return frames


def films(count: int, length: int) -> Frames:
    """(B, T, 64, 64, 3) uint8, each with three squares."""
    rng = np.random.default_rng(0)

    def square(colour: tuple[int, int, int]) -> Square:
        (x, y), (dx, dy) = rng.integers(0, 48, 2).tolist(), rng.integers(-3, 4, 2).tolist()
        return colour, (x, y), (dx, dy)

    return np.stack([film(length, tuple(map(square, (RED, GREEN, WHITE)))) for _ in range(count)])


@pytest.fixture(scope="module")
def task() -> ScalorTask:
    """Of sequences of 2 + 3 frames, which finds something from the first."""
    torch.manual_seed(0)
    found = look(make_frames(100))
    recipe = configure(replace(FAST, lead=2, length=3), found)
    task = ScalorTask(recipe, found)
    assert task.model.discovery.heads.bias is not None
    with torch.no_grad():
        task.model.discovery.heads.bias[0] = 0.3
    return task


def another(task: ScalorTask, **changes: Any) -> ScalorTask:
    """Make one of the same weights and another recipe."""
    other = ScalorTask(replace(task.recipe, **changes), task.found)
    other.load_state_dict(task.state_dict())
    return other


class TestConfigure:
    @pytest.mark.parametrize(("side", "cell"), [(4, 8), (12, 8), (24, 16), (60, 16)])
    def test_cells_are_about_as_large_as_objects(self, side: float, cell: int) -> None:
        model = configure(FAST, findings(side, side)).model
        assert model.cell == cell
        Scalor(model)  # has layers for it

    @pytest.mark.parametrize("largest", [4, 18, 40, 60])
    def test_windows_hold_the_largest(self, largest: float) -> None:
        model = configure(FAST, findings(8, 8, largest=largest)).model
        assert FAST.margin * largest <= model.window <= 96

    @pytest.mark.parametrize("rows", [4, 48, 112])
    def test_slots_and_proposals_suffice_for_the_fullest_frame(self, rows: int) -> None:
        model = configure(FAST, findings(8, 8, rows=rows)).model
        assert min(model.max_slots, model.proposals) >= rows

    def test_the_background_is_of_the_kind_that_was_seen(self) -> None:
        still = configure(FAST, findings(8, 8, faces=(3,))).model
        assert (still.background, still.faces, still.flat) == ("static", 3, 0)
        assert still.frame_size == (210, 160)
        assert configure(FAST, findings(8, 8, changing=True)).model.flat > 20

    def test_several_games_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected one game for SCALOR, got 2; train one each"):
            configure(FAST, findings(8, 8, faces=(1, 1)))


class TestTeacher:
    def test_a_piece_is_one_track_in_its_box_and_cell(self, task: ScalorTask) -> None:
        there, back = film(6), film(6)[::-1]
        batch = task.prepare(np.stack([there, back]))
        assert torch.equal(batch.frames, torch.from_numpy(np.stack([there, back])))
        for b in range(2):
            names: list[set[int]] = [set(), set()]
            for t in range(6):
                shown = batch.track[b, t] >= 0
                assert shown.sum() == 2
                assert torch.equal(shown, batch.cell[b, t] >= 0)
                assert (batch.z_where[b, t, ~shown] == 0).all()
                for n, (_, start, step) in enumerate(TWO):
                    at = 5 - t if b else t
                    x, y = (a + at * d + SIDE / 2 for a, d in zip(start, step, strict=True))
                    side = task.recipe.margin * SIDE / SIZE
                    expected = torch.tensor([side, side, 2 * x / SIZE - 1, 2 * y / SIZE - 1])
                    (row,) = (batch.z_where[b, t] - expected).abs().amax(1).lt(1e-5).nonzero()
                    names[n].add(int(batch.track[b, t, row]))
                    assert batch.cell[b, t, row] == SIZE // 8 * (y // 8) + x // 8
            assert [len(ids) for ids in names] == [1, 1]
            assert names[0] != names[1]

    def test_who_comes_late_is_another(self, task: ScalorTask) -> None:
        frames = film(6)
        frames[3:] = film(6, (*TWO, (WHITE, (20, 24), (1, 1))))[3:]
        track = task.prepare(frames[None]).track[0]
        first, *_, last = (set(row.tolist()) - {-1} for row in track)
        assert first < last
        assert [(row >= 0).sum() for row in track] == [2, 2, 2, 3, 3, 3]

    def test_cells_within_a_piece_count_more(self, task: ScalorTask) -> None:
        frames = film(1, ((RED, (4, 9), (0, 0)),))  # 4 to 9 and 9 to 14: about the centre (4, 12)
        weight = task.prepare(frames[None]).weight[0, 0, :, 0]
        assert weight[SIZE // 8] == task.recipe.split_weight
        assert (weight == 1).sum() == len(weight) - 1

    def test_frames_of_another_size_are_shrunk(self, task: ScalorTask) -> None:
        frames = film(3)[None]
        large = task.prepare(frames.repeat(2, axis=2).repeat(3, axis=3))
        for ours, theirs in zip(large, task.prepare(frames), strict=True):
            assert torch.equal(ours, theirs)

    def test_where_nothing_is_taught_nothing_is_prepared(self, task: ScalorTask) -> None:
        alone = another(task, taught=Linear(0.0))
        batch = alone.prepare(films(1, 5))
        assert batch.track.numel() == 0
        _, terms = alone(batch, 0.5)
        assert not any(name.startswith("taught") for name in terms)


class TestLoss:
    def test_is_the_elbo_and_what_the_recipe_adds(self, task: ScalorTask) -> None:
        batch = task.prepare(films(2, 5))
        total, terms = task(batch, 0.1)
        recipe, expected = task.recipe, 0.0
        assert {"nll", "kl_bg", "taught_prop_where", "taught_disc_pres", "evidence_alpha"} <= {
            *terms
        }
        for name, term in terms.items():
            if name in ("loss", "mse", "objects", "born"):
                continue
            weight = {"taught": recipe.taught(0.1), "evidence": recipe.mask_evidence(0.1)}
            expected += weight.get(name.split("_")[0], 1.0) * float(term.detach())
        assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
        assert terms["loss"] == total

    def test_a_few_steps_on_one_batch_make_it_smaller(self, task: ScalorTask) -> None:
        torch.manual_seed(0)
        task = another(task, taught=Linear(100.0)).train()
        (optimizer,), batch = task.optimizers(), task.prepare(films(2, 5))
        losses, pulls = [], []
        for _ in range(30):
            total, terms = task(batch, 0.5)
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), task.recipe.clip)
            optimizer.step()
            losses.append(float(total.detach()))
            pulls.append(float(terms["taught_disc_pres"].detach()))
        begin, end = np.mean(losses[:5]), np.mean(losses[-5:])
        assert end < begin - 0.3 * abs(begin)
        assert np.mean(pulls[-5:]) < 0.5 * np.mean(pulls[:5])

    def test_without_noise_it_does_not_depend_on_chance(self, task: ScalorTask) -> None:
        """What is measured at the end of a run follows from its weights."""
        task = another(task).eval()
        frames = films(3, 5)
        once, again = (final_metrics(task, frames) for _ in range(2))
        assert once == again
        parts = final_metrics(task, frames, batch=2)
        assert once == pytest.approx(parts, rel=1e-3)

    def test_gradients_flow_through_time_when_the_recipe_says(
        self, task: ScalorTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Through objects; through the map's memory they always do, but not out of the lead."""
        task = another(task, detach_until=0.3).train()
        batch = task.prepare(films(1, 5))
        lead, begin, later = 0, 2, 3
        for at, through in ((0.29, False), (0.3, True)):
            states = entered(task, batch, at, monkeypatch)
            for moment in (lead, begin):
                assert not flows(states[moment])
            assert states[later].alive.any()
            objects = {"z_pres", "z_where", "bias", "z_depth", "z_what", "tracker", "prior"}
            assert flows(states[later]) & objects == (objects if through else set())
            assert "memory" in flows(states[later])

    @pytest.mark.parametrize("forgotten", [0.0, 1.0])
    def test_after_the_lead_some_are_to_be_found_again(
        self, task: ScalorTask, forgotten: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = another(task, forgotten=forgotten).train()
        states = entered(task, task.prepare(films(2, 5)), 0.1, monkeypatch)
        assert len(states) == 5
        assert states[1].alive.any(1).all()
        assert states[2].alive.any() == (forgotten == 0)
        assert (states[3].next_id > states[2].next_id).all() or not forgotten


def entered(
    task: ScalorTask, batch: Sequences, at: float, monkeypatch: pytest.MonkeyPatch
) -> list[ScalorState]:
    """Take the loss back through every frame; return the state before each of them."""
    states: list[ScalorState] = []
    see = Scalor.see

    def seen(
        model: Scalor, image: Tensor, state: ScalorState, **options: Any
    ) -> tuple[ScalorFrame, ScalorState]:
        states.append(state)
        for field in fields(state):
            tensor = getattr(state, field.name)
            if tensor.requires_grad:
                tensor.retain_grad()
        return see(model, image, state, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Scalor, "see", seen)
        task(batch, at)[0].backward()
    return states


def flows(state: ScalorState) -> set[str]:
    """Name the fields that the loss of later frames has a gradient by."""
    tensors = {field.name: getattr(state, field.name) for field in fields(state)}
    return {
        name
        for name, tensor in tensors.items()
        if tensor.requires_grad and tensor.grad is not None and tensor.grad.any()
    }


def test_the_background_is_the_one_that_was_found(task: ScalorTask) -> None:
    assert task.found is not None
    assert isinstance(task.model.background, Static)
    faces = task.model.background.faces.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(faces, task.found.seen.every[0].scenery.faces)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twelve episodes, none longer than what is learnt from at a time."""
    length = FAST.lead + FAST.length
    frames = films(12, length).reshape(-1, SIZE, SIZE, 3)
    return write_store(tmp_path / "films.h5", frames, episode=length)


@pytest.mark.usefixtures("same_threads")
@pytest.mark.filterwarnings("ignore:held-out frames")  # nobody learns much in three steps
class TestRun:
    def test_leaves_weights_that_follow_and_goes_on_where_it_was(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = {"preset": "scalor-fast", "steps": 3, "batch": 1, "checkpoint_every": 0}
        whole = train(config(store, tmp_path / "whole", **plain, log_every=1))
        header = read_header(whole)
        assert (header["model"], header["training"]["steps"]) == ("scalor", 3)
        assert header["config"]["frame_size"] == [SIZE, SIZE]
        assert {"val_elbo", "val_mse", "val_objects", "val_agreement"} <= header["metrics"].keys()
        assert [entry.step for entry in events(whole.parent).Scalars("taught_disc_pres")] == [
            0,
            1,
            2,
        ]
        follower = objrl.load(whole, device="cpu")
        assert isinstance(follower, Scalor)
        state, first = follower.initial_state(1), torch.tensor([True])
        for frame in torch.from_numpy(film(2)):
            slots, state = follower.step(frame[None], state, first)
            assert torch.isfinite(slots.what).all()

        class Stopped(ScalorTask):
            calls = 0

            def forward(self, batch: Sequences, at: float) -> tuple[Tensor, dict[str, Tensor]]:
                Stopped.calls += 1
                if Stopped.calls == 3:
                    raise KeyboardInterrupt
                return super().forward(batch, at)

        part = tmp_path / "part"
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "ScalorTask", Stopped)
            with pytest.raises(KeyboardInterrupt):
                train(config(store, part, **plain, log_every=1))
        assert load_checkpoint(part / run.CHECKPOINT).about["step"] == 2
        resumed = train(config(store, part, **plain, log_every=1, resume=True))
        assert same(tensors(resumed), tensors(whole))
        assert read_header(resumed)["metrics"] == header["metrics"]

    def test_episodes_must_be_as_long_as_lead_and_sequence(
        self, data: Path, tmp_path: Path
    ) -> None:
        length = FAST.lead + FAST.length
        with pytest.raises(ValueError, match=f"expected episodes of {length} frames and more"):
            train(config(data, tmp_path / "run", preset="scalor-fast"))
