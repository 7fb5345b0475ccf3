"""Checkpoints: what is saved comes back bit by bit, what is damaged says so, nothing is torn."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from objrl.checkpoint import load_checkpoint, restore, save_checkpoint


def make(seed: int, inputs: int = 3) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, 4), nn.Linear(4, 1))
    first, second = model
    return model, [
        torch.optim.Adam(first.parameters(), lr=0.1),
        torch.optim.RMSprop(second.parameters(), lr=0.1),
    ]


def take_steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], count: int) -> None:
    frames = torch.linspace(-1, 1, 12).view(4, 3)
    for _ in range(count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(frames).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def saved(path: Path, steps: int = 2) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    model, optimizers = make(0)
    take_steps(model, optimizers, steps)
    save_checkpoint(path, model, optimizers, {"step": steps, "nested": {"lr": 0.1}})
    return model, optimizers


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file grow beyond that many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_restored_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = saved(path)
    take_steps(model, optimizers, 3)
    other, others = make(1)
    checkpoint = load_checkpoint(path)
    assert checkpoint.about == {"step": 2, "nested": {"lr": 0.1}}
    restore(checkpoint, other, others)
    take_steps(other, others, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    saved(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="expected a whole checkpoint, got a damaged file"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    saved(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="their digest differs"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"format": "else"})
    with pytest.raises(ValueError, match="got a file with format 'else'"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint to resume"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    saved(path)
    with pytest.raises(ValueError, match="expected a checkpoint of this Sequential"):
        restore(load_checkpoint(path), *make(0, inputs=5))


def test_a_full_disk_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = saved(path)
    before = path.read_bytes()
    take_steps(model, optimizers, 1)
    with (
        full_disk(room=500),
        pytest.raises(
            OSError, match=r"could not write a checkpoint .*; the one before it is whole"
        ),
    ):
        save_checkpoint(path, model, optimizers, {"step": 3})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_write_that_dies_keeps_the_one_before_and_is_swept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = saved(path)
    before = path.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_checkpoint(path, model, optimizers, {"step": 3})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    # A killed process cannot tidy up after itself; the next one does.
    (tmp_path / f".{path.stem}.12345.tmp{path.suffix}").write_bytes(before[:100])
    save_checkpoint(path, model, optimizers, {"step": 4})
    assert os.listdir(tmp_path) == [path.name]
    assert load_checkpoint(path).about == {"step": 4}
