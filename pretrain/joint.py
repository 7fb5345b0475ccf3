"""The frames of several games as if they were one's: for a detector that sees them all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from objrl.models.regions import Image
from objrl.pretrain.configure import fit_canvas
from objrl.pretrain.reading import Frames, sample
from objrl.pretrain.store import FrameStore


class JointStore:
    """Several stores, one after the other, their frames all of the commonest size.

    Attributes:
        parts: the stores.
        size: (H, W) of the frames.
        path: of the first of them, for messages.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the stores.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: one is no frame store, or is given twice.
        """
        if len(set(paths)) < len(paths):
            raise ValueError(f"data: expected different files, got {', '.join(map(str, paths))}")
        with ExitStack() as opened:
            self.parts = [opened.enter_context(FrameStore(path)) for path in paths]
            self._opened = opened.pop_all()
        shapes = Counter(part.frame_shape[:2] for part in self.parts)
        self.size: tuple[int, int] = shapes.most_common(1)[0][0]
        self.path = self.parts[0].path
        self._begins = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Return the frame numbers of every store's split."""
        found = [
            part.split(name) + begin for part, begin in zip(self.parts, self._begins, strict=False)
        ]
        return np.concatenate(found)

    def windows(self, length: int, split: str) -> npt.NDArray[np.int64]:
        """Return (M, length) frame numbers of consecutive frames within an episode."""
        found = [
            part.windows(length, split) + begin
            for part, begin in zip(self.parts, self._begins, strict=False)
        ]
        return np.concatenate(found)

    def frames(self, indices: npt.ArrayLike) -> Image:
        """Return (n, H, W, 3) uint8 RGB frames in the order asked.

        Raises:
            IndexError: an index that is not in 0..N-1.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"frames: expected numbers in 0..{len(self) - 1}, got {rows}")
        found = np.zeros((len(rows), *self.size, 3), np.uint8)
        owner = np.searchsorted(self._begins, rows, side="right") - 1
        for which in np.unique(owner):
            mine = owner == which
            part = self.parts[which].frames(rows[mine] - self._begins[which])
            found[mine] = fit_canvas(part, self.size)
        return found

    def fingerprint(self) -> dict[str, str | int]:
        """Return what tells these data from others: the parts' digests make one."""
        parts = [part.fingerprint() for part in self.parts]
        digest = hashlib.sha256("".join(str(part["sha256"]) for part in parts).encode())
        # Left out where not all are of one kind, or some do not say.
        kinds = {part.get("last_two") for part in parts}
        (kind,) = kinds if len(kinds) == 1 else (None,)
        return {
            "env_id": ", ".join(str(part["env_id"]) for part in parts),
            "frames": len(self),
            "policy": ", ".join(sorted({str(part["policy"]) for part in parts})),
            **({} if kind is None else {"last_two": kind}),
            "seed": int(parts[0]["seed"]),
            "sha256": digest.hexdigest(),
        }

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def __enter__(self) -> JointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def by_game(store: Frames, count: int = 1500) -> Iterator[Image]:
    """Yield (n, H, W, 3) frames of `train` to look at, game by game, all of one size."""
    if not isinstance(store, JointStore):
        yield sample(store, "train", count)
        return
    for part in store.parts:
        yield fit_canvas(sample(part, "train", count), store.size)
