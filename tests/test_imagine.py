"""SCALOR imagines: by its prior alone, from a seed, and going on from where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from objrl import cli
from objrl.models.median import Median
from objrl.models.scalor import Scalor
from objrl.models.scalor_generate import Footage, dream, imagine, watch
from objrl.models.scalor_networks import Backdrop
from objrl.models.space_background import Static
from objrl.pretrain.store import FrameWriter
from objrl.slots import NO_TRACK
from objrl.weights import save_weights
from tests.helpers import SMALL_SCALOR, bit_equal, make_scalor

SMALL = replace(SMALL_SCALOR, background="none")


def certain(model: Scalor, *, logit: float = 20.0, larger: float = 0.0) -> None:
    """Let the prior expect one thing whatever the past: everybody goes on as before."""
    with torch.no_grad():
        heads = model.propagation.prior_heads
        heads.weight.zero_()
        heads.bias.fill_(-20)  # no doubts: standard deviations of 1e-4
        heads.bias[0] = logit
        heads.bias[1:3] = larger
        heads.bias[3:5] = 0
        heads.bias[9] = 0
        heads.bias[11:15] = 0


def seen(model: Scalor, batch: int = 2, frames: int = 3) -> Footage:
    images = torch.rand(batch, frames, 3, *model.config.frame_size, generator=generator())
    images[..., 16:] = 0  # else it would be another scene to who knows a background
    return watch(model, images, model.initial_state(batch))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class TestFuture:
    @pytest.mark.parametrize("background", ["none", "decoder", "static"])
    def test_half_and_half_are_the_whole(self, background: Any) -> None:
        model = make_scalor(replace(SMALL, background=background))
        start = seen(model)
        torch.manual_seed(1)
        whole = imagine(model, start.state, 6, background=start.background, births=0.05)
        torch.manual_seed(1)
        first = imagine(model, start.state, 3, background=start.background, births=0.05)
        rest = imagine(model, first.state, 3, background=first.background, births=0.05)
        assert torch.equal(whole.images, torch.cat([first.images, rest.images], dim=1))
        assert bit_equal(whole.state, rest.state)
        assert whole.images.shape == (2, 6, 3, 32, 40)
        assert whole.images.min() >= 0
        assert whole.images.max() <= 1

    def test_a_seed_decides_and_disturbs_nobody(self) -> None:
        model = make_scalor(SMALL)
        state = seen(model).state
        torch.manual_seed(5)
        before = torch.get_rng_state()
        once, again, other = (imagine(model, state, 4, births=0.1, seed=s) for s in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(once.images, again.images)
        assert bit_equal(once.state, again.state)
        assert not torch.equal(once.images, other.images)

    def test_the_likeliest_needs_no_luck_and_no_neighbours(self) -> None:
        model = make_scalor(replace(SMALL, background="decoder"))
        state = seen(model, batch=3).state
        once, again = (imagine(model, state, 4, sample=False) for _ in range(2))
        assert torch.equal(once.images, again.images)
        alone = imagine(model, state[1:2], 4, sample=False)
        torch.testing.assert_close(once.images[1:2], alone.images, atol=1e-4, rtol=1e-4)

    def test_everybody_keeps_row_and_id_and_goes_on_as_the_prior_says(self) -> None:
        model = make_scalor(SMALL)
        certain(model)
        start = seen(model)
        bias = torch.tensor([-2.0, -2.0, 0.5, -0.25]).expand_as(start.state.bias)
        seated = torch.zeros_like(start.state.newborn)
        start = replace(start, state=replace(start.state, bias=bias, newborn=seated))
        alive, ids = start.state.alive, start.state.track_id
        assert alive.any()
        future = imagine(model, start.state, 3, seed=0)
        assert torch.equal(future.state.track_id, ids)
        assert all(torch.equal(s.track_id[..., 0], ids) for s in future.slots)
        gone = (future.state.z_where - start.state.z_where)[..., 2:][alive]
        step = SMALL.step * torch.tanh(torch.tensor([0.5, -0.25]))
        inside = (future.state.z_where[..., 2:].abs() < 1)[alive]
        torch.testing.assert_close(
            gone[inside], (3 * step).expand_as(gone)[inside], atol=2e-3, rtol=0
        )
        torch.testing.assert_close(
            future.state.z_where[..., :2][alive],
            torch.sigmoid(torch.tensor(-2.0)).expand_as(gone),
            atol=2e-3,
            rtol=0,
        )

    def test_where_in_its_cell_the_newborn_was_found_is_no_way_that_it_went(self) -> None:
        model = make_scalor(SMALL)
        certain(model)
        state = seen(model).state
        bias = torch.tensor([-2.0, -2.0, 0.5, -0.25]).expand_as(state.bias)
        for newborn, went in ((True, [0.0, 0.0]), (False, [0.5, -0.25])):
            new = torch.full_like(state.newborn, newborn)
            prior, _ = model.propagation.foresee(replace(state, bias=bias, newborn=new))
            torch.testing.assert_close(prior.where.mean[0, 0, 2:].tolist(), went)

    @pytest.mark.parametrize(("deletion", "frames"), [("patience", 3), ("paper", 1)])
    def test_who_is_drawn_absent_dies_by_the_models_own_rule(
        self, deletion: Any, frames: int
    ) -> None:
        model = make_scalor(replace(SMALL, deletion=deletion, patience=2))
        certain(model, logit=-40)
        start = seen(model)
        assert start.state.alive.any()
        future = imagine(model, start.state, 4, seed=0)
        assert not any(slots.mask.any() for slots in future.slots)
        # Not seen, and in the picture no more, but waited for.
        assert (future.images == 0).all()
        assert imagine(model, start.state, frames, seed=0).state.alive.sum() == 0
        if frames > 1:
            assert imagine(model, start.state, frames - 1, seed=0).state.alive.any()

    def test_births_take_free_rows_and_new_ids(self) -> None:
        model = make_scalor(replace(SMALL, max_slots=12, rejection=False))
        certain(model)
        start = seen(model, frames=1)
        ids = start.state.track_id
        few = imagine(model, start.state, 2, seed=0).state
        assert torch.equal(few.track_id, ids)
        many = imagine(model, start.state, 2, births=1.0, seed=0).state
        assert many.alive.all()
        old = ids != NO_TRACK
        assert torch.equal(many.track_id[old], ids[old])
        for b in range(2):
            new = many.track_id[b, ~old[b]]
            assert len(set(new.tolist())) == len(new)
            assert (new >= start.state.next_id[b]).all()

    def test_nobody_is_born_where_somebody_is(self) -> None:
        config = replace(SMALL, max_slots=30)
        model, free = make_scalor(config), make_scalor(replace(config, rejection=False))
        start = dream(model, 1, 1, first=1.0, seed=0).state
        for each in (model, free):
            certain(each, larger=3.0)  # nearly as large as the canvas
        assert torch.equal(
            imagine(model, start, 1, births=1.0, seed=0).state.track_id, start.track_id
        )
        assert imagine(free, start, 1, births=1.0, seed=0).state.alive.all()

    def test_a_known_background_stays(self) -> None:
        model = make_scalor(replace(SMALL, background="static"))
        assert isinstance(model.background, Static)
        model.background.faces.fill_(51)
        nobody = model.initial_state(2)
        usual = imagine(model, nobody, 2, seed=0)
        torch.testing.assert_close(usual.images, torch.full((2, 2, 3, 32, 40), 0.2))
        shown = torch.rand(2, 3, 32, 40)
        future = imagine(model, nobody, 3, background=shown, seed=0)
        torch.testing.assert_close(future.images, shown[:, None].expand(-1, 3, -1, -1, -1))

    def test_another_background_goes_by_its_transition(self) -> None:
        model = make_scalor(replace(SMALL, background="decoder"))
        assert isinstance(model.background, Backdrop)
        with torch.no_grad():
            model.background.transition.weight.zero_()
            model.background.transition.bias.copy_(torch.tensor([0.3] * 10 + [-20.0] * 10))
        start = seen(model).state
        future = imagine(model, start, 4, seed=0).state
        torch.testing.assert_close(future.z_bg, start.z_bg + 1.2, atol=2e-3, rtol=0)
        # Before the first frame there is nothing to go on from.
        begun = torch.stack([dream(model, 200, 1, first=0.0, seed=s).state.z_bg for s in (0, 1)])
        assert begun.mean().abs() < 0.1
        assert begun.std() == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"frames": 0}, "frames: expected at least 1, got 0"),
            ({"frames": 1, "births": 1.5}, r"births: expected a probability in \[0, 1\], got 1.5"),
        ],
    )
    def test_what_cannot_be_is_refused(self, asked: dict[str, Any], message: str) -> None:
        model = make_scalor(SMALL)
        with pytest.raises(ValueError, match=message):
            imagine(model, model.initial_state(1), **asked)
        with pytest.raises(ValueError, match=message):
            dream(model, 1, **asked)

    @pytest.mark.parametrize("background", ["none", "decoder", "static"])
    def test_an_agents_state_will_not_do(self, background: Any) -> None:
        model = make_scalor(replace(SMALL, background=background))
        start = seen(model).state
        frame = torch.full((2, 32, 40, 3), 200, dtype=torch.uint8)
        _, later = model.step(frame, start, torch.zeros(2, dtype=torch.bool))
        assert later.alive.any()
        with pytest.raises(ValueError, match=r"state: expected one after `watch`"):
            imagine(model, later, 1)

    def test_two_rows_that_come_to_lie_on_each_other_are_drawn_and_told(self) -> None:
        """Both are imagined: that one must be an error is a rule for what is seen."""
        model = make_scalor(replace(SMALL, doubled=0.5))
        certain(model)
        start = seen(model)
        where = start.state.z_where[:, :1].expand(-1, 6, -1)
        state = replace(start.state, z_where=where, bias=start.state.bias * 0)
        future = imagine(model, state, 2, seed=0)
        assert state.alive.sum(1).min() > 1
        for slots in future.slots:
            assert torch.equal(slots.mask, state.alive)


def test_a_dream_goes_on_with_its_background() -> None:
    model = make_scalor(replace(SMALL, background="decoder"))
    assert isinstance(model.background, Backdrop)
    with torch.no_grad():
        model.background.transition.weight.zero_()
        model.background.transition.bias.copy_(torch.tensor([0.3] * 10 + [-20.0] * 10))
    first = dream(model, 2, 1, first=0.0, seed=0).state
    second = dream(model, 2, 2, first=0.0, seed=0).state
    torch.testing.assert_close(second.z_bg, first.z_bg + 0.3, atol=2e-3, rtol=0)


def test_a_dream_begins_as_the_prior_has_it() -> None:
    model = make_scalor(replace(SMALL, max_slots=20, distinct=1.0))  # one row a cell
    certain(model)
    story = dream(model, 100, 2, first=0.2, seed=0)
    counts = [slots.mask.float().sum(1).mean() for slots in story.slots]
    assert counts[0] == pytest.approx(0.2 * 20, abs=0.5)
    assert counts[1] == counts[0]
    assert torch.equal(story.images, dream(model, 100, 2, first=0.2, seed=0).images)
    assert not dream(model, 2, 2, first=0.0, seed=0).state.alive.any()


class TestCommand:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> str:
        path = tmp_path / "scalor.safetensors"
        save_weights(
            path, make_scalor(SMALL), model_name="scalor", data={}, training={}, metrics={}
        )
        return str(path)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        """Six episodes of 10 frames, each frame brighter by 10 of 255."""
        count = 60
        step = np.arange(count) % 10
        frames = np.broadcast_to((step * 10)[:, None, None, None], (count, 32, 40, 3))
        with FrameWriter(
            tmp_path / "run.h5",
            frame_shape=(32, 40, 3),
            action_shape=(),
            action_dtype=np.int64,
            attributes={"env_id": "brighter", "policy": "none", "seed": 0},
            asked=count,
        ) as writer:
            rows = np.arange(count)
            writer.append(
                frames=frames.astype(np.uint8),
                action=rows,
                reward=rows.astype(np.float32),
                terminated=step == 9,
                truncated=np.zeros(count, bool),
                episode=rows // 10,
                step=step,
                stream=np.zeros(count, np.int64),
            )
        return tmp_path / "run.h5"

    @pytest.fixture
    def run(self, weights: str, tmp_path: Path) -> Callable[..., int]:
        def called(*words: str | Path) -> int:
            return cli.main(
                ["imagine", "--weights", weights, "--out", str(tmp_path / "out.png")]
                + [str(word) for word in words]
            )

        return called

    def test_it_draws_and_measures(
        self,
        run: Callable[..., int],
        store: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = ("--data", store, "--split", "train", "--seen", "2", "--frames", "3")
        assert run(*options, "--sequences", "2", "--from-nothing", "--boxes") == 0
        shown = capsys.readouterr().out
        assert "constant velocity" in shown
        assert "followed" in shown
        result = json.loads((tmp_path / "out.json").read_text())
        errors = result["scores"]["mean squared error"]
        # One frame ahead 10 of 255 brighter, two ahead 20, three ahead 30.
        expected = [(10 * k / 255) ** 2 for k in (1, 2, 3)]
        assert errors["last frame"] == pytest.approx(expected, rel=1e-4)
        assert set(errors) == {
            *("followed", "imagined", "likeliest", "constant velocity", "last frame")
        }
        picture = cv2.imread(str(tmp_path / "out.png"))
        assert picture is not None
        # Two rows for each of two sequences and one for each of two dreams, five frames wide.
        scale, edge = 4, 6
        assert picture.shape[1] == edge + 5 * (40 * scale + edge)
        assert picture.shape[0] == 22 + 6 * (32 * scale + 22) + edge
        orange = (picture == (40, 150, 255)).all(-1)
        assert orange[: picture.shape[0] // 3].any()
        assert not orange[:, : edge + 2 * (40 * scale + edge)][: picture.shape[0] // 2].any()

    def test_it_is_the_same_again(
        self, run: Callable[..., int], store: Path, tmp_path: Path
    ) -> None:
        made = []
        for _ in range(2):
            assert run("--data", store, "--split", "train", "--frames", "2", "--births", "0.1") == 0
            made.append([(tmp_path / name).read_bytes() for name in ("out.png", "out.json")])
        assert made[0] == made[1]

    def test_from_nothing_alone_needs_no_frames(
        self, run: Callable[..., int], tmp_path: Path
    ) -> None:
        assert run("--from-nothing", "--frames", "2", "--sequences", "3") == 0
        picture = cv2.imread(str(tmp_path / "out.png"))
        assert picture is not None
        assert picture.shape[0] == 22 + 3 * (32 * 4 + 22) + 6
        assert "scores" not in json.loads((tmp_path / "out.json").read_text())

    def test_labelled_sequences_will_do(
        self, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arrays = {
            "frames": np.random.default_rng(0).integers(0, 256, (9, 32, 40, 3), dtype=np.uint8),
            "classes": np.array(["square"]),
            "boxes": np.array([[t, 0, 3, 3, 5, 5] for t in range(9)]),
            "ids": np.zeros(9, np.int64),
            "sequence": np.array([0] * 6 + [1] * 3),
        }
        np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
        tracks = ("--tracks", tmp_path / "mine.npz")
        assert run(*tracks, "--seen", "2", "--frames", "4") == 0
        assert json.loads((tmp_path / "out.json").read_text())["sequences"] == 1
        capsys.readouterr()
        assert run(*tracks, "--seen", "2", "--frames", "5") == 2
        assert "expected sequences of 7 frames and more, got at most 6" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "expected --data FILE.h5, --tracks FILE.npz or --from-nothing, got none of them"),
            (("--data", "a.h5", "--tracks", "b.npz"), "got --data and --tracks"),
            (("--from-nothing", "--frames", "0"), "expected frames >= 1, got 0"),
            (("--from-nothing", "--births", "2"), "expected a probability in [0, 1], got 2.0"),
        ],
    )
    def test_wrong_options_are_refused(
        self,
        words: tuple[str, ...],
        message: str,
        run: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(*words) == 2
        assert message in capsys.readouterr().err

    def test_a_model_without_a_prior_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "median.safetensors"
        frames = np.zeros((2, 32, 40, 3), np.uint8)
        save_weights(
            path, Median.fit(frames), model_name="median", data={}, training={}, metrics={}
        )
        assert cli.main(["imagine", "--weights", str(path), "--from-nothing"]) == 2
        assert "expected weights of a SCALOR" in capsys.readouterr().err
