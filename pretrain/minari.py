"""Frame stores from and to Minari, the exchange format of Gymnasium's world.

Minari counts T+1 observations and T actions an episode; a store has T+1 rows, of which the first
has no action (see `objrl.pretrain.store`). It knows nothing of environments side by side: an
exported episode forgets its stream, an imported one is in stream 0.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import objrl
from objrl.atomic import replacing, sweep
from objrl.pretrain.collect import find_spec
from objrl.pretrain.store import FrameStore, FrameWriter


def import_minari(dataset: str, out: str | Path) -> Path:
    """Write a Minari data set of RGB frames as a new store.

    Args:
        dataset: the id of a local data set, or of one to download, or the folder that holds one.
        out: the store to write; it appears when all is there.

    Returns:
        The path of the store.

    Raises:
        ImportError: Minari is not installed.
        ValueError: no such data set, not one of RGB frames, or `out` exists already.
        OSError: the disk is full.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: expected a new file, got one that exists; choose another --out")
    source = _load(dataset)
    space = source.observation_space
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8 or space.shape[2:] != (3,):
        raise ValueError(
            f"{dataset}: expected observations that are RGB frames Box(H, W, 3) uint8, got {space}"
        )
    spec = source.env_spec
    sweep(out)
    with (
        replacing(out) as partial,
        FrameWriter(
            partial,
            frame_shape=space.shape,
            action_shape=source.action_space.shape or (),
            action_dtype=source.action_space.dtype or np.int64,
            attributes={
                "env_id": spec.id if spec is not None else source.id,
                "spec": spec.to_json() if spec is not None else json.dumps(None),
                "policy": f"minari {source.id}",
                "num_envs": 1,
                "seed": 0,
            },
            versions={"objrl_version": objrl.__version__, "minari_version": source.minari_version},
            asked=source.total_steps + source.total_episodes,
        ) as writer,
    ):
        for episode in tqdm(source, desc=str(out), unit="episode"):
            writer.append(**_rows_of(episode, writer.next_episode))
    return out


def export_minari(store: str | Path, dataset_id: str) -> Any:
    """Write a store as a local Minari data set, without loss: about 100 KB an Atari frame.

    Episodes of a single frame are left out: Minari cannot hold them. An episode whose recording
    stopped before its end is marked as truncated.

    Args:
        store: the path of the store.
        dataset_id: as Minari wants it: name and version, with a namespace or not, e.g.
            `pong/random-v0`.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        ImportError: Minari is not installed.
        ValueError: not a store, its environment is not registered, or the id is bad or taken.
        OSError: the disk has less room than that.
    """
    minari = _minari()
    dataset: Any = None
    with FrameStore(store) as frames:
        root = Path(minari.storage.get_dataset_path(""))
        size, free = len(frames) * int(np.prod(frames.frame_shape)), shutil.disk_usage(root).free
        if free < size:
            raise OSError(
                f"export: expected {size / 1e9:.1f} GB of free disk in {root}, got "
                f"{free / 1e9:.1f} GB; set MINARI_DATASETS_PATH to a folder on a larger disk"
            )
        order = np.argsort(frames.columns["episode"], kind="stable")
        starts = np.flatnonzero(np.diff(frames.columns["episode"][order])) + 1
        for rows in tqdm(np.split(order, starts), desc=dataset_id, unit="episode"):
            if len(rows) < 2:
                continue
            buffer = [_buffer_of(minari, frames, rows)]
            if dataset is None:
                dataset = _begin(minari, frames, dataset_id, buffer)
            else:
                dataset.update_dataset_from_buffer(buffer)
    if dataset is None:
        raise ValueError(f"{store}: expected an episode of two frames or more, got none")
    return minari.load_dataset(dataset_id)


def _minari() -> Any:
    try:
        import minari
    except ImportError as problem:
        raise ImportError("Minari is not installed: pip install 'objrl[data]'") from problem
    return minari


def _load(dataset: str) -> Any:
    minari = _minari()
    folder = Path(dataset)
    try:
        if folder.is_dir():
            inner = folder / "data"
            return minari.MinariDataset(inner if inner.is_dir() else folder)
        return minari.load_dataset(dataset, download=True)
    except Exception as problem:  # Minari, its storage and its download each raise their own kinds
        raise ValueError(
            f"from_minari: expected the id of a Minari data set or its folder, got {dataset!r} "
            f"({problem}); `minari list local` and `minari list remote` show ids"
        ) from problem


def _rows_of(episode: Any, number: int) -> dict[str, npt.NDArray[Any]]:
    """Return an episode as rows of a store: what led to each frame, nothing to the first."""

    def shifted(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros_like(values[:1]), values])

    count = len(episode.observations)
    return {
        "frames": episode.observations,
        "action": shifted(episode.actions),
        "reward": shifted(episode.rewards),
        "terminated": shifted(episode.terminations),
        "truncated": shifted(episode.truncations),
        "episode": np.full(count, number),
        "stream": np.zeros(count, dtype=np.int64),
        "step": np.arange(count),
    }


def _buffer_of(minari: Any, store: FrameStore, rows: npt.NDArray[np.int64]) -> Any:
    """Return the rows of one episode as Minari wants them."""
    later = {name: column[rows[1:]] for name, column in store.columns.items()}
    truncated = later["truncated"].copy()
    truncated[-1] |= not later["terminated"][-1]
    return minari.data_collector.EpisodeBuffer(
        observations=store.frames(rows),
        actions=later["action"],
        rewards=later["reward"],
        terminations=later["terminated"],
        truncations=truncated,
    )


def _begin(minari: Any, store: FrameStore, dataset_id: str, buffer: list[Any]) -> Any:
    """Make the data set with its first episode."""
    with warnings.catch_warnings():
        # Author, e-mail and code link are the user's to add, and no warning's.
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffer,
            env=find_spec(store.env_id),
            observation_space=gym.spaces.Box(0, 255, store.frame_shape, np.uint8),
            algorithm_name=str(store.attributes["policy"]),
            description=f"Frames of {store.env_id}, collected with objrl {objrl.__version__}.",
            jpeg_encoding=False,
        )
