"""Checkpoints without pickle: tensors in one safetensors file, the rest as JSON in its header.

A checkpoint is whole or not there: it is written under another name, brought to the disk, and
then renamed, so that the one before it is kept until then. A digest of the tensors tells a file
that was damaged later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from objrl.atomic import sweep, write_atomically

FORMAT = "objrl-checkpoint-2"


@dataclass(frozen=True)
class Checkpoint:
    """How far a run was.

    Attributes:
        tensors: of the model and its optimisers, by name.
        about: JSON-plain, what the run says of itself and how far it was.
        path: where it came from, for messages.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    path: Path


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    about: Mapping[str, Any],
) -> None:
    """Write model, optimisers and what is JSON about the run.

    Raises:
        OSError: the disk is full, or the folder may not be written; the file that was there stays.
    """
    tensors = {f"model.{name}": value for name, value in tensors_of(model).items()}
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{index}.{key}"] = torch.as_tensor(value)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"format": FORMAT, "about": json.dumps(about), "sha256": _digest(tensors)}
    try:
        write_atomically(path, safetensors.torch.save(tensors, header))
    except OSError as problem:
        kept = "the one before it is whole" if path.exists() else "there is none before it"
        raise OSError(
            problem.errno or 0,
            f"could not write a checkpoint ({problem.strerror or problem}); {kept}: "
            "make room, then go on with --resume",
            str(path),
        ) from problem
    sweep(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint of ours, is cut short or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint to resume; leave --resume out")
    header, tensors = read_tensors(path, "checkpoint", FORMAT, "start again in another --out")
    if header["sha256"] != _digest(tensors):
        raise ValueError(
            f"{path}: expected the tensors that were saved, got others (their digest differs): "
            "the file is damaged; start again in another --out"
        )
    return Checkpoint(tensors, json.loads(header["about"]), path)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put a checkpoint's tensors back where they came from.

    Raises:
        ValueError: they are another model's.
    """
    prefix, tensors = "model.", checkpoint.tensors
    try:
        put_back(
            {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)},
            model,
        )
    except RuntimeError as problem:
        raise ValueError(
            f"{checkpoint.path}: expected a checkpoint of this {type(model).__name__}, got "
            f"another's; was it written by another version of objrl? ({problem})"
        ) from problem
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def read_tensors(
    path: Path, what: str, form: str, remedy: str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and tensors of a safetensors file that is to be of a format of ours.

    Raises:
        ValueError: the file is damaged, or of another format; `what` and `remedy` say what was
            expected and what to do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise ValueError(
            f"{path}: expected a whole {what}, got a damaged file ({problem}); {remedy}"
        ) from problem
    if header.get("format") != form:
        raise ValueError(
            f"{path}: expected {what} {form}, got a file with format {header.get('format')!r}"
        )
    return header, tensors


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state; what it has under several names, under the first alone."""
    once = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    return {name: value for name, value in model.state_dict().items() if name in once}


def put_back(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Load what `tensors_of` returned.

    Raises:
        RuntimeError: it is another model's.
    """
    others = set(model.state_dict()) - set(tensors_of(model))
    result = model.load_state_dict(dict(tensors), strict=False)
    missing = set(result.missing_keys) - others
    if missing or result.unexpected_keys:
        raise RuntimeError(
            f"missing: {sorted(missing) or 'nothing'}; unexpected: {result.unexpected_keys}"
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
