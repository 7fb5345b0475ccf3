"""Which weights an environment gets, and what a user should know about them.

Letters: H W pixels, K slots.
"""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec, VectorizeMode

from objrl.perceiver import Perceiver
from objrl.weights import registry
from objrl.wrappers.baseline import fit_baseline, how_to_make_some, none_shipped

ENTRY_POINT = VectorizeMode.VECTOR_ENTRY_POINT.value
"""How `gym.make_vec` notes in a spec that the game has a vector environment of its own."""

_POOLING = {"MaxAndSkipObservation", "MaxAndSkipEnv"}  # Gymnasium's and Stable-Baselines3's


def choose_perceiver(
    weights: str | Path | Perceiver | None,
    spec: EnvSpec | None,
    shape: tuple[int, ...],
    max_slots: int | None,
    device: str | torch.device,
    *,
    last_two: bool | None = None,
) -> Perceiver:
    """Return the perceiver that a caller of a wrapper asks for.

    Args:
        weights: see `ObjectSlots`.
        spec: what one environment is made from, where that is known.
        shape: (H, W, 3) of its frames.
        max_slots: see `ObjectSlots`.
        device: see `ObjectSlots`.
        last_two: whether its frames show the last two emulator frames, where that is known.

    Raises:
        ValueError, TypeError: see `ObjectSlots`.
    """
    env_id = spec.id if spec else None
    if weights is None:
        if spec is not None and not _shipped_for(spec.id):
            return fit_baseline(spec, shape, max_slots, device)
        weights = weights_for(env_id)
    if isinstance(weights, (str, Path)):
        _warn_of_another_game(weights, env_id)
        _warn_of_other_frames(weights, last_two)
        return registry.load(weights, device=device, max_slots=max_slots)
    if not isinstance(weights, Perceiver):
        raise TypeError(
            "weights: expected a name, a path or an objrl.Perceiver, got "
            f"{type(weights).__name__}; a Detector needs objrl.FramePerceiver around it"
        )
    if max_slots is not None or str(device) != "auto":
        raise ValueError(
            "weights: a ready perceiver has its own number of slots and device; leave out "
            f"max_slots and device, got max_slots={max_slots}, device={str(device)!r}"
        )
    return weights


def _warn_of_another_game(weights: str | Path, env_id: str | None) -> None:
    """Warn where shipped weights are for other games than the environment's."""
    shipped = {entry.name: entry.env_ids for entry in registry.list_weights()}
    games = {game_of(known) for known in shipped.get(str(weights), ())}
    if env_id is not None and games and game_of(env_id) not in games:
        warnings.warn(
            f"weights {str(weights)!r} learnt from {', '.join(sorted(games))}, not from "
            f"{env_id}: expect nonsense",
            stacklevel=4,
        )


def _warn_of_other_frames(weights: str | Path, last_two: bool | None) -> None:
    """Warn where weights learnt from one emulator frame, and two are shown, or the reverse."""
    if last_two is None:
        return
    learnt = registry.read_header(weights)["data"].get("last_two")
    if learnt is None or bool(learnt) == last_two:
        return
    kinds = "the last emulator frame of a step", "the brighter of its last two emulator frames"
    warnings.warn(
        f"weights {str(weights)!r} learnt from frames that show {kinds[bool(learnt)]}, this "
        f"environment's show {kinds[last_two]}: what flickers or is fast will be missed more "
        f"often; {'let' if learnt else 'leave out what lets'} it show two (maxpool of ALE's vector "
        "environments, AtariPreprocessing), or train on frames of "
        f"`objrl collect{'' if learnt else ' --last-two'}`",
        stacklevel=4,
    )


def shows_last_two(spec: EnvSpec | None) -> bool | None:
    """Say whether frames are the brighter of two emulator frames; None where it is not known.

    Args:
        spec: what an environment was made from, its wrappers or its vector arguments included.
    """
    if spec is None or spec.entry_point != "ale_py.env:AtariEnv":
        return None
    if spec.kwargs.get("vectorization_mode") == ENTRY_POINT:
        return bool(spec.kwargs.get("maxpool", True))
    known = {wrapper.name: wrapper.kwargs or {} for wrapper in spec.additional_wrappers}
    if _POOLING & set(known) or known.get("AtariPreprocessing", {}).get("frame_skip", 0) > 1:
        return True
    # Who skips frames by a wrapper may pool them there, too.
    unknown = set(known) - {"AtariPreprocessing"}
    return None if unknown and spec.kwargs.get("frameskip") == 1 else False


def weights_for(env_id: str | None) -> str:
    """Return the name of the shipped weights for a Gymnasium id, SPACE's if there are several.

    Raises:
        ValueError: no id, one that is not registered, or none are shipped for its game.
    """
    if env_id is None:
        raise ValueError("the environment has no id (env.spec is None); name the weights to use")
    fitting = _shipped_for(env_id)
    if not fitting:
        if env_id not in gym.registry:
            raise unknown_env(env_id)
        raise ValueError(f"{none_shipped(env_id)}; {how_to_make_some(env_id)}")
    preferred = f"space-{game_of(env_id)}"
    return preferred if preferred in fitting else fitting[0]


def _shipped_for(env_id: str) -> list[str]:
    """Return the names of all weights that are shipped for a game."""
    game = game_of(env_id)
    shipped = registry.list_weights()
    return [entry.name for entry in shipped if game in map(game_of, entry.env_ids)]


def unknown_env(env_id: str) -> ValueError:
    """Return the error for an id that is not registered, with those that look most like it."""
    near = difflib.get_close_matches(env_id, sorted(gym.registry), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "is its package imported?"
    return ValueError(
        f"env: expected the id of a registered environment, got {env_id!r}; {hint} "
        "(gymnasium.registry lists them all)"
    )


def game_of(env_id: str) -> str:
    """Return what `env_id` is about, whatever its version and variant.

    Example:
        >>> game_of("ALE/SpaceInvaders-v5"), game_of("UpNDownNoFrameskip-v4")
        ('space_invaders', 'up_n_down')
    """
    name = re.sub(r"(NoFrameskip|Deterministic|-ram|-v\d+)*$", "", env_id.removeprefix("ALE/"))
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
