"""One weights file: safetensors, with all that is needed to rebuild the model in its header.

The header's values are strings, JSON inside: `format`, `model` (a key of `objrl.models.MODELS`),
`config` (the model's resolved config), `data` (fingerprint of the frames), `training` (preset,
steps, seconds, seed, machine), `metrics`, `licence`, `objrl_version`. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from objrl import models
from objrl.atomic import write_atomically

FORMAT = "objrl-weights-1"
SUFFIX = ".safetensors"

_JSON_FIELDS = ("config", "data", "training", "metrics")
_FIELDS = ("format", "model", *_JSON_FIELDS, "licence", "objrl_version")


def save_weights(
    path: str | Path,
    model: nn.Module,
    *,
    model_name: str,
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Path:
    """Write a model to a weights file; the old file stays whole until the new one is.

    Args:
        path: where to, ending in `.safetensors`.
        model: an instance of `MODELS[model_name]`, not wrapped by Fabric or a compiler.
        model_name: key of `objrl.models.MODELS`.
        data: JSON-plain fingerprint of the frames that it learnt from (`FrameStore.fingerprint`).
        training: JSON-plain preset, steps, seconds, seed, machine.
        metrics: finite scores by name.

    Returns:
        The path.

    Raises:
        ValueError: a value that JSON cannot hold, NaN or infinity in a tensor or a metric, an
            unknown model name, another suffix.
        TypeError: `model` is not of the class that `model_name` names.
        OSError: the file cannot be written; nothing is left behind.
    """
    from objrl import __version__  # objrl/__init__.py imports this module first

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path: expected a name that ends in {SUFFIX}, got '{path}'")
    config_class, model_class = _model_classes(model_name, "model_name")
    if not isinstance(model, model_class):
        raise TypeError(
            f"model: expected a {model_class.__name__} for model_name '{model_name}', got "
            f"{type(model).__name__}; pass the bare module, not a wrapper around it"
        )
    config = dataclasses.asdict(cast(Any, model).config)
    fields = {"config": config, "data": data, "training": training, "metrics": metrics}
    header = {name: _to_json(name, value) for name, value in fields.items()}
    header |= {"format": FORMAT, "model": model_name}
    header |= {"licence": "MIT", "objrl_version": __version__}
    if build_config(config_class, json.loads(header["config"]), "config") != model.config:
        raise ValueError(
            f"{config_class.__name__} does not survive JSON; its fields may be numbers, strings, "
            "bools, None, tuples of these and dataclasses"
        )
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    _check_finite(tensors, "model")
    write_atomically(path, _sort_header(safetensors.torch.save(tensors, header)))
    return path


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of a weights file, its JSON decoded; the tensors are not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole safetensors file, or not one of ours.
    """
    with _open(Path(path)) as file:
        return _decode_header(file.metadata(), Path(path))


def read_model(path: str | Path, *, max_slots: int | None = None) -> nn.Module:
    """Rebuild the model of a weights file on the CPU.

    Args:
        path: a file that `save_weights` wrote.
        max_slots: replaces K of the stored config.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole weights file, unknown model or config, tensors that are not the
            model's, NaN or infinity.
    """
    path = Path(path)
    with _open(path) as file:
        header = _decode_header(file.metadata(), path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config_class, model_class = _model_classes(header["model"], str(path))
    config = build_config(config_class, header["config"], str(path))
    if max_slots is not None:
        if max_slots < 1:
            raise ValueError(f"max_slots: expected at least 1, got {max_slots}")
        if hasattr(config, "with_slots"):
            config = config.with_slots(max_slots)
        else:
            config = dataclasses.replace(config, max_slots=max_slots)
    model = model_class(config)
    _check_keys(model.state_dict(), tensors, f"{path} is no {model_class.__name__} of its config")
    _check_finite(tensors, str(path))
    model.load_state_dict(tensors)
    return model


def build_config(cls: type[Any], values: Any, where: str) -> Any:
    """Rebuild a config dataclass, nested ones and tuples included, from what JSON made of it.

    Fields that are absent keep their default, so that a config may grow.

    Raises:
        ValueError: unknown fields, missing ones without a default, values of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected the fields of {cls.__name__}, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{where}: {cls.__name__} has no field {', '.join(unknown)}; "
            "was the file written by a newer objrl?"
        )
    try:
        return cls(**{k: _build_value(hints[k], v, f"{where}: {k}") for k, v in values.items()})
    except TypeError as error:
        raise ValueError(f"{where}: cannot build {cls.__name__}: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file '{path}'")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); "
            "it was cut short or is something else: copy or train it again"
        ) from error


def _decode_header(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    found = metadata or {}
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a weights file of this objrl: expected format '{FORMAT}' in its "
            f"header, got {found.get('format')!r}; write it with objrl.weights.save_weights"
        )
    if missing := [name for name in _FIELDS if name not in found]:
        raise ValueError(f"{path}: its header lacks {', '.join(missing)}")
    header: dict[str, Any] = dict(found)
    for name in _JSON_FIELDS:
        try:
            header[name] = json.loads(found[name])
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: '{name}' in its header is not JSON ({error})") from error
    return header


def _model_classes(name: str, where: str) -> tuple[type[Any], type[nn.Module]]:
    if name not in models.MODELS:
        known = ", ".join(sorted(models.MODELS))
        raise ValueError(f"{where}: unknown model '{name}'; this objrl knows {known}")
    return models.MODELS[name]


def _to_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected finite JSON-plain values, got {value!r}") from error


def _build_value(hint: Any, value: Any, where: str) -> Any:
    """Bring one JSON value to the type of its field; a value that does not fit is an error."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build_config(cast("type[Any]", hint), value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        hint = next(option for option in inner if option is not types.NoneType)
        return _build_value(hint, value, where)
    if origin is tuple and isinstance(value, list):
        hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(hints) == len(value):
            return tuple(_build_value(h, v, where) for h, v in zip(hints, value, strict=True))
    if origin is typing.Literal and value in inner:
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = hint.__name__ if isinstance(hint, type) else hint
    raise ValueError(f"{where}: expected {wanted}, got {value!r}")


def _check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        want, got = ((tuple(t[name].shape), t[name].dtype) for t in (expected, found))
        if want != got:
            problems.append(f"{name}: expected {want[0]} {want[1]}, got {got[0]} {got[1]}")
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}")


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(
            f"{where}: NaN or infinity in {', '.join(sorted(bad))}; "
            "the training diverged or the file is damaged"
        )


def _sort_header(data: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in random order: equal models, equal hashes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
