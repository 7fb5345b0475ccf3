"""`objrl pretrain` in trouble: killed, stopped, starved of disk, diverging, collapsing."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from objrl.checkpoint import load_checkpoint
from objrl.pretrain import health, tasks
from objrl.pretrain.space_task import Batch, SpaceTask
from objrl.pretrain.train import train
from objrl.stopping import asked_to_stop
from tests.squares import STEPS, command, config, events, make_frames, same, tensors, write_store
from tests.test_checkpoint import full_disk

pytestmark = pytest.mark.usefixtures("same_threads")


class TestResume:
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped"])
    def test_ends_bit_equal_with_a_run_that_was_not(
        self, how: signal.Signals, uninterrupted: Path, data: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        options = ["--steps", str(STEPS), "--log-every", "10", "--picture-every", "20"]
        process = _start(command(data, out, *options, "--checkpoint-every", "0"))
        while process.poll() is None and not (out / "checkpoint.safetensors").exists():
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))  # wherever in a step, or in a write, that is
        process.send_signal(how)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -how), said
        step = load_checkpoint(out / "checkpoint.safetensors").about["step"]
        assert 0 < step < STEPS
        time.sleep(1)  # the board's files are told apart, and ordered, by the second they begin in
        resumed = config(data, out, steps=STEPS, resume=True, log_every=10, picture_every=20)
        train(resumed)
        assert same(tensors(out), tensors(uninterrupted)), f"stopped at step {step}"
        # The board shows every step once, although some were taken twice.
        board = events(out)
        assert [entry.step for entry in board.Scalars("loss")] == [0, 10, 20, 30, STEPS - 1]

    def test_of_a_finished_run_only_writes_the_weights_again(
        self, data: Path, tmp_path: Path
    ) -> None:
        path = train(config(data, tmp_path / "run"))
        before = tensors(path)
        path.unlink()
        train(config(data, tmp_path / "run", resume=True))
        assert same(tensors(path), before)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"seed": 1}, "seed is 0 there and 1 here"),
            ({"steps": 9}, "recipe.steps is 3 there and 9 here"),
            ({"batch": 4}, "recipe.batch is 2 there and 4 here"),
            ({"steps": None, "minutes": 1.0}, "minutes is None there and 1.0 here"),
            ({"precision": "bf16-mixed"}, "precision is '32-true' there"),
        ],
    )
    def test_with_other_options_is_refused(
        self, data: Path, tmp_path: Path, changes: dict[str, Any], said: str
    ) -> None:
        train(config(data, tmp_path / "run", precision="32-true", steps=3))
        before = (tmp_path / "run/checkpoint.safetensors").read_bytes()
        other = config(data, tmp_path / "run", precision="32-true", resume=True)
        with pytest.raises(ValueError, match=re.escape(said)):
            train(dataclasses.replace(other, **changes))
        assert (tmp_path / "run/checkpoint.safetensors").read_bytes() == before

    def test_with_other_data_is_refused(self, data: Path, tmp_path: Path) -> None:
        train(config(data, tmp_path / "run"))
        other = write_store(tmp_path / "other.h5", make_frames(120, seed=1))
        with pytest.raises(ValueError, match=r"data\.sha256 is '\w+' there and '\w+' here"):
            train(config(other, tmp_path / "run", resume=True))

    def test_without_a_checkpoint_or_with_a_damaged_one_is_refused(
        self, data: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError, match="no such checkpoint to resume"):
            train(config(data, tmp_path / "run", resume=True))
        path = tmp_path / "run/checkpoint.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x00" * 100)
        with pytest.raises(ValueError, match="expected a whole checkpoint, got a damaged file"):
            train(config(data, tmp_path / "run", resume=True))


class TestTrouble:
    def test_a_full_disk_is_told_and_the_last_checkpoint_kept(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        room = full_disk(room=1_000_000)  # more than the logs need, less than a checkpoint

        class Filling(SpaceTask):
            calls = 0

            def forward(self, batch: Batch, at: float) -> tuple[Tensor, dict[str, Tensor]]:
                Filling.calls += 1
                if Filling.calls == 3:
                    room.__enter__()
                return super().forward(batch, at)

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "SpaceTask", Filling)
            try:
                with pytest.raises(OSError, match="could not write a checkpoint"):
                    train(config(data, out, steps=5, checkpoint_every=0, picture_every=100))
            finally:
                room.__exit__(None, None, None)
        assert load_checkpoint(out / "checkpoint.safetensors").about["step"] == 2
        path = train(config(data, out, steps=5, resume=True))
        train(config(data, tmp_path / "whole", steps=5))
        assert same(tensors(path), tensors(tmp_path / "whole"))

    def test_a_loss_that_is_not_finite_ends_the_run_before_it_spreads(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Diverging(SpaceTask):
            calls = 0

            def forward(self, batch: Batch, at: float) -> tuple[Tensor, dict[str, Tensor]]:
                total, terms = super().forward(batch, at)
                Diverging.calls += 1
                return total * (float("nan") if Diverging.calls == 5 else 1), terms

        monkeypatch.setattr(tasks, "SpaceTask", Diverging)
        with pytest.raises(FloatingPointError, match=r"not finite at step 4: .*checkpoint stays"):
            train(config(data, tmp_path / "run", steps=9, checkpoint_every=0))
        checkpoint = load_checkpoint(tmp_path / "run/checkpoint.safetensors")
        assert checkpoint.about["step"] == 4
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())

    @pytest.mark.parametrize(("bias", "said"), [(-9.0, "no objects"), (9.0, "everything is an")])
    def test_a_collapsed_run_begins_again_with_another_recipe(
        self,
        data: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        bias: float,
        said: str,
    ) -> None:
        class Collapsed(SpaceTask):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                assert self.model.foreground.heads.bias is not None
                with torch.no_grad():
                    self.model.foreground.heads.weight[0] = 0
                    self.model.foreground.heads.bias[0] = bias  # tanh saturates: no way back

        monkeypatch.setattr(tasks, "SpaceTask", Collapsed)
        monkeypatch.setattr(health, "_APART", 2)
        with pytest.warns(UserWarning, match=f"{said}.*; beginning again: presence") as caught:
            train(config(data, tmp_path / "run", steps=12, checkpoint_every=0, log_every=1))
        on_board = [scalar.step for scalar in events(tmp_path / "run").Scalars("loss")]
        assert on_board == list(range(12)), "attempts one after the other"
        again = [entry for entry in caught if "beginning again" in str(entry.message)]
        assert len(again) == 2, "three attempts and no more"
        report = json.loads((tmp_path / "run/report.json").read_text())
        assert said in report["warning"]
        assert len(report["mended"]) == 2
        # A run that was stopped after it began anew goes on with the recipe of then.
        before = tensors(tmp_path / "run/weights.safetensors")
        train(config(data, tmp_path / "run", steps=12, resume=True, log_every=1))
        assert same(tensors(tmp_path / "run/weights.safetensors"), before)


class TestStopping:
    def test_is_asked_first_and_insisted_on_second(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with asked_to_stop() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGTERM)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == before


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
