"""What several files of tests share: one short training run that nothing disturbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from objrl.pretrain.train import train
from tests.squares import STEPS, config, make_frames, write_store


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Give torch its threads back after a test that trains."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of squares."""
    return write_store(tmp_path_factory.mktemp("data") / "squares.h5", make_frames(120))


@pytest.fixture(scope="session")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of STEPS steps on it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    threads = torch.get_num_threads()
    train(config(data, out, steps=STEPS, log_every=10, picture_every=20))
    torch.set_num_threads(threads)
    return out
