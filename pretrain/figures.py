"""`objrl figures`: the pictures that the papers of the scene mixtures show, of any weights.

- `decomposition.png`: scenes, what the model makes of them, whose pixel is whose, and every slot
  (IODINE fig. 4, R-MONet figs. 2 and 3, ECON fig. 6).
- `traversals.png`: one slot of a scene while one number of its code changes, those with the largest
  KL first (IODINE fig. 6).
- `refinement.png`: IODINE's guesses, one after the other (its fig. 7).
- `ambiguity.png`: what IODINE makes of one scene by other chances (its fig. 10).
- `layers.png`: what ECON takes of a scene step by step, and what it fills in (its fig. 4).
- `experts.png`, `generated.png`: what each expert of an ECON paints, and scenes that are layered of
  that (its figs. 1 and 7).

Letters: N scenes, K slots, D size of a code, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import objrl
from objrl import draw
from objrl.draw import Image
from objrl.frames import to_image
from objrl.models.econ import Econ
from objrl.models.iodine import Explained, Iodine
from objrl.models.mixture import MixtureDetector, Scene
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.perceiver import model_of
from objrl.pretrain.reading import sample
from objrl.pretrain.store import FrameStore
from objrl.pretrain.truth import read_truth

_TILE = 105
"""Least side of a tile in pixels."""


@dataclass(frozen=True)
class FiguresConfig:
    """Draw what a scene mixture (MONet, IODINE, R-MONet, ECON) makes of scenes."""

    weights: str
    """Name of shipped weights, or path of a .safetensors file."""
    data: Path
    """Scenes: a file of frames (.h5) or of labelled ones (.npz)."""
    out: Path | None = None
    """Folder of the pictures; by default runs/figures-WEIGHTS."""
    scenes: int = 8
    """How many scenes are drawn."""
    seed: int = 0
    """Of what is drawn by chance."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""


@torch.no_grad()
def figures(config: FiguresConfig) -> list[Path]:
    """Draw, and return the paths of the pictures.

    Raises:
        ValueError: weights of another kind of model, or no scenes.
        FileNotFoundError: no such file.
    """
    if config.scenes < 1:
        raise ValueError(f"scenes: expected at least 1, got {config.scenes}")
    perceiver = objrl.load(config.weights, device=config.device)
    model = model_of(perceiver)
    if not isinstance(model, MixtureDetector):
        raise ValueError(
            f"weights: expected a scene mixture's (MONet, IODINE, R-MONet, ECON), got those of "
            f"{type(model).__name__}; `objrl evaluate` draws what others see"
        )
    model.eval()
    image = to_image(_scenes(config).to(perceiver.device), *model.frame_size)
    torch.manual_seed(config.seed)
    drawn = {"decomposition": decomposition(model, image), "traversals": traversals(model, image)}
    if isinstance(model, Iodine):
        drawn |= {"refinement": refinement(model, image[:1]), "ambiguity": ambiguity(model, image)}
    if isinstance(model, Econ):
        drawn |= {"layers": layers(model, image[:2]), "experts": experts(model, config.scenes)}
        drawn |= {"generated": generated(model, image, config.scenes)}
    name = Path(config.weights)
    stem = name.resolve().parent.name if name.name == "weights.safetensors" else name.stem
    out = config.out or Path("runs", f"figures-{stem}")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for title, picture in drawn.items():
        paths.append(out / f"{title}.png")
        draw.write_png(paths[-1], picture)
    print(f"written: {', '.join(map(str, paths))}")
    return paths


def decomposition(model: MixtureDetector, image: Tensor) -> Image:
    """Draw (N, 3, H, W) scenes, one a row: itself, its mixture, whose pixel is whose, the slots."""
    scene = model.explain(image)
    columns = {
        "scene": _images(image),
        "mixture": _images(scene.image),
        "whose is what": _owners(scene),
    }
    for slot in range(scene.mask.shape[1]):
        columns[f"slot {slot}"] = _images(_cut(scene)[:, slot])
    return _sheet(columns)


def traversals(model: MixtureDetector, image: Tensor, steps: int = 7, rows: int = 6) -> Image:
    """Change one number of a slot's code at a time, from -2 to 2, in the first scene.

    The slot is the largest that is no background; its numbers with the largest KL come first.
    """
    scene = model.explain(image[:1])
    size = scene.mask[0, :, 0].sum((1, 2))
    size[scene.background[0]] = 0
    slot = int(size.argmax())
    mean, std = scene.code.mean, scene.code.std
    cost = gaussian_kl(Gaussian(mean, std.clamp(min=1e-4)), 0.0, 1.0)[0, slot]
    cost[std[0, slot] == 0] = -1  # who paints it is no number
    numbers = [n for n in cost.topk(min(rows, len(cost))).indices.tolist() if cost[n] >= 0]
    columns: dict[str, list[Image]] = {}
    for value in np.linspace(-2, 2, steps):
        changed = mean.repeat(len(numbers), 1, 1)
        for row, number in enumerate(numbers):
            changed[row, slot, number] = value
        columns[f"{value:+.1f}"] = _images(model.paint(changed))
    return _sheet(columns, [f"number {number} of slot {slot}" for number in numbers])


def refinement(model: Iodine, image: Tensor) -> Image:
    """Draw the guesses at one scene, one a row."""
    told: list[Explained] = model(image)
    scenes = [now.scene for now in told]
    columns = {
        "scene": [_images(image)[0]] * len(told),
        "mixture": [_images(scene.image)[0] for scene in scenes],
        "whose is what": [_owners(scene)[0] for scene in scenes],
    }
    for slot in range(scenes[0].mask.shape[1]):
        columns[f"slot {slot}"] = [_images(_cut(scene)[:, slot])[0] for scene in scenes]
    losses = [float(now.nll + now.kl) for now in told]
    return _sheet(columns, [f"{t} refinements: {loss:,.0f} nats" for t, loss in enumerate(losses)])


def ambiguity(model: Iodine, image: Tensor, chances: int = 5) -> Image:
    """Draw what is made of scenes by several chances: a scene that is no riddle looks the same."""
    columns = {"scene": _images(image)}
    kept = model.noise
    try:
        for number in range(chances):
            model.noise = torch.randn_like(kept)
            columns[f"chance {number}"] = _owners(model.explain(image))
    finally:
        model.noise = kept
    return _sheet(columns)


def layers(model: Econ, image: Tensor) -> Image:
    """Draw what is left, what is taken, what is painted and the whole shape, step by step."""
    out = model(image)
    columns: dict[str, list[Image]] = {name: [] for name in ("left", "taken", "painted", "shape")}
    titles = []
    for scene in range(len(image)):
        for step in range(out.winner.shape[1]):
            part = out.part
            shown = {
                "left": out.scope[scene, step] * image[scene],
                "taken": part.region[scene, step] * image[scene],
                "painted": part.mean[scene, step] * part.shape[scene, step],
                "shape": part.shape[scene, step].expand(3, -1, -1),
            }
            for name, value in shown.items():
                columns[name] += _images(value[None])
            titles.append(f"scene {scene}, step {step}: expert {int(out.winner[scene, step])}")
    return _sheet(columns, titles)


def experts(model: Econ, count: int) -> Image:
    """Draw what each expert paints of codes drawn from the prior, cut out of its shape."""
    z = torch.randn(count, model.config.experts, model.config.z_what, device=_device(model))
    who = torch.arange(model.config.experts, device=z.device).expand(count, -1)
    mean, shape = model.paint_parts(who, z)
    cut = mean * shape
    return _sheet({f"expert {k}": _images(cut[:, k]) for k in range(model.config.experts)})


def generated(model: Econ, image: Tensor, count: int) -> Image:
    """Draw scenes laid of the experts' samples: as in the scenes seen, and any objects at all.

    Behind all is the expert that the scenes' last steps have most often.
    """
    winner = model(image).winner
    device, total = winner.device, model.config.experts
    behind = winner[:, -1].bincount(minlength=total).argmax()
    objects = torch.tensor([k for k in range(total) if k != int(behind)] or [0], device=device)
    columns: dict[str, list[Image]] = {"seen": _images(image[:count])}
    seen = winner[torch.arange(count, device=device) % len(winner)]
    columns["experts as seen"] = _generate(model, seen)
    for number in (1, 2, 3, 4):
        front = objects[torch.randint(len(objects), (count, number), device=device)]
        who = torch.cat([front, behind.expand(count, 1)], 1)
        columns[f"any {number}"] = _generate(model, who)
    if len(columns["seen"]) < count:
        columns["seen"] += [np.zeros_like(columns["seen"][0])] * (count - len(columns["seen"]))
    return _sheet(columns)


def _generate(model: Econ, who: Tensor) -> list[Image]:
    """(N, T) experts, the front first -> N pictures; the last shape is everywhere."""
    z = torch.randn(*who.shape, model.config.z_what, device=who.device)
    known = torch.nn.functional.one_hot(who, model.config.experts).to(z.dtype)
    return _images(model.paint(torch.cat([z, known], -1)))


def _scenes(config: FiguresConfig) -> Tensor:
    """(N, H, W, 3) uint8 spread over the file."""
    if config.data.suffix == ".npz":
        frames: npt.NDArray[np.uint8] = read_truth(config.data).frames
        chosen = np.linspace(0, len(frames) - 1, min(config.scenes, len(frames))).astype(int)
        return torch.from_numpy(frames[chosen])
    with FrameStore(config.data) as store:
        return torch.from_numpy(sample(store, "val", config.scenes))


def _cut(scene: Scene) -> Tensor:
    """(N, K, 3, H, W) what each slot paints, on white where it is not seen."""
    return scene.mask * scene.mean + (1 - scene.mask)


def _owners(scene: Scene) -> list[Image]:
    """Colour every pixel by the slot that has most of it; the background is black."""
    colours = np.array([draw.track_colour(k) for k in range(scene.mask.shape[1])], np.uint8)
    owner = scene.mask[:, :, 0].argmax(1).cpu().numpy()
    behind = scene.background.cpu().numpy()
    pictures = []
    for own, last in zip(owner, behind, strict=True):
        picture = colours[own]
        picture[own == last] = 0
        pictures.append(picture)
    return pictures


def _images(tensor: Tensor) -> list[Image]:
    """(N, 3, H, W) in [0, 1] -> N images."""
    values = tensor.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(values)


def _sheet(columns: dict[str, list[Image]], rows: list[str] | None = None) -> Image:
    height, width = next(iter(columns.values()))[0].shape[:2]
    scale = max(1, -(-_TILE // width))
    return draw.sheet(columns, scale * height, scale * width, rows)


def _device(model: MixtureDetector) -> torch.device:
    return next(model.parameters()).device
