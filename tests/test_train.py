"""`objrl pretrain`: one loop, from frames to weights, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import objrl
from objrl.locking import Lock
from objrl.pretrain import train as train_module
from objrl.pretrain.batches import choose
from objrl.pretrain.collect import CollectConfig
from objrl.pretrain.store import FrameStore
from objrl.pretrain.train import TrainConfig, train
from objrl.weights import read_header
from tests.squares import STEPS, command, config, events, make_frames, same, tensors, write_store

pytestmark = pytest.mark.usefixtures("same_threads")


class TestARun:
    def test_leaves_weights_that_load_and_see(self, uninterrupted: Path, data: Path) -> None:
        perceiver = objrl.load(uninterrupted / "weights.safetensors", device="cpu")
        slots = perceiver.encode(torch.from_numpy(make_frames(2, seed=9)))
        assert slots.position.shape == (2, perceiver.max_slots, 2)
        assert torch.isfinite(slots.what).all()
        assert (uninterrupted / "sheet.png").read_bytes()[:4] == b"\x89PNG"

    def test_says_in_the_weights_and_the_report_how_it_went(
        self, uninterrupted: Path, data: Path
    ) -> None:
        header = read_header(uninterrupted / "weights.safetensors")
        training = header["training"]
        assert (training["preset"], training["steps"], training["seed"]) == ("space-fast", STEPS, 0)
        assert training["recipe"]["steps"] == STEPS
        assert training["recipe"]["model"]["frame_size"] == [64, 64]
        assert 5 < training["found"]["width"] < 8  # the squares' side is 6
        assert training["seconds"] > 0
        assert training["cpu_seconds"] > 0
        assert "cpu" in training["machine"]
        with FrameStore(data) as store:
            assert header["data"] == store.fingerprint()
        assert {"val_elbo", "val_mse", "val_objects", "val_agreement"} <= header["metrics"].keys()
        report = json.loads((uninterrupted / "report.json").read_text())
        assert report["metrics"] == header["metrics"]
        assert report["steps"] == STEPS

    def test_learns(self, uninterrupted: Path) -> None:
        losses = events(uninterrupted).Scalars("loss")
        assert losses[-1].value < losses[0].value

    def test_shows_scalars_and_pictures(self, uninterrupted: Path) -> None:
        board = events(uninterrupted)
        names = {"loss", "nll", "kl_pres", "objects", "mse", "gradient", "val_mse"}
        assert names <= set(board.Tags()["scalars"])
        assert [entry.step for entry in board.Scalars("loss")] == [0, 10, 20, 30, STEPS - 1]
        pictures = board.Images("frames")
        assert [entry.step for entry in pictures] == [0, 20, STEPS - 1]
        # Five panels side by side for each of four frames: input, boxes, parts, mask.
        assert pictures[0].width > pictures[0].height
        assert pictures[0].encoded_image_string[:4] == b"\x89PNG"

    def test_by_time_ends_in_time_in_what_as_many_steps_give(
        self, data: Path, tmp_path: Path
    ) -> None:
        began = time.monotonic()
        train(config(data, tmp_path / "timed", steps=None, minutes=0.05))
        assert time.monotonic() - began < 15
        steps = read_header(tmp_path / "timed/weights.safetensors")["training"]["steps"]
        assert steps > 5
        train(config(data, tmp_path / "counted", steps=steps))
        assert same(tensors(tmp_path / "timed"), tensors(tmp_path / "counted"))
        again = config(data, tmp_path / "timed", steps=None, minutes=0.05, resume=True)
        train(again)  # is done already: the checkpoint knows how many steps fitted
        assert same(tensors(tmp_path / "timed"), tensors(tmp_path / "counted"))

    def test_in_bfloat16_stays_finite(self, data: Path, tmp_path: Path) -> None:
        path = train(config(data, tmp_path / "run", precision="bf16-mixed", steps=6))
        kinds = {name: t.dtype for name, t in tensors(path).items()}
        assert kinds.pop("background.faces") == torch.uint8
        assert set(kinds.values()) == {torch.float32}
        assert all(torch.isfinite(t).all() for t in tensors(path).values())

    def test_a_healthy_run_is_not_warned_of(self, uninterrupted: Path) -> None:
        assert json.loads((uninterrupted / "report.json").read_text())["warning"] == ""

    def test_a_folder_that_holds_a_run_is_left_alone(self, data: Path, uninterrupted: Path) -> None:
        before = (uninterrupted / "weights.safetensors").read_bytes()
        with pytest.raises(FileExistsError, match=r"holds a run; go on with --resume"):
            train(config(data, uninterrupted))
        assert (uninterrupted / "weights.safetensors").read_bytes() == before

    def test_a_folder_that_another_run_writes_is_left_alone(
        self, data: Path, tmp_path: Path
    ) -> None:
        with Lock(tmp_path), pytest.raises(ValueError, match="folder that nobody writes"):
            train(config(data, tmp_path))
        assert not list(tmp_path.iterdir())


class TestEnv:
    def test_frames_are_collected_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        asked: list[int] = []

        def collect(wanted: CollectConfig) -> Path:
            asked.append(wanted.frames)
            assert wanted.out is not None
            wanted.out.parent.mkdir(exist_ok=True)
            wanted.out.unlink(missing_ok=True)
            frames = make_frames(min(wanted.frames, 60))
            return write_store(wanted.out, frames, env_id=str(wanted.env))

        monkeypatch.setattr(train_module, "collect", collect)
        plain = TrainConfig(env="ALE/SpaceInvaders-v5", steps=1, batch=2, device="cpu")

        def again(number: int, **changes: Any) -> Path:
            return train(dataclasses.replace(plain, out=Path(f"run{number}"), **changes))

        assert train(plain) == Path("runs/space_invaders-space-fast/weights.safetensors")
        again(1)
        assert asked == [20_000], "collected the first time, reused the second"
        again(2, frames=60)
        assert asked == [20_000]
        again(3, frames=80)
        assert asked == [20_000, 80], "more are asked for than there are"

        Path("runs/space_invaders.h5").unlink()
        cut = Path("runs/space_invaders.h5")
        write_store(cut, make_frames(30), env_id="ALE/SpaceInvaders-v5", asked=90)
        again(4)
        assert asked == [20_000, 80, 20_000], "a collection that was killed is gone on with"

        cut.unlink()
        write_store(cut, make_frames(30)[:0], env_id="ALE/SpaceInvaders-v5", asked=90)
        again(5)
        assert asked == [20_000, 80, 20_000, 20_000], "killed before its first frame"

        with pytest.raises(ValueError, match=r"expected frames of SpaceInvadersNoFrameskip-v4"):
            again(6, env="SpaceInvadersNoFrameskip-v4")

    def test_a_real_game_from_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = train(TrainConfig(env="ALE/Pong-v5", frames=120, steps=1, batch=2, device="cpu"))
        assert path == Path("runs/pong-space-fast/weights.safetensors")
        assert objrl.load(path, device="cpu").max_slots > 0
        with FrameStore("runs/pong.h5") as store:
            assert (store.env_id, len(store)) == ("ALE/Pong-v5", 120)

    def test_an_unknown_game(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"got 'ALE/Pnog-v5'; did you mean ALE/Pong-v5"):
            train(TrainConfig(env="ALE/Pnog-v5"))
        assert os.listdir(tmp_path) == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("frames", "said"),
        [
            (np.full((60, 64, 64, 3), 7, np.uint8), "expected things that move"),
            (np.repeat(make_frames(1), 60, axis=0), "expected things that move"),
            (make_frames(1), "split 'val', got none of 1; collect more"),
        ],
        ids=["one colour", "still", "one frame"],
    )
    def test_frames_to_learn_nothing_from(
        self, tmp_path: Path, frames: np.ndarray[Any, np.dtype[np.uint8]], said: str
    ) -> None:
        path = write_store(tmp_path / "frames.h5", frames)
        with pytest.raises(ValueError, match=said):
            train(config(path, tmp_path / "run"))
        assert not (tmp_path / "run/checkpoint.safetensors").exists()

    def test_few_frames_are_enough_to_run(self, tmp_path: Path) -> None:
        path = write_store(tmp_path / "frames.h5", make_frames(12), episode=12)
        assert train(config(path, tmp_path / "run", batch=16)).exists()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"data": ()}, "expected one of --data and --env, got data=nothing and env=nothing"),
            ({"env": "ALE/Pong-v5"}, "expected one of --data and --env"),
            ({"frames": 9}, "frames: expected it without --data"),
            ({"minutes": 1.0}, "expected minutes or steps, got both"),
            ({"steps": None, "minutes": 0.0}, "minutes: expected more than 0, got 0.0"),
            ({"steps": None, "minutes": float("nan")}, "minutes: expected more than 0, got nan"),
            ({"steps": 0}, "steps: expected at least 1, got 0"),
            ({"batch": 0}, "batch: expected at least 1, got 0"),
            ({"batch": 3, "devices": 2}, "batch: expected a multiple of the 2 devices, got 3"),
            ({"threads": 0}, "threads: expected at least 1, got 0"),
            ({"seed": -1}, "seed: expected at least 0, got -1"),
            ({"log_every": 0}, "log_every: expected at least 1, got 0"),
            ({"checkpoint_every": -1.0}, "checkpoint_every: expected at least 0, got -1.0"),
            ({"preset": "space-fst"}, "space-fast"),
            ({"preset": "nonsense"}, "space-paper-room_small"),
            ({"device": "cuda", "devices": 99, "batch": 99}, "expected 99 CUDA device"),
        ],
    )
    def test_bad_settings(
        self, data: Path, tmp_path: Path, changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(said)):
            train(dataclasses.replace(config(data, tmp_path / "run"), **changes))
        assert not (tmp_path / "run").exists()

    def test_data_that_are_not_there_or_cut_short(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"gone.h5: no such file"):
            train(config(tmp_path / "gone.h5", tmp_path / "run"))
        short = tmp_path / "short.h5"
        short.write_bytes(data.read_bytes()[:-5000])
        with pytest.raises(ValueError, match="cut short or damaged"):
            train(config(short, tmp_path / "run"))


class TestBatches:
    def test_follow_from_seed_step_and_rank(self) -> None:
        rows = np.arange(100)
        first = choose(rows, 8, seed=0, step=3, rank=0)
        assert len(set(first)) == 8
        assert np.array_equal(first, choose(rows, 8, seed=0, step=3, rank=0))
        for other in ({"seed": 1}, {"step": 4}, {"rank": 1}):
            changed = choose(rows, 8, **({"seed": 0, "step": 3, "rank": 0} | other))
            assert not np.array_equal(first, changed), other

    def test_draw_a_frame_twice_only_when_there_are_too_few(self) -> None:
        assert sorted(choose(np.arange(5), 5, seed=0, step=0, rank=0)) == [0, 1, 2, 3, 4]
        assert len(choose(np.arange(5), 12, seed=0, step=0, rank=0)) == 12


@pytest.mark.slow
class TestSlow:
    def test_two_processes_train_one_model(self, data: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        options = ("--devices", "2", "--steps", "4", "--log-every", "1")
        done = subprocess.run(
            command(data, out, *options), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert all(torch.isfinite(tensor).all() for tensor in tensors(out).values())
        assert "2 x cpu" in read_header(out / "weights.safetensors")["training"]["machine"]
        # Had both drawn the same frames and noise, the mean of their gradients were that of one.
        train(config(data, tmp_path / "alone", steps=4, batch=1))
        assert not same(tensors(out), tensors(tmp_path / "alone"))

    def test_two_processes_are_refused_before_they_meet(self, data: Path, tmp_path: Path) -> None:
        with Lock(tmp_path):
            done = subprocess.run(
                command(data, tmp_path, "--devices", "2"),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        assert done.returncode == 2
        assert "folder that nobody writes" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("name", ["space-paper-space_invaders", "space-paper-room_small"])
    def test_the_papers_presets_run(self, data: Path, tmp_path: Path, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two steps are a collapse to the eye
            path = train(config(data, tmp_path / "run", preset=name, steps=2))
        assert all(torch.isfinite(tensor).all() for tensor in tensors(path).values())
        assert objrl.load(path, device="cpu").max_slots == 64
