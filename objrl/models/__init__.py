"""The models, one file a paper; `MODELS` names them in weights files."""

from __future__ import annotations

from typing import Any

from torch import nn

from objrl.models.econ import Econ, EconConfig
from objrl.models.iodine import Iodine, IodineConfig
from objrl.models.median import Median, MedianConfig
from objrl.models.monet import Monet, MonetConfig
from objrl.models.rmonet import Rmonet, RmonetConfig
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.space import Space, SpaceConfig
from objrl.models.spair import Spair

MODELS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "space": (SpaceConfig, Space),
    "median": (MedianConfig, Median),
    "scalor": (ScalorConfig, Scalor),
    "spair": (SpaceConfig, Spair),
    "monet": (MonetConfig, Monet),
    "iodine": (IodineConfig, Iodine),
    "rmonet": (RmonetConfig, Rmonet),
    "econ": (EconConfig, Econ),
}
"""Name -> (config class, model class); a model takes its config and nothing else."""
