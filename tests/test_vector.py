"""`VectorObjectSlots`: the same as `ObjectSlots` in every environment, one forward pass a step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from objrl.draw import draw_slots
from objrl.slots import Slots
from objrl.wrappers import ObjectSlots, VectorObjectSlots
from tests.helpers import MOVING_SQUARES, MovingSquares, make_stub_perceiver, ship_stubs

gym.register_envs(ale_py)
N = 3
STEPS = 25  # several episodes of 3 to 8 steps in every environment
NEXT, SAME, OFF = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


def squares(mode: AutoresetMode, kind: Any = SyncVectorEnv, **kwargs: Any) -> VectorEnv:
    make = partial(gym.make, MOVING_SQUARES, **kwargs)
    vector: VectorEnv = kind([make] * N, autoreset_mode=mode)
    return vector


def pong(**kwargs: Any) -> VectorEnv:
    options = {"grayscale": False, "stack_num": 1, "noop_max": 0, "img_height": 105, **kwargs}
    return gym.make_vec("ALE/Pong-v5", N, **options)


def actions() -> Iterator[Any]:
    random = np.random.default_rng(0)
    return iter(random.integers(0, 3, (STEPS, N)))


def one_by_one(mode: AutoresetMode, number: int) -> Iterator[tuple[Any, Any]]:
    """Yield (observation, final observation) of one environment under `ObjectSlots`."""
    env = ObjectSlots(gym.make(MOVING_SQUARES), make_stub_perceiver())
    yield env.reset(seed=7 + number)[0], None
    over = False
    for action in actions():
        if over and mode is NEXT:
            observation, over = env.reset()[0], False
        else:
            observation, _, terminated, truncated, _ = env.step(action[number])
            over = terminated or truncated
        if over and mode is SAME:
            yield env.reset()[0], observation
        else:
            yield observation, None


def assert_same(observation: Any, expected: Any) -> None:
    assert list(observation) == list(expected)
    for key, field in observation.items():
        np.testing.assert_array_equal(field, expected[key], err_msg=key)


def row_of(batch: Any, number: int) -> dict[str, Any]:
    return {key: field[number] for key, field in batch.items()}


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_every_environment_sees_what_it_would_see_alone(mode: AutoresetMode, kind: Any) -> None:
    singles = zip(*(one_by_one(mode, number) for number in range(N)), strict=True)
    envs = VectorObjectSlots(squares(mode, kind), make_stub_perceiver())
    observations, infos = envs.reset(seed=7)
    ended = 0
    for action in actions():
        alone = next(singles)
        assert observations in envs.observation_space
        final = infos.get("final_obs", [None] * N)
        for number, (observation, expected) in enumerate(alone):
            assert_same(row_of(observations, number), observation)
            if expected is None:
                assert final[number] is None
            else:
                ended += 1
                assert infos["_final_obs"][number]
                assert final[number] in envs.single_observation_space
                assert_same(final[number], expected)
        observations, _, _, _, infos = envs.step(action)
    assert ended > 5 or mode is NEXT
    envs.close()


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_flat_observations_are_the_others_in_a_row(mode: AutoresetMode) -> None:
    keys = ("track_id", "position")
    flat = VectorObjectSlots(squares(mode), make_stub_perceiver(), keys=keys, flatten=True)
    wide = VectorObjectSlots(squares(mode), make_stub_perceiver(), keys=keys)
    flat.reset(seed=7)
    wide.reset(seed=7)
    for action in actions():
        vector, *_, flat_infos = flat.step(action)
        rows, *_, infos = wide.step(action)
        assert isinstance(vector, np.ndarray)
        assert vector in flat.observation_space
        parts = np.concatenate([rows[key] for key in keys], axis=-1)
        np.testing.assert_array_equal(vector.reshape(N, 6, 3), parts)
        for row in np.flatnonzero(infos.get("_final_obs", [])):
            parts = np.concatenate([infos["final_obs"][row][key] for key in keys], axis=-1)
            np.testing.assert_array_equal(flat_infos["final_obs"][row].reshape(6, 3), parts)


def test_slots_can_enter_what_learns_also_after_an_episodes_end() -> None:
    envs = VectorObjectSlots(squares(SAME), make_stub_perceiver())
    envs.reset(seed=7)
    over = 0
    for action in actions():
        infos = envs.step(action)[4]
        over += "final_obs" in infos
        weight = torch.ones(2, requires_grad=True)
        (envs.slots.position * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert weight.grad.any()
    assert over > 3


def test_without_ids_in_the_flat_form_by_default() -> None:
    envs = VectorObjectSlots(squares(NEXT), make_stub_perceiver(), flatten=True)
    observations, _ = envs.reset(seed=7)
    assert isinstance(observations, np.ndarray)
    np.testing.assert_array_equal(observations.reshape(N, 6, -1)[..., :2], envs.slots.position)
    assert observations.shape == (N, 6 * (2 + 2 + 2 + 1 + 4 + 1))


def test_a_step_is_one_forward_pass_and_one_more_of_those_that_begin_anew() -> None:
    perceiver = make_stub_perceiver()
    envs = VectorObjectSlots(squares(SAME), perceiver)
    envs.reset(seed=7)
    for action in actions():
        perceiver.detector.calls.clear()
        over = int(envs.step(action)[4].get("_final_obs", np.zeros(N)).sum())
        assert perceiver.detector.calls == ([N, over] if over else [N])


def test_a_seeded_reset_begins_everything_anew_ids_too() -> None:
    envs = VectorObjectSlots(squares(NEXT), make_stub_perceiver())
    first, _ = envs.reset(seed=7)
    unseeded, _ = envs.reset()
    again, _ = envs.reset(seed=7)
    assert unseeded["track_id"].max() > first["track_id"].max()
    assert_same(again, first)


def test_what_is_not_reset_by_the_mask_stays_and_goes_on_being_followed() -> None:
    envs = VectorObjectSlots(squares(OFF), make_stub_perceiver())
    envs.reset(seed=7)
    before, *_ = envs.step(np.zeros(N, int))
    mask = np.array([False, True, False])
    after, _ = envs.reset(options={"reset_mask": mask})
    for key in before:
        np.testing.assert_array_equal(after[key][~mask], before[key][~mask])
    shown = before["presence"][..., 0] > 0
    new = after["track_id"][1][after["presence"][1] > 0]
    assert new.min() > before["track_id"][1].max()
    later, *_ = envs.step(np.zeros(N, int))
    both = shown & (later["presence"][..., 0] > 0) & ~mask[:, None]
    assert both.sum() >= 4
    np.testing.assert_array_equal(later["track_id"][both], before["track_id"][both])


def test_a_masked_reset_is_not_forgotten_by_the_next_step() -> None:
    """An environment reset by hand where NEXT_STEP would have done it begins only once."""
    envs = VectorObjectSlots(squares(NEXT), make_stub_perceiver())
    envs.reset(seed=7)
    over = np.zeros(N, bool)
    while not over.any():
        _, _, terminated, truncated, _ = envs.step(np.ones(N, int))
        over = terminated | truncated
    first, _ = envs.reset(options={"reset_mask": over})
    second, *_ = envs.step(np.ones(N, int))
    here = (first["presence"] > 0) & (second["presence"] > 0) & over[:, None, None]
    assert here.any()
    np.testing.assert_array_equal(first["track_id"][here], second["track_id"][here])


# ---------------------------------------------------------------- a memory of another kind


class Counter:
    """A perceiver with a recurrent state (a tuple): `depth` counts the frames of the episode."""

    max_slots, what_size = 2, 1
    device = torch.device("cpu")

    def initial_state(self, batch: int) -> tuple[Tensor]:
        return (torch.zeros(batch, 1),)

    def step(
        self, frames: Tensor, state: tuple[Tensor], is_first: Tensor
    ) -> tuple[Slots, tuple[Tensor]]:
        count = torch.where(is_first[:, None], 0, state[0]) + 1
        slots = Slots.empty(len(frames), 2, 1)
        slots.depth[:] = count[:, None]
        return slots, (count,)

    def encode(self, frames: Tensor) -> Slots:
        return self.step(frames, self.initial_state(len(frames)), torch.ones(len(frames)) > 0)[0]

    def segment(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_a_recurrent_state_begins_anew_with_every_episode(mode: AutoresetMode) -> None:
    envs = VectorObjectSlots(squares(mode), Counter(), keys=("depth",))
    envs.reset(seed=7)
    shown = np.zeros(N, int)
    for action in actions():
        observations, _, terminated, truncated, infos = envs.step(action)
        # Where an environment was reset in this step, `final_info` holds the old count.
        steps = infos["steps"]
        np.testing.assert_array_equal(observations["depth"][:, 0, 0], steps + 1)
        if mode is SAME and (terminated | truncated).any():
            for row in np.flatnonzero(infos["_final_obs"]):
                last = infos["final_info"]["steps"][row] + 1
                assert infos["final_obs"][row]["depth"][0, 0] == last
        shown += (steps == 0).astype(int)
    assert shown.min() >= 2


def test_a_state_that_cannot_be_split_is_reported() -> None:
    class Listing(Counter):
        def step(self, frames: Tensor, state: Any, is_first: Tensor) -> Any:
            slots, state = super().step(frames, tuple(state), is_first)
            return slots, list(state)

    envs = VectorObjectSlots(squares(OFF), Listing())
    envs.reset()
    with pytest.raises(TypeError, match="dataclasses or tuples of them, got list"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})


# ---------------------------------------------------------------- ALE's own vector environment


def test_ale_final_frames_are_seen_with_what_went_before_and_told_as_gymnasium_does() -> None:
    limits = {"max_num_frames_per_episode": 20, "autoreset_mode": SAME}  # 5 steps an episode
    envs = VectorObjectSlots(pong(**limits), make_stub_perceiver(threshold=150))
    bare, alone = pong(**limits), make_stub_perceiver(threshold=150)
    state, is_first = alone.initial_state(N), torch.ones(N, dtype=torch.bool)
    observations, _ = envs.reset(seed=1)
    frames, _ = bare.reset(seed=1)
    ended = 0
    for _ in range(12):
        seen, state = alone.step(torch.from_numpy(frames[:, 0]), state, is_first)
        assert observations in envs.observation_space
        assert_same(observations, seen.numpy())
        assert seen.presence.sum() >= N
        observations, _, _, over, infos = envs.step(np.zeros(N, int))
        frames, _, _, truncated, plain = bare.step(np.zeros(N, int))
        np.testing.assert_array_equal(over, truncated)
        assert over.all() == over.any() == ("final_obs" in infos)
        is_first = torch.from_numpy(over.copy())
        if over.all():
            ended += 1
            last = torch.from_numpy(plain["final_obs"][:, 0])
            seen, state = alone.step(last, state, torch.zeros(N, dtype=torch.bool))
            assert infos["_final_obs"].all()
            for number in range(N):
                assert_same(infos["final_obs"][number], row_of(seen.numpy(), number))
    assert ended >= 2


def test_the_weights_are_chosen_by_the_id_that_made_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = ship_stubs(monkeypatch)
    VectorObjectSlots(pong())
    VectorObjectSlots(squares(NEXT))
    VectorObjectSlots(gym.make_vec(MOVING_SQUARES, N, vectorization_mode="sync"))
    assert loaded == ["pong", "squares", "squares"]
    unnamed = ale_py.AtariVectorEnv("pong", N, grayscale=False, stack_num=1)
    with pytest.raises(ValueError, match="name the weights"):
        VectorObjectSlots(unnamed)


def test_what_is_no_rgb_frame_is_refused_with_advice() -> None:
    stub = make_stub_perceiver()
    with pytest.raises(ValueError, match=r"\(4, 84, 84\).*grayscale=False, stack_num=1"):
        VectorObjectSlots(gym.make_vec("ALE/Pong-v5", N), stub)
    with pytest.raises(ValueError, match=r"in gym\.make_vec stack_num=1"):
        VectorObjectSlots(pong(stack_num=4), stub)
    with pytest.raises(ValueError, match=r"all 3 environments .* got \(2,\); leave out batch_size"):
        VectorObjectSlots(pong(batch_size=2), stub)


def test_an_environment_must_tell_how_it_resets() -> None:
    envs = squares(NEXT)
    del envs.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="is an AutoresetMode, got None"):
        VectorObjectSlots(envs, make_stub_perceiver())


# ---------------------------------------------------------------- around it


def test_it_stands_below_other_vector_wrappers_and_passes_the_rest() -> None:
    envs = VectorObjectSlots(squares(NEXT), make_stub_perceiver())
    counted = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    bare = squares(NEXT)
    assert str(counted.reset(seed=7)[1]) == str(bare.reset(seed=7)[1])
    lengths: list[int] = []
    for action in actions():
        _, *rest, infos = counted.step(action)
        _, *expected, plain = bare.step(action)
        for ours, theirs in zip(rest, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(infos["steps"], plain["steps"])
        lengths += infos["episode"]["l"][infos["_episode"]].tolist() if "episode" in infos else []
    assert len(lengths) > 5


def test_render_draws_in_every_environment() -> None:
    envs = VectorObjectSlots(squares(NEXT, render_mode="rgb_array"), make_stub_perceiver())
    envs.reset(seed=7)
    plain, drawn = envs.env.render(), envs.render()
    assert plain is not None
    assert drawn is not None
    slots = envs.slots
    for number in range(N):
        frame, boxes = plain[number], slots.boxes(64, 64)[number].numpy()
        presence, ids = slots.presence[number].numpy(), slots.track_id[number].numpy()
        assert isinstance(frame, np.ndarray)
        np.testing.assert_array_equal(drawn[number], draw_slots(frame, boxes, presence, ids))
    assert not np.array_equal(plain[0], drawn[0])
    assert MovingSquares().render() is None
