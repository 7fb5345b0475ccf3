"""Checkpoints without pickle: tensors in one safetensors file, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FORMAT = "objrl-checkpoint-1"


def save_checkpoint(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], about: dict[str, Any]
) -> None:
    """Write model, optimisers and what is JSON about the run, to a temporary name, then rename."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{index}.{key}"] = torch.as_tensor(value)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata={"format": _FORMAT, "about": json.dumps(about)})
    os.replace(partial, path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint's tensors and what is said about the run.

    Raises:
        ValueError: the file is no checkpoint of ours, or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a checkpoint, got a damaged file ({error})") from error
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of objrl pretrain, got another file")
    return tensors, json.loads(header["about"])


def restore(
    tensors: dict[str, Tensor], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put a checkpoint's tensors back where they came from."""
    prefix = "model."
    model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
