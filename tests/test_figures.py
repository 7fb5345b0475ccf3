"""Figures of scene mixtures: every model has those that its paper shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from objrl.models.econ import Econ
from objrl.models.iodine import Iodine
from objrl.models.monet import Monet
from objrl.models.rmonet import Rmonet
from objrl.models.space import Space, SpaceConfig
from objrl.pretrain.figures import FiguresConfig, ambiguity, figures, traversals
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.weights.registry import save_weights
from tests import test_econ, test_iodine, test_monet, test_rmonet

MODELS: dict[str, Any] = {
    "monet": (Monet, test_monet.SMALL, set()),
    "rmonet": (Rmonet, test_rmonet.SMALL, set()),
    "iodine": (Iodine, test_iodine.SMALL, {"refinement", "ambiguity"}),
    "econ": (Econ, test_econ.SMALL, {"layers", "experts", "generated"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "scenes.h5"
    return generate_stills(ScenesConfig("econ_unique", out=path, frames=40, labelled=3))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_every_model_has_its_papers_figures(
    name: str, suffix: str, data: Path, tmp_path: Path
) -> None:
    kind, config, more = MODELS[name]
    torch.manual_seed(0)
    weights = tmp_path / "model.safetensors"
    save_weights(weights, kind(config), model_name=name, data={}, training={}, metrics={})
    asked = FiguresConfig(
        str(weights), data.with_suffix(suffix), tmp_path / "out", scenes=3, device="cpu"
    )
    paths = figures(asked)
    assert {path.stem for path in paths} == {"decomposition", "traversals"} | more
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert len(set(picture.reshape(-1, 3).sum(1).tolist())) > 20, f"{path.name} shows nothing"
    before = [path.read_bytes() for path in paths]
    figures(asked)
    assert [path.read_bytes() for path in paths] == before, "the same seed draws the same"


def test_only_scene_mixtures_have_figures(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "space.safetensors"
    model = Space(SpaceConfig(architecture="fast", background="static"))
    save_weights(weights, model, model_name="space", data={}, training={}, metrics={})
    with pytest.raises(ValueError, match="expected a scene mixture's"):
        figures(FiguresConfig(str(weights), data, tmp_path, device="cpu"))
    with pytest.raises(ValueError, match="scenes: expected at least 1"):
        figures(FiguresConfig(str(weights), data, tmp_path, scenes=0))


def test_a_traversal_changes_one_number() -> None:
    model = test_econ.build().eval()
    seen: list[torch.Tensor] = []
    paint = model.paint

    def watched(code: torch.Tensor) -> torch.Tensor:
        seen.append(code)
        return paint(code)

    model.paint = watched  # type: ignore[method-assign]
    with torch.no_grad():
        base = model.explain(test_econ.image(1)).code.mean
        traversals(model, test_econ.image(1), steps=3)
    assert len(seen) == 3
    for code in seen:
        assert ((code != base).flatten(1).sum(1) <= 1).all()
        assert len(code) == 2, "experts are no numbers to be changed"


def test_other_chances_leave_the_model_as_it_was() -> None:
    model = test_iodine.build().eval()
    before = model.noise.clone()
    ambiguity(model, test_iodine.blocks(1))
    assert torch.equal(model.noise, before)
