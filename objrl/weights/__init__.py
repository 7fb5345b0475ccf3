"""Weights: files that hold a model, the shipped ones, and loading them."""

from objrl.weights.registry import (
    WEIGHTS,
    Weights,
    list_weights,
    load,
    read_header,
    register,
    resolve_device,
    save_weights,
)

__all__ = [
    "WEIGHTS",
    "Weights",
    "list_weights",
    "load",
    "read_header",
    "register",
    "resolve_device",
    "save_weights",
]
