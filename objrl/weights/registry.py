"""Weights by name: what is shipped, and `load`, which makes a perceiver of a name or a path.

The registry is data: `index.json` beside the shipped files, which `register` writes and nobody
edits by hand. Reading it opens no weights file; a shipped file's SHA-256 is checked on loading.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from objrl.atomic import write_atomically
from objrl.perceiver import FramePerceiver, Perceiver
from objrl.weights import files
from objrl.weights.files import SUFFIX, read_model, save_weights

__all__ = [
    "WEIGHTS",
    "Weights",
    "list_weights",
    "load",
    "read_header",
    "read_index",
    "register",
    "resolve_device",
    "save_weights",
]

FOLDER: Traversable = resources.files("objrl.weights")
"""Where the shipped files are."""
INDEX = "index.json"


@dataclass(frozen=True)
class Weights:
    """One shipped weights file."""

    name: str
    """What `load` takes, e.g. space-space_invaders."""
    file: str
    """Its file beside the index."""
    sha256: str
    """Of the file, checked on loading."""
    model: str
    """Key of `objrl.models.MODELS`."""
    env_ids: tuple[str, ...]
    """Gymnasium ids of the game that they are for."""
    title: str
    """One line: what it is and what it learnt from."""
    metrics: Mapping[str, float]
    """Scores by name, as measured when it was made."""


def read_index(folder: Traversable) -> Mapping[str, Weights]:
    """Return the index of a folder of weights files, in its order; empty where there is none."""
    index = folder / INDEX
    entries = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return MappingProxyType(
        {
            name: Weights(name=name, **{**entry, "env_ids": tuple(entry["env_ids"])})
            for name, entry in entries.items()
        }
    )


POOR = 0.75
"""Shipped weights whose score is below warn when they are loaded."""

WEIGHTS: Mapping[str, Weights] = read_index(FOLDER)
"""The shipped weights by name."""


def list_weights() -> list[Weights]:
    """Return what is shipped; nothing is downloaded, and no weights file is opened."""
    return list(WEIGHTS.values())


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    max_slots: int | None = None,
) -> Perceiver:
    """Make a `Perceiver` from shipped weights or from a file.

    It is a `FramePerceiver`, with the model as its `detector`, unless the model has a memory of its
    own (SCALOR): then it is the model.

    Args:
        name_or_path: a name that `list_weights` shows, or the path of a `.safetensors` file.
        device: "auto" takes CUDA where there is one; else "cpu", "cuda" or "cuda:N".
        max_slots: K, the number of slots; by default the one that the model was trained with.

    Raises:
        ValueError: unknown name, a damaged or foreign file, a bad device or number of slots.
        FileNotFoundError: no such file.
    """
    place = resolve_device(device)
    name = str(name_or_path)
    if name.endswith(SUFFIX):
        made: Perceiver = _perceiver(read_model(name, max_slots=max_slots)).to(place)
        return made
    if name not in WEIGHTS:
        raise ValueError(_unknown_name(name))
    weights = WEIGHTS[name]
    _warn_if_poor(weights)
    with resources.as_file(FOLDER / weights.file) as path:
        _check_hash(path, weights.sha256)
        made = _perceiver(read_model(path, max_slots=max_slots)).to(place)
    return made


def _perceiver(model: nn.Module) -> Any:
    """Lend a memory to a model that has none of its own."""
    return model.eval() if isinstance(model, Perceiver) else FramePerceiver(model)


def read_header(name_or_path: str | Path) -> dict[str, Any]:
    """Return what weights say about themselves: model, config, data, training, metrics.

    Args:
        name_or_path: as `load` takes it.

    Raises:
        ValueError, FileNotFoundError: as `load`.
    """
    name = str(name_or_path)
    if name.endswith(SUFFIX):
        return files.read_header(name)
    if name not in WEIGHTS:
        raise ValueError(_unknown_name(name))
    with resources.as_file(FOLDER / WEIGHTS[name].file) as path:
        return files.read_header(path)


def _warn_if_poor(weights: Weights) -> None:
    """Say so if a detector is shipped although it did not come out well."""
    for score, meaning in (
        ("f1_centre", "F1 by centre against true boxes"),
        ("idf1_distance", "IDF1 by distance against true tracks"),
        ("val_agreement", "agreement with the no-learning baseline"),
    ):
        if score in weights.metrics:
            if weights.metrics[score] < POOR:
                warnings.warn(
                    f"{weights.name} did not come out well: {meaning} is "
                    f"{weights.metrics[score]:.2f} (its card, {weights.name}.md, tells more); "
                    "`objrl pretrain` on frames of your own agent may do better",
                    stacklevel=3,
                )
            return


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a user's word means; "auto" is CUDA where there is one.

    Raises:
        ValueError: not a device that objrl runs on, or CUDA that is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if there else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(device)):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got '{device}'")
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= there:
        raise ValueError(
            f"device: asked for '{device}', but torch {torch.__version__} sees {there} CUDA "
            "devices; use device='cpu' or 'auto', or a torch built for your driver"
        )
    return place


def register(
    path: str | Path, name: str, env_ids: Sequence[str], *, folder: Path | None = None
) -> Weights:
    """Ship a weights file: check it, copy it beside the index, and enter it there.

    Maintainers take `python -m objrl.pretrain.ship`, which also measures the weights and writes
    their card. A name that is there already is replaced. The next process sees it.

    Args:
        path: a file that `save_weights` wrote.
        name: lower-case words joined by `-` or `_`, as a rule model-game.
        env_ids: the Gymnasium ids of the game that it is for.
        folder: where the index is; by default this package's folder.

    Raises:
        ValueError: a bad name or file, a header that does not say what it learnt from, ids given
            as one string.
    """
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
        raise ValueError(f"name: expected lower-case words joined by - or _, got '{name}'")
    if isinstance(env_ids, str):
        raise ValueError(f"env_ids: expected a sequence of ids, got the string '{env_ids}'")
    read_model(path)  # a file that does not load must not be shipped
    header, data = files.read_header(path), Path(path).read_bytes()
    weights = Weights(
        name=name,
        file=name + SUFFIX,
        sha256=hashlib.sha256(data).hexdigest(),
        model=header["model"],
        env_ids=tuple(env_ids),
        title=_title(header),
        metrics=header["metrics"],
    )
    folder = folder or Path(str(FOLDER))
    entries = {known.name: _entry(known) for known in read_index(folder).values()}
    entries[name] = _entry(weights)
    # The file first: an index that names a file which is not there yet would be wrong.
    write_atomically(folder / weights.file, data)
    write_atomically(folder / INDEX, (json.dumps(entries, indent=2) + "\n").encode())
    return weights


def _entry(weights: Weights) -> dict[str, Any]:
    entry = dataclasses.asdict(weights)
    del entry["name"]
    return entry


def _title(header: Mapping[str, Any]) -> str:
    try:
        preset, frames = header["training"]["preset"], header["data"]["frames"]
        return f"{preset}, {frames:,} frames of {header['data']['env_id']}"
    except KeyError as error:
        raise ValueError(f"the header's data or training lacks {error}") from None


def _unknown_name(name: str) -> str:
    shipped = sorted(WEIGHTS)
    close = difflib.get_close_matches(name, shipped, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
    return (
        f"unknown weights '{name}'; {hint}Shipped: {', '.join(shipped) or 'none'}. "
        f"The path of a file must end in {SUFFIX}"
    )


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"shipped weights file '{path}' is gone; install objrl again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is not the file that was shipped: expected SHA-256 {expected}, got {found}; "
            "it was changed or cut short: install objrl again"
        )
