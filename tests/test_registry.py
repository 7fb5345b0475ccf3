"""Weights files and the registry: what is written comes back, what is damaged is named."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from objrl import list_weights, load, models
from objrl.perceiver import FramePerceiver, model_of
from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.truth import read_truth
from objrl.slots import Slots
from objrl.weights import (
    Weights,
    read_header,
    register,
    registry,
    resolve_device,
    save_weights,
)
from objrl.weights.files import SUFFIX

DATA = {"env_id": "Stub/Game-v0", "frames": 1200, "sha256": "ab", "policy": "random", "seed": 1}
TRAINING = {"preset": "stub-fast", "steps": 7, "seconds": 1.5}
METRICS = {"f1_centre": 0.5, "mse": 1e-3}


@dataclass(frozen=True)
class CanvasConfig:
    sides: tuple[int, int] = (2, 3)
    widths: tuple[int, ...] = (1, 2, 3)


@dataclass(frozen=True)
class StubConfig:
    max_slots: int = 3
    what_size: int = 2
    rate: float = 0.25
    note: str | None = None
    canvas: CanvasConfig = CanvasConfig()


class Stub(nn.Module):
    """A detector that sees one object in the middle, whose look is the frame's mean colour."""

    def __init__(self, config: StubConfig) -> None:
        super().__init__()
        self.config = config
        self.max_slots = config.max_slots
        self.what_size = config.what_size
        self.look = nn.Linear(3, config.what_size)
        self.register_buffer("background", torch.zeros(3, *config.canvas.sides))

    def detect(self, frames: Tensor) -> Slots:
        slots = Slots.empty(len(frames), self.max_slots, self.what_size)
        slots.presence[:, 0] = 1
        slots.scale[:, 0] = 0.5
        slots.what[:, 0] = self.look(frames.float().mean((1, 2)))
        return slots


class Other(Stub):
    pass


@pytest.fixture(autouse=True)
def stub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODELS", {"stub": (StubConfig, Stub)})


@pytest.fixture
def model() -> Stub:
    torch.manual_seed(0)
    return Stub(StubConfig(note="hand", canvas=CanvasConfig(sides=(4, 5), widths=(9,))))


@pytest.fixture
def saved(model: Stub, tmp_path: Path) -> Path:
    return save(tmp_path / "stub.safetensors", model)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path) -> Path:
    """A folder of shipped weights that holds `stub-game`."""
    folder = tmp_path / "shelf"
    register(saved, "stub-game", ["Stub/Game-v0", "StubNoFrameskip-v4"], folder=folder)
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setattr(registry, "WEIGHTS", registry.read_index(folder))
    return folder


def save(path: Path, model: nn.Module, **changes: Any) -> Path:
    words = {"model_name": "stub", "data": DATA, "training": TRAINING, "metrics": METRICS} | changes
    return save_weights(path, model, **words)


def rewrite(path: Path, header: dict[str, str | None], tensors: dict[str, Tensor | None]) -> None:
    """Change a file's header and tensors behind objrl's back; None removes."""
    with safe_open(path, framework="pt") as file:
        fields = dict(file.metadata()) | header
    held = dict(safetensors.torch.load_file(path)) | tensors
    data = safetensors.torch.save(
        {name: tensor for name, tensor in held.items() if tensor is not None},
        {name: value for name, value in fields.items() if value is not None},
    )
    path.write_bytes(data)


def frames(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 6, 8, 3), dtype=torch.uint8, generator=generator)


def test_a_loaded_model_is_the_saved_one(model: Stub, saved: Path) -> None:
    perceiver = load(saved, device="cpu")
    assert isinstance(perceiver, FramePerceiver)
    assert perceiver.detector.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(perceiver.detector.state_dict()[name], tensor), name
    slots, expected = perceiver.encode(frames()), model.eval().detect(frames())
    assert torch.equal(slots.what, expected.what)
    assert not perceiver.training


def test_the_header_tells_where_the_model_comes_from(saved: Path) -> None:
    header = read_header(saved)
    assert header["format"] == "objrl-weights-1"
    assert header["model"] == "stub"
    assert header["licence"] == "MIT"
    assert (header["data"], header["training"], header["metrics"]) == (DATA, TRAINING, METRICS)
    assert header["config"]["canvas"] == {"sides": [4, 5], "widths": [9]}


def test_a_name_has_a_header_too(saved: Path) -> None:
    known = list_weights()[0]
    assert read_header(known.name)["model"] == known.model
    with pytest.raises(ValueError, match="did you mean 'space-pong'"):
        read_header("space-pog")


@pytest.mark.parametrize(
    "weights", [w for w in list_weights() if w.env_ids], ids=lambda weights: weights.name
)
def test_what_is_shipped_says_which_emulator_frames_it_learnt_from(weights: Weights) -> None:
    assert read_header(weights.name)["data"]["last_two"] == 0


def test_equal_models_make_equal_files(model: Stub, saved: Path, tmp_path: Path) -> None:
    copies = [save(tmp_path / f"{i}.safetensors", model).read_bytes() for i in range(5)]
    assert set(copies) == {saved.read_bytes()}


def test_max_slots_replaces_the_number_of_slots(saved: Path) -> None:
    perceiver = load(saved, max_slots=7)
    assert perceiver.max_slots == 7
    assert perceiver.encode(frames()).presence.shape == (2, 7, 1)
    with pytest.raises(ValueError, match="max_slots: expected at least 1, got 0"):
        load(saved, max_slots=0)


def test_a_config_may_grow_but_not_shrink(model: Stub, saved: Path) -> None:
    config = dataclasses.asdict(model.config)
    del config["rate"]
    rewrite(saved, {"config": json.dumps(config)}, {})
    assert model_of(load(saved)).config.rate == 0.25
    rewrite(saved, {"config": json.dumps(config | {"glow": 1})}, {})
    with pytest.raises(ValueError, match=r"StubConfig has no field glow; .*newer objrl"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_slots": "many"}, "max_slots: expected int, got 'many'"),
        ({"max_slots": True}, "max_slots: expected int, got True"),
        ({"canvas": {"sides": [1, 2, 3]}}, r"sides: expected tuple\[int, int\], got \[1, 2, 3\]"),
        ({"canvas": 3}, "canvas: expected the fields of CanvasConfig, got 3"),
    ],
)
def test_a_config_of_other_types_is_refused(
    change: dict[str, Any], message: str, model: Stub, saved: Path
) -> None:
    rewrite(saved, {"config": json.dumps(dataclasses.asdict(model.config) | change)}, {})
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(poison: float, model: Stub, saved: Path) -> None:
    bad = torch.full((2, 3), poison)
    rewrite(saved, {}, {"look.weight": bad})
    with pytest.raises(ValueError, match=r"stub\.safetensors: NaN or infinity in look\.weight;"):
        load(saved)
    model.look.weight.data = bad
    before = saved.read_bytes()
    with pytest.raises(ValueError, match=r"model: NaN or infinity in look\.weight"):
        save(saved, model)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_cut_short_is_no_weights_file(kept: int, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    for read in (load, read_header):
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read(saved)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save(Bomb(), tmp_path / "bomb.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(tmp_path / "bomb.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_tensors_of_another_model_are_listed_together(saved: Path) -> None:
    changes = {"look.bias": None, "horn": torch.zeros(1), "background": torch.zeros(1)}
    rewrite(saved, {}, changes)
    with pytest.raises(ValueError, match="is no Stub of its config") as caught:
        load(saved)
    for problem in ("missing look.bias", "unexpected horn", r"background: expected (3, 4, 5)"):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"model": "scalor"}, "unknown model 'scalor'; this objrl knows stub"),
        ({"format": None}, "expected format 'objrl-weights-1' in its header, got None"),
        ({"format": "objrl-weights-9"}, "got 'objrl-weights-9'"),
        ({"config": None, "data": None}, "its header lacks config, data"),
        ({"training": "{"}, "'training' in its header is not JSON"),
    ],
)
def test_a_foreign_header_is_refused(
    header: dict[str, str | None], message: str, saved: Path
) -> None:
    rewrite(saved, header, {})
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file '.*gone\.safetensors'"):
        load(tmp_path / "gone.safetensors")


def test_saving_checks_what_it_is_given(model: Stub, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        save(tmp_path / "a.pt", model)
    with pytest.raises(ValueError, match=r"model_name: unknown model 'spaec'; .* knows stub"):
        save(path, model, model_name="spaec")
    with pytest.raises(TypeError, match="expected a Stub for model_name 'stub', got Sequential"):
        save(path, nn.Sequential(model))
    with pytest.raises(ValueError, match=r"metrics: expected finite JSON-plain values, got .*nan"):
        save(path, model, metrics={"f1": float("nan")})
    with pytest.raises(ValueError, match="data: expected finite JSON-plain values"):
        save(path, model, data={"image": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(
    model: Stub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = saved.read_bytes()
    model.look.bias.data += 1
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save(saved, model)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_registered_weights_load_by_name(model: Stub, shelf: Path) -> None:
    (weights,) = list_weights()
    assert (weights.name, weights.model, weights.metrics) == ("stub-game", "stub", METRICS)
    assert weights.title == "stub-fast, 1,200 frames of Stub/Game-v0"
    assert weights.env_ids == ("Stub/Game-v0", "StubNoFrameskip-v4")
    assert torch.equal(model_of(load("stub-game", device="cpu")).look.weight, model.look.weight)


def test_registering_again_replaces_and_keeps_the_others(model: Stub, shelf: Path) -> None:
    first = registry.WEIGHTS["stub-game"]
    model.look.bias.data += 1
    path = save(shelf.parent / "new.safetensors", model)
    register(path, "stub-other", ["Stub/Other-v0"], folder=shelf)
    again = register(path, "stub-game", ["Stub/Game-v0"], folder=shelf)
    index = registry.read_index(shelf)
    assert list(index) == ["stub-game", "stub-other"]
    assert index["stub-game"] == again != first


@pytest.mark.parametrize("damage", ["tampered", "cut", "gone"])
def test_a_damaged_shipped_file_is_refused(damage: str, shelf: Path) -> None:
    path = shelf / "stub-game.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "tampered":
        data[-1] ^= 1  # a still finite number: only the hash can tell
    elif damage == "cut":
        data = data[:-8]
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
        with pytest.raises(FileNotFoundError, match="is gone; install objrl again"):
            load("stub-game")
    else:
        with pytest.raises(ValueError, match=r"not the file that was shipped: expected SHA-256"):
            load("stub-game")


def test_an_unknown_name_gets_help(shelf: Path) -> None:
    with pytest.raises(ValueError, match=r"'stub-gmae'; did you mean 'stub-game'\?") as caught:
        load("stub-gmae")
    assert "Shipped: stub-game." in str(caught.value)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        load("runs/model.pt")


def test_registering_checks_first(saved: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    with pytest.raises(ValueError, match="expected lower-case words joined by - or _"):
        register(saved, "../evil", ["Stub/Game-v0"], folder=shelf)
    with pytest.raises(ValueError, match="expected a sequence of ids, got the string"):
        register(saved, "stub-game", "Stub/Game-v0", folder=shelf)
    rewrite(saved, {}, {"look.bias": torch.full((2,), torch.nan)})
    with pytest.raises(ValueError, match="NaN"):
        register(saved, "stub-game", ["Stub/Game-v0"], folder=shelf)
    assert not shelf.exists()


def test_a_device_is_what_it_says(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"):
        load(saved, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"asked for 'cuda', but torch .* sees 0 CUDA devices"):
        load(saved, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"asked for 'cuda:1', .* sees 1 CUDA"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_real_model_comes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real models
    config_class, model_class = models.MODELS[name]
    torch.manual_seed(0)
    plain = config_class()
    config = plain.with_slots(5) if hasattr(plain, "with_slots") else config_class(max_slots=5)
    saved = model_class(config)
    model = model_of(load(save(tmp_path / "a.safetensors", saved, model_name=name)))
    assert type(model) is model_class
    assert model.config == config
    assert model.state_dict().keys() == saved.state_dict().keys()
    for key, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[key].cpu(), tensor), key


def test_index_and_folder_of_the_package_agree() -> None:
    files = {path.name for path in registry.FOLDER.iterdir() if path.name.endswith(SUFFIX)}
    assert files == {weights.file for weights in list_weights()}


def test_shipped_weights_are_what_the_index_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real models
    for weights in list_weights():
        load(weights.name, device="cpu")
        header = read_header(str(registry.FOLDER / weights.file))
        assert (weights.model, weights.metrics) == (header["model"], header["metrics"])


def test_shipped_weights_still_see_what_they_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real models
    # A change of arithmetic that leaves all shapes alone shows only here.
    sample = read_truth(Path(__file__).parent / "data" / "space_invaders_sample.npz")
    perceiver = load("space-space_invaders", device="cpu")
    metrics = evaluate_perceiver(perceiver, sample.frames, sample.truth).metrics()
    assert metrics["f1_centre"] > 0.97
    assert metrics["f1_iou"] > 0.95
