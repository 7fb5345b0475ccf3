"""What a wrapper remembers of its environments, and how that is saved and put back.

Letters: N environments, K slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objrl.perceiver import Perceiver
from objrl.slots import Slots


@dataclass(frozen=True)
class Memory:
    """What a wrapper remembers of N environments.

    Attributes:
        state: the perceiver's, after the last frames.
        slots: (N, K, ·) of the last frames, on the host.
        begins: (N,) bool, on the host. Whose next frame is the first of an episode.
    """

    state: Any
    slots: Slots
    begins: Tensor

    @classmethod
    def empty(cls, perceiver: Perceiver, environments: int) -> Memory:
        """Return that of environments of which nothing was seen."""
        return cls(
            state=perceiver.initial_state(environments),
            slots=Slots.empty(environments, perceiver.max_slots, perceiver.what_size),
            begins=torch.zeros(environments, dtype=torch.bool),
        )

    def see(self, perceiver: Perceiver, frames: Tensor, is_first: Tensor) -> Memory:
        """Return what is remembered after (N, H, W, 3) frames; `begins` is the caller's."""
        slots, state = perceiver.step(frames, self.state, is_first)
        return dataclasses.replace(self, state=state, slots=slots.to("cpu"))

    @torch.no_grad()  # not inference_mode: its tensors could not enter a policy that learns
    def begin(self, perceiver: Perceiver, frames: Tensor, chosen: Tensor) -> Memory:
        """Return what is remembered after the first frame of an episode in some environments.

        The others stay as they are.

        Args:
            perceiver: whose state it is.
            frames: (N, H, W, 3); those of the chosen are seen.
            chosen: (N,) bool, on the host.
        """
        host = chosen.nonzero()[:, 0]
        index = host.to(perceiver.device)
        part = map_tensors(lambda field: field[index], self.state)
        is_first = torch.ones(len(host), dtype=torch.bool)
        slots, part = perceiver.step(frames[host], part, is_first)

        def put(whole: Tensor, new: Tensor) -> Tensor:
            return whole.index_copy(0, host if whole.device.type == "cpu" else index, new)

        return dataclasses.replace(
            self,
            state=map_tensors(put, self.state, part),
            slots=map_tensors(put, self.slots, slots.to("cpu")),
        )

    def see_both_ends(
        self, perceiver: Perceiver, frames: Tensor, final: Tensor, over: Tensor
    ) -> tuple[Memory, Memory]:
        """Return what is remembered after the last frames of episodes, and after the next's first.

        Args:
            perceiver: whose state it is.
            frames: (N, H, W, 3); where an episode is over, the first of the next one.
            final: (n, H, W, 3), the last frames of the n episodes that are over.
            over: (N,) bool, on the host; n are true.
        """
        last = frames.clone()
        last[over] = final
        ended = self.see(perceiver, last, torch.zeros_like(over))
        return ended, ended.begin(perceiver, frames, over)


def save(memory: Memory) -> dict[str, Tensor]:
    """Copy what is remembered, as named tensors."""
    return {name: tensor.clone() for name, tensor in _named(memory)}


def restore(saved: Mapping[str, Tensor], memory: Memory) -> Memory:
    """Return a copy of what `save` returned, on the devices of what is remembered now.

    Args:
        saved: named tensors.
        memory: of the same perceiver and as many environments.

    Raises:
        ValueError: it is of another number of environments, or of another perceiver.
    """
    known = dict(_named(memory))
    if set(saved) != set(known):
        missing, unexpected = sorted(set(known) - set(saved)), sorted(set(saved) - set(known))
        raise ValueError(
            "state: expected what get_state() returns with this perceiver, got one with "
            f"{', '.join(unexpected) or 'nothing'} too much and {', '.join(missing) or 'nothing'} "
            "missing; it was saved with another perceiver, or is none"
        )
    if len(saved["begins"]) != len(memory.begins):
        raise ValueError(
            f"state: expected one of {len(memory.begins)} environments, got one of "
            f"{len(saved['begins'])}; take rows of its tensors, or join several states by torch.cat"
        )
    for name, tensor in known.items():
        expected, got = ((tuple(t.shape), t.dtype) for t in (tensor, saved[name]))
        if expected != got:
            raise ValueError(
                f"state: expected {name} {expected[0]} {expected[1]}, got {got[0]} {got[1]}; it "
                "was saved with another perceiver"
            )
    tensors = iter([saved[name].to(tensor.device, copy=True) for name, tensor in known.items()])
    restored: Memory = map_tensors(lambda _: next(tensors), memory)
    return restored


def map_tensors(change: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply a function to the tensors of one or several states of the same structure.

    A state is a tensor (N, ...), or a dataclass or tuple of states.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return change(*trees)
    parts = [_parts(tree) for tree in trees]
    changed = {key: map_tensors(change, *(part[key] for part in parts)) for key in parts[0]}
    if not isinstance(first, tuple):
        return dataclasses.replace(first, **changed)
    named = hasattr(first, "_fields")
    return type(first)(*changed.values()) if named else tuple(changed.values())


def _named(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state in the order of `map_tensors`, with names as `state.0.depth`."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    for key, part in _parts(tree).items():
        yield from _named(part, f"{name}.{key}".lstrip("."))


def _parts(tree: Any) -> dict[str, Any]:
    """Return what a state consists of, by name."""
    if isinstance(tree, tuple):
        return {str(index): part for index, part in enumerate(tree)}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    raise TypeError(
        "a perceiver's state: expected tensors (B, ...), or dataclasses or tuples of them, got "
        f"{type(tree).__name__}"
    )
