"""Scene mixtures in the training loop: every preset, drawn scenes, resuming, weights of terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import objrl
from objrl.checkpoint import load_checkpoint, restore, save_checkpoint
from objrl.perceiver import Perceiver
from objrl.pretrain import train as train_module
from objrl.pretrain.mixture_presets import (
    MIXTURES,
    EconRecipe,
    IodineRecipe,
    MonetRecipe,
    RmonetRecipe,
)
from objrl.pretrain.mixture_task import EconTask, IodineTask, MixtureTask
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.pretrain.store import FrameStore
from objrl.pretrain.tasks import make_task
from objrl.pretrain.train import TrainConfig, train
from objrl.schedule import Linear
from objrl.weights import read_header
from tests.squares import make_frames, same, tensors, write_store

pytestmark = pytest.mark.usefixtures("same_threads")
OURS = [name for name in MIXTURES if "paper" not in name and name != "iodine-sequences"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "tetris.h5"
    return generate_stills(ScenesConfig("tetris", out=path, frames=60, labelled=0))


def made(recipe: Any) -> MixtureTask[Any]:
    task = make_task(recipe, None)
    assert isinstance(task, MixtureTask)
    return task


def config(data: Path, out: Path, preset: str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"steps": 3, "batch": 2, "device": "cpu", **changes}
    return TrainConfig(data=(data,), out=out, preset=preset, **settings)


@pytest.mark.parametrize("name", OURS)
def test_a_run_leaves_weights_that_load_and_see(name: str, data: Path, tmp_path: Path) -> None:
    path = train(config(data, tmp_path / "run", name))
    header = read_header(path)
    assert header["model"] == name.partition("-")[0]
    assert {"val_elbo", "val_mse", "val_objects"} <= header["metrics"].keys()
    perceiver = objrl.load(path, device="cpu")
    assert isinstance(perceiver, Perceiver)
    with FrameStore(data) as store:
        frames = torch.from_numpy(store.frames([0, 1]))
    slots = perceiver.encode(frames)
    assert slots.what.shape == (2, perceiver.max_slots, perceiver.what_size)
    masks = perceiver.segment(frames)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, *frames.shape[1:3]))


@pytest.mark.parametrize("name", ["iodine-tetris", "rmonet-tetris", "econ-sprites"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(data, tmp_path / "whole", name))
    forward, calls = MixtureTask.forward, 0

    def stopped(self: MixtureTask[Any], batch: Any, at: float) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return forward(self, batch, at)

    monkeypatch.setattr(MixtureTask, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "cut", name, checkpoint_every=0.0))
    train(config(data, tmp_path / "cut", name, resume=True))
    assert same(tensors(tmp_path / "cut"), tensors(tmp_path / "whole"))


@pytest.mark.parametrize("name", [name for name in MIXTURES if "paper" in name])
def test_the_papers_networks_fit_together(name: str) -> None:
    recipe = MIXTURES[name]
    task = made(recipe)
    height, width = task.model.frame_size
    frames = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    total, terms = task(task.prepare(frames.numpy()), 0.0)
    assert torch.isfinite(total)
    assert {"nll", "kl_what", "loss", "objects", "mse"} <= terms.keys()


def test_the_papers_figures() -> None:
    """IODINE's appendix B, R-MONet's and MONet's tables."""
    iodine, tetris = MIXTURES["iodine-paper-multi_dsprites"], MIXTURES["iodine-paper-tetris"]
    assert isinstance(iodine, IodineRecipe)
    assert isinstance(tetris, IodineRecipe)
    assert (iodine.batch, iodine.lr, iodine.clip, iodine.optimizer) == (32, 3e-4, 5.0, "adam")
    assert (iodine.model.slots, iodine.model.refinements) == (6, 5)
    assert (tetris.model.slots, tetris.model.z_what, tetris.model.memory) == (4, 32, 0)
    rmonet, monet = MIXTURES["rmonet-paper-multi_dsprites"], MIXTURES["monet-paper-multi_dsprites"]
    assert isinstance(rmonet, RmonetRecipe)
    assert isinstance(monet, MonetRecipe)
    for recipe in (rmonet, monet):
        assert (recipe.sigma_bg, recipe.sigma_fg) == (0.09, 0.11)
        assert (recipe.beta, recipe.gamma) == (0.5, 0.5)
    assert monet.model.frame_size == rmonet.model.vae.frame_size == (64, 64)
    assert rmonet.model.vae.slots == 6
    assert monet.optimizer == "rmsprop"


def test_iodine_learns_from_sequences_and_follows(tmp_path: Path) -> None:
    data = write_store(tmp_path / "squares.h5", make_frames(120), episode=12)
    with pytest.raises(ValueError, match="expected one of --data and --env"):
        train(TrainConfig(preset="iodine-sequences"))
    path = train(config(data, tmp_path / "run", "iodine-sequences", steps=2))
    assert "val_mse" in read_header(path)["metrics"]
    perceiver = objrl.load(path, device="cpu")
    state = perceiver.initial_state(1)
    for time in range(2):
        frame = torch.from_numpy(make_frames(1, seed=time))
        slots, state = perceiver.step(frame, state, torch.tensor([time == 0]))
    assert (slots.track_id[slots.mask] >= 0).all()


def test_the_weight_of_geco_is_kept_in_checkpoints(data: Path, tmp_path: Path) -> None:
    recipe = MIXTURES["iodine-tetris"]
    assert isinstance(recipe, IodineRecipe)
    task = made(replace(recipe, goal=-1.0, step=1e-3))
    with FrameStore(data) as store:
        batch = task.prepare(store.frames([0, 1]))
    total, terms = task(batch, 0.0)
    torch.testing.assert_close(total, terms["nll"] + terms["kl_what"])  # it begins with 1
    assert terms["weight"] < 1, "the image is far from explained"
    save_checkpoint(tmp_path / "c.safetensors", task, task.optimizers(), {})
    other = made(task.recipe)
    restore(load_checkpoint(tmp_path / "c.safetensors"), other, other.optimizers())
    assert isinstance(task, IodineTask)
    assert isinstance(other, IodineTask)
    assert task.geco is not None
    assert other.geco is not None
    assert other.geco.weight == task.geco.weight


def test_weights_weigh_the_terms(data: Path) -> None:
    recipe = MIXTURES["monet-tetris"]
    assert isinstance(recipe, MonetRecipe)
    task = made(recipe).eval()
    with FrameStore(data) as store:
        batch = task.prepare(store.frames([0, 1]))
    total, terms = task(batch, 0.0)
    whole = terms["nll"] + recipe.beta * terms["kl_what"] + recipe.gamma * terms["kl_mask"]
    torch.testing.assert_close(total, whole)


def test_scenes_are_drawn_where_no_frames_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"steps": 1, "batch": 2, "device": "cpu"}
    path = train(TrainConfig(preset="econ-sprites", frames=50, **settings))
    assert path == Path("runs/econ-sprites/weights.safetensors")
    with FrameStore(Path("runs/econ_unique_own.h5")) as store:
        assert len(store) == 50
        assert store.env_id == "econ_unique"

    def never(_: Any) -> Path:
        raise AssertionError("they are there already")

    monkeypatch.setattr(train_module, "generate_stills", never)
    train(TrainConfig(preset="econ-sprites", out=Path("again"), **settings))
    with pytest.raises(ValueError, match="expected one of --data and --env"):
        train(TrainConfig(preset="space-fast"))


def test_experts_of_an_econ_come_in_one_after_the_other() -> None:
    torch.manual_seed(0)
    recipe = MIXTURES["econ-sprites"]
    assert isinstance(recipe, EconRecipe)
    task = EconTask(replace(recipe, alone=0.3, pair=0.5, balance=3.0)).train()
    experts = [task.model.get_submodule(f"experts.{number}") for number in range(4)]
    batch, inf = task.prepare(make_frames(4)), torch.inf
    task(batch, 0.2)[0].backward()
    learn = [any(p.grad is not None for p in expert.parameters()) for expert in experts]
    assert learn == [True, False, False, False]
    assert task.handicap.tolist() == [0, inf, inf, inf]
    task.eval()(batch, 0.4)
    assert task.handicap[1].isinf(), "held-out frames change nothing"
    task.train()(batch, 0.4)
    assert task.handicap.tolist() == [0, 0, inf, inf]
    task.share.copy_(torch.tensor([0.3, 0.7, 0.0, 0.0]))
    task(batch, 0.6)
    source = experts[1].state_dict()
    for copy in experts[2:]:
        for name, value in copy.state_dict().items():
            assert not torch.equal(value, source[name]) or not value.any(), name
            torch.testing.assert_close(value, source[name], rtol=0.12, atol=1e-6)
    won = task.handicap / 3.0 + 1  # of four parts a frame, by each
    assert won.sum().item() == pytest.approx(4)
    assert (won >= 0).all()
    again = EconTask(task.recipe)
    again.load_state_dict(task.state_dict())
    assert torch.equal(again.handicap, task.handicap), "who was killed goes on where it was"


def test_what_codes_are_to_be_weighs_as_the_recipe_says() -> None:
    torch.manual_seed(0)
    recipe = MIXTURES["econ-sprites"]
    assert isinstance(recipe, EconRecipe)
    fill, hide = Linear(0.0, 4.0, 0.5, 0.9), Linear(0.0, 3.0, 0.5, 0.9)
    recipe = replace(recipe, fill=fill, hide=hide)
    task = EconTask(recipe).train()
    batch = task.prepare(make_frames(4))
    _, before = task(batch, 0.5)
    assert not {"fill", "hide"} & set(before)
    total, means = task(batch, 0.7)
    weights = {"nll": 1.0, "kl_what": recipe.beta, "kl_mask": recipe.gamma(0.7)}
    weights |= {"fill": 2.0, "hide": 1.5}
    expected = sum(weight * means[name].item() for name, weight in weights.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="fill: expected to begin"):
        replace(recipe, fill=Linear(1.0))
