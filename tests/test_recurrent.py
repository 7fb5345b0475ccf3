"""Wrappers around perceivers with a memory: SCALOR's own, and the tracker's behind a detector.

Resets come on the right step, and what is remembered can be saved and put back.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from objrl.draw import draw_slots
from objrl.models.scalor import Scalor
from objrl.slots import NO_TRACK, Slots
from objrl.weights import registry, save_weights
from objrl.wrappers import ObjectSlots, VectorObjectSlots
from tests.helpers import MOVING_SQUARES, make_scalor, make_stub_perceiver
from tests.test_object_slots import UNBOUNDED, WRAPPED

gym.register_envs(ale_py)
N = 3
STEPS = 14  # two episodes of 3 to 8 steps or more in every environment
NEXT, SAME, OFF = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED

# With these weights objects are born in later frames, too.
PERCEIVERS: dict[str, Callable[[], Any]] = {
    "scalor": partial(make_scalor, seed=2),
    "detector": make_stub_perceiver,
}
both = pytest.mark.parametrize("make", PERCEIVERS.values(), ids=PERCEIVERS)


def bare(mode: AutoresetMode) -> VectorEnv:
    return SyncVectorEnv([partial(gym.make, MOVING_SQUARES)] * N, autoreset_mode=mode)


def actions() -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 3, (STEPS, N))


def row_of(batch: Any, number: int) -> Any:
    if isinstance(batch, dict):
        return {key: field[number] for key, field in batch.items()}
    return batch[number]


def play(envs: VectorEnv, mode: AutoresetMode) -> Iterator[tuple[Any, Any, dict[int, Any]]]:
    """Yield observations, who begins an episode, and the final observations of who ended one."""
    observations, _ = envs.reset(seed=7)
    yield observations, np.ones(N, bool), {}
    for action in actions():
        observations, _, terminated, truncated, infos = envs.step(action)
        over = terminated | truncated
        final: dict[int, Any] = {}
        begins = infos["steps"] == 0  # the environment's own word
        if mode is SAME:
            final = {number: infos["final_obs"][number] for number in np.flatnonzero(over).tolist()}
        elif mode is OFF and over.any():
            final = {
                number: row_of(observations, number) for number in np.flatnonzero(over).tolist()
            }
            observations, _ = envs.reset(options={"reset_mask": over})
            begins = over
        yield observations, begins, final


def assert_same(observation: Any, expected: Any, exactly: bool = False) -> None:
    for key, field in observation.items():
        # Convolutions round differently in batches of other sizes; ids are the same for all that.
        slack = 0 if exactly or key == "track_id" else 1e-4
        np.testing.assert_allclose(field, expected[key], atol=slack, rtol=slack, err_msg=key)


def same_state(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# ---------------------------------------------------------------- episodes


@both
@pytest.mark.parametrize("mode", [NEXT, SAME, OFF])
def test_slots_are_those_of_the_perceiver_told_where_episodes_begin(
    mode: AutoresetMode, make: Callable[[], Any]
) -> None:
    """By hand, by one wrapper for each environment, and by one for all of them."""
    perceiver, found = make(), 0
    begun, ended = -N, 0  # not counting who begins with the first frame
    states = [perceiver.initial_state(1) for _ in range(N)]

    def see(frame: Any, number: int, begins: bool) -> Any:
        first = torch.tensor([begins])
        slots, states[number] = perceiver.step(torch.from_numpy(frame)[None], states[number], first)
        return row_of(slots.numpy(), 0)

    singles = SyncVectorEnv(
        [lambda: ObjectSlots(gym.make(MOVING_SQUARES), make())] * N, autoreset_mode=mode
    )
    together = VectorObjectSlots(bare(mode), make())
    plays = [play(envs, mode) for envs in (bare(mode), singles, together)]
    for (frames, begins, last), (alone, _, old), (seen, _, final) in zip(*plays, strict=True):
        assert seen in together.observation_space
        assert last.keys() == old.keys() == final.keys()
        for number in range(N):
            if number in last:
                ended += 1
                expected = see(last[number], number, begins=False)
                assert_same(old[number], expected, exactly=True)
                assert_same(final[number], expected)
            begun += bool(begins[number])
            expected = see(frames[number], number, bool(begins[number]))
            assert_same(row_of(alone, number), expected, exactly=True)
            assert_same(row_of(seen, number), expected)
            found += (expected["track_id"] != NO_TRACK).sum()
    assert found > STEPS * N
    assert begun > 2
    assert ended == (0 if mode is NEXT else begun)


@both
@pytest.mark.parametrize("mode", [NEXT, SAME, OFF])
def test_ids_go_on_into_the_final_observation_and_not_beyond(
    mode: AutoresetMode, make: Callable[[], Any]
) -> None:
    used: list[set[int]] = [set() for _ in range(N)]  # in the episode
    newest = [NO_TRACK] * N
    begun, ended = -N, 0  # not counting who begins with the first frame
    for seen, begins, final in play(VectorObjectSlots(bare(mode), make()), mode):
        for number in range(N):
            if number in final:
                ids = set(final[number]["track_id"].ravel().tolist()) - {NO_TRACK}
                assert used[number] & ids
                newest[number] = max(newest[number], *ids)
                ended += 1
            ids = set(seen["track_id"][number].ravel().tolist()) - {NO_TRACK}
            assert ids
            if begins[number]:
                assert min(ids) > newest[number]
                used[number] = set()
                begun += 1
            used[number] |= ids
            newest[number] = max(newest[number], *ids)
    assert begun > 2
    assert ended == (0 if mode is NEXT else begun)


@both
def test_an_environment_that_resets_itself_begins_anew(make: Callable[[], Any]) -> None:
    by_itself = ObjectSlots(gym.wrappers.Autoreset(gym.make(MOVING_SQUARES)), make())
    by_hand = ObjectSlots(gym.make(MOVING_SQUARES), make())
    seen, _ = by_itself.reset(seed=3)
    expected, _ = by_hand.reset(seed=3)
    over, episodes = False, 0
    for action in actions()[:, 0]:
        seen, *_ = by_itself.step(action)
        if over:
            expected, over, episodes = by_hand.reset()[0], False, episodes + 1
        else:
            expected, _, terminated, truncated, _ = by_hand.step(action)
            over = terminated or truncated
        assert_same(seen, expected, exactly=True)
    assert episodes


@both
def test_a_reset_of_one_leaves_the_others_bit_identical(make: Callable[[], Any]) -> None:
    envs, undisturbed = (VectorObjectSlots(bare(OFF), make()) for _ in range(2))
    for vector in (envs, undisturbed):
        vector.reset(seed=7)
        vector.step(np.zeros(N, int))
    before = envs.get_state()
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    after = envs.get_state()
    for vector in (envs, undisturbed):
        vector.step(np.ones(N, int))
    later, expected = envs.get_state(), undisturbed.get_state()
    for name, tensor in before.items():
        for number in (0, 2):
            assert torch.equal(after[name][number], tensor[number]), name
            assert torch.equal(later[name][number], expected[name][number]), name
    assert after["slots.track_id"][1].max() > before["slots.track_id"][1].max()


# ---------------------------------------------------------------- saving and putting back


@both
def test_a_search_tries_the_same_moment_several_times(make: Callable[[], Any]) -> None:
    env = ObjectSlots(gym.make("ALE/Pong-v5"), make())
    game: Any = env.unwrapped
    env.reset(seed=1)
    for _ in range(3):
        env.step(2)
    now, emulator = env.get_state(), game.clone_state(include_rng=True)
    kept = {name: tensor.clone() for name, tensor in now.items()}
    ends = []
    for action in (2, 3, 2):
        env.slots.position.fill_(7)  # whatever a user does to the slots, what is saved stays
        assert same_state(now, kept)
        env.set_state(now)
        game.restore_state(emulator)
        assert torch.equal(env.slots.position, kept["slots.position"])
        assert same_state(env.get_state(), kept)
        for _ in range(4):
            env.step(action)
        ends.append(env.get_state())
        env.set_state(now)
    assert same_state(ends[0], ends[2])
    assert not same_state(ends[0], kept)


@both
@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_another_process_goes_on_from_a_file(mode: AutoresetMode, make: Callable[[], Any]) -> None:
    envs = VectorObjectSlots(bare(mode), make())
    envs.reset(seed=7)
    moment = 0
    for moment, action in enumerate(actions(), 1):  # noqa: B007
        *_, terminated, truncated, _ = envs.step(action)
        if (terminated | truncated).any():
            break
    file = io.BytesIO()
    torch.save(envs.get_state(), file)
    again = VectorObjectSlots(bare(mode), make())
    again.env.reset(seed=7)
    for action in actions()[:moment]:
        again.env.step(action)
    saved = torch.load(io.BytesIO(file.getvalue()))
    # Who was over begins with the next frame, if the environment waits that long.
    assert saved["begins"].any() == (mode is NEXT)
    again.set_state(saved)
    for action in actions()[moment:]:
        seen, expected = again.step(action)[0], envs.step(action)[0]
        assert_same(seen, expected, exactly=True)
    assert same_state(again.get_state(), envs.get_state())


@both
def test_one_environment_of_many_goes_on_alone(make: Callable[[], Any]) -> None:
    envs, env = VectorObjectSlots(bare(NEXT), make()), gym.make(MOVING_SQUARES)
    envs.reset(seed=7)
    env.reset(seed=7 + 1)
    alone = ObjectSlots(env, make())
    alone.set_state({name: tensor[1:2] for name, tensor in envs.get_state().items()})
    for action in actions()[:2]:
        assert_same(alone.step(action[1])[0], row_of(envs.step(action)[0], 1))


@both
def test_a_state_of_others_is_refused(make: Callable[[], Any]) -> None:
    envs = VectorObjectSlots(bare(NEXT), make())
    env = ObjectSlots(gym.make(MOVING_SQUARES), make())
    with pytest.raises(ValueError, match="expected one of 1 environments, got one of 3"):
        env.set_state(envs.get_state())
    with pytest.raises(ValueError, match="expected one of 3 environments, got one of 1"):
        envs.set_state(env.get_state())
    wide = ObjectSlots(gym.make(MOVING_SQUARES), make_stub_perceiver(max_slots=9))
    with pytest.raises(ValueError, match="saved with another perceiver"):
        env.set_state(wide.get_state())
    with pytest.raises(ValueError, match=r"with other too much and begins missing"):
        env.set_state({"other" if k == "begins" else k: v for k, v in env.get_state().items()})


class Count(NamedTuple):
    total: Tensor
    parts: tuple[Tensor, Tensor]


class Counter:
    """`depth` counts the frames of the episode, by a state of tuples in tuples."""

    max_slots, what_size = 2, 1
    device = torch.device("cpu")

    def initial_state(self, batch: int) -> Count:
        return Count(torch.zeros(batch), (torch.zeros(batch, 2), torch.zeros(batch, 3)))

    def step(self, frames: Tensor, state: Count, is_first: Tensor) -> tuple[Slots, Count]:
        count = torch.where(is_first, 0, state.total) + 1
        slots = Slots.empty(len(frames), 2, 1)
        slots.depth[:] = count[:, None, None]
        return slots, state._replace(total=count)

    def encode(self, frames: Tensor) -> Slots:
        return self.step(frames, self.initial_state(len(frames)), torch.ones(len(frames)) > 0)[0]

    def segment(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


def test_any_structure_of_tensors_is_split_and_saved() -> None:
    envs = VectorObjectSlots(bare(OFF), Counter())
    envs.reset(seed=7)
    envs.step(np.zeros(N, int))
    saved = envs.get_state()
    assert saved["state.0"].tolist() == [2, 2, 2]
    assert saved["state.1.1"].shape == (N, 3)
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert envs.slots.depth[:, 0, 0].tolist() == [1, 2, 2]
    envs.step(np.zeros(N, int))
    assert envs.slots.depth[:, 0, 0].tolist() == [2, 3, 3]
    envs.set_state(saved)
    assert envs.slots.depth[:, 0, 0].tolist() == [2, 2, 2]
    envs.step(np.zeros(N, int))
    assert envs.slots.depth[:, 0, 0].tolist() == [3, 3, 3]


# ---------------------------------------------------------------- SCALOR's weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """SCALOR's weights, trained as it were on the brighter of two frames."""
    return save_weights(
        *(tmp_path / "scalor.safetensors", make_scalor(seed=2)),
        model_name="scalor",
        data={"last_two": 1, "frames": 5, "env_id": MOVING_SQUARES},
        training={"preset": "scalor-fast"},
        metrics={},
    )


def test_gymnasium_finds_no_fault(file: Path) -> None:
    env = ObjectSlots(gym.make(MOVING_SQUARES, render_mode="rgb_array"), file, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (WRAPPED, UNBOUNDED):
            warnings.filterwarnings("ignore", message=expected)
        check_env(env)


def test_the_spec_makes_the_same_environment_again(file: Path) -> None:
    env = ObjectSlots(gym.make(MOVING_SQUARES), file, device="cpu", max_slots=4)
    assert isinstance(env.perceiver, Scalor)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert env.observation_space["what"].shape == (4, env.perceiver.config.z_what)
    text = env.spec.to_json()  # type: ignore[union-attr]
    assert json.loads(text)
    again = gym.make(EnvSpec.from_json(text))
    assert again.observation_space == env.observation_space
    for mine, other in ((env.reset(seed=4), again.reset(seed=4)), (env.step(1), again.step(1))):
        assert_same(mine[0], other[0], exactly=True)


def test_boxes_are_drawn(file: Path) -> None:
    env = ObjectSlots(gym.make(MOVING_SQUARES, render_mode="rgb_array"), file, device="cpu")
    env.reset(seed=0)
    env.step(2)
    plain: Any = env.env.render()
    slots = env.slots
    assert slots.presence.any()
    boxes, presence = slots.boxes(*plain.shape[:2])[0].numpy(), slots.presence[0, :, 0].numpy()
    expected = draw_slots(plain, boxes, presence, slots.track_id[0, :, 0].numpy())
    np.testing.assert_array_equal(env.render(), expected)
    assert not np.array_equal(plain, expected)


def test_frames_of_the_other_kind_are_warned_of(file: Path) -> None:
    with pytest.warns(UserWarning, match="the brighter of its last two emulator frames, this"):
        ObjectSlots(gym.make("ALE/Pong-v5"), file, device="cpu")


def test_shipped_weights_are_found_by_the_game(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(file, "scalor-moving_squares", (MOVING_SQUARES,), folder=tmp_path)
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(registry, "WEIGHTS", registry.read_index(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = ObjectSlots(gym.make(MOVING_SQUARES), device="cpu")
        envs = VectorObjectSlots(bare(NEXT), device="cpu")
    assert isinstance(env.perceiver, Scalor)
    assert isinstance(envs.perceiver, Scalor)
    with (
        pytest.warns(UserWarning, match="learnt from moving_squares, not from ALE/Pong-v5"),
        pytest.warns(UserWarning, match="emulator frames"),
    ):
        ObjectSlots(gym.make("ALE/Pong-v5"), "scalor-moving_squares", device="cpu")
