"""`VecObjectSlots`: what a Stable-Baselines3 agent sees is what `ObjectSlots` shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from objrl.draw import draw_slots
from objrl.wrappers import AtariVecEnv, ObjectSlots, VecObjectSlots, VectorObjectSlots, baseline
from tests.helpers import MOVING_SQUARES, make_scalor, make_stub_perceiver, ship_stubs

gym.register_envs(ale_py)
N = 3
STEPS = 20  # two episodes of 3 to 8 steps or more in every environment
PERCEIVERS: dict[str, Callable[[], Any]] = {
    "scalor": partial(make_scalor, seed=2),
    "detector": make_stub_perceiver,
}
both = pytest.mark.parametrize("make", PERCEIVERS.values(), ids=PERCEIVERS)


def squares(kind: Any = DummyVecEnv, **kwargs: Any) -> Any:
    return kind([partial(gym.make, MOVING_SQUARES, **kwargs)] * N)


def slotted(**kwargs: Any) -> Any:
    envs = VecObjectSlots(squares(), make_stub_perceiver(), **kwargs)
    envs.seed(7)
    return envs


def actions(steps: int = STEPS) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 3, (steps, N))


def row_of(batch: Any, number: int) -> Any:
    if isinstance(batch, dict):
        return {key: field[number] for key, field in batch.items()}
    return batch[number]


def assert_same(observation: Any, expected: Any) -> None:
    assert list(observation) == list(expected)
    for key, field in observation.items():
        np.testing.assert_array_equal(field, expected[key], err_msg=key)


def assert_state(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


# ---------------------------------------------------------------- the same as elsewhere


@both
@pytest.mark.parametrize(
    "kind", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")], ids=["dummy", "subproc"]
)
def test_it_sees_what_gymnasiums_vector_wrapper_sees(kind: Any, make: Callable[[], Any]) -> None:
    envs: Any = VecObjectSlots(squares(kind), make())
    bare = SyncVectorEnv(
        [partial(gym.make, MOVING_SQUARES)] * N, autoreset_mode=AutoresetMode.SAME_STEP
    )
    others = VectorObjectSlots(bare, make())
    assert envs.observation_space == others.single_observation_space
    envs.seed(7)
    seen, (expected, _) = envs.reset(), others.reset(seed=7)
    ended = 0
    for action in actions():
        assert_same(seen, expected)
        seen, rewards, dones, infos = envs.step(action)
        expected, *rest, told = others.step(action)
        np.testing.assert_array_equal(rewards, rest[0])
        np.testing.assert_array_equal(dones, rest[1] | rest[2])
        assert_state(envs.get_state(), others.get_state())
        for number in np.flatnonzero(dones):
            final = infos[number]["terminal_observation"]
            assert_same(final, told["final_obs"][number])
            assert final in envs.observation_space
            assert infos[number]["TimeLimit.truncated"] == rest[1 + 1][number]
            assert envs.reset_infos[number] == {"steps": 0}
            ended += 1
    assert ended > 2 * N
    envs.close()


def test_every_environment_sees_what_it_would_see_alone() -> None:
    envs, alone = (
        slotted(),
        [ObjectSlots(gym.make(MOVING_SQUARES), make_stub_perceiver()) for _ in range(N)],
    )
    seen = envs.reset()
    expected = [env.reset(seed=7 + number)[0] for number, env in enumerate(alone)]
    for action in actions():
        for number in range(N):
            assert_same(row_of(seen, number), expected[number])
        seen, _, dones, infos = envs.step(action)
        for number, env in enumerate(alone):
            expected[number], *_ = env.step(action[number])
            if dones[number]:
                assert_same(infos[number]["terminal_observation"], expected[number])
                expected[number], _ = env.reset()


def test_the_shipped_weights_of_the_game_see_the_same_from_ales_own_environments() -> None:
    """From both bridges to them, and with weights that both find by the id."""
    limits: Any = {"noop_max": 0, "max_num_frames_per_episode": 20}  # five steps
    limits |= {"repeat_action_probability": 0.0, "use_fire_reset": False}
    picture: Any = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
    picture |= {"maxpool": False, "autoreset_mode": AutoresetMode.SAME_STEP}
    others = VectorObjectSlots(gym.make_vec("ALE/Boxing-v5", 2, **limits, **picture), device="cpu")
    games = AtariVecEnv(
        "ALE/Boxing-v5", 2, noop_max=0, max_num_frames_per_episode=20, fire_reset=False
    )
    envs: Any = VecObjectSlots(games, device="cpu")
    envs.seed(1)
    seen, (expected, _) = envs.reset(), others.reset(seed=1)
    ended = 0
    for _ in range(7):
        assert seen["presence"].sum() >= 4  # two boxers each
        assert_same(seen, expected)
        seen, _, dones, infos = envs.step(np.array([2, 3]))
        expected, *_, told = others.step(np.array([2, 3]))
        for number in np.flatnonzero(dones):
            assert_same(infos[number]["terminal_observation"], told["final_obs"][number])
            ended += 1
    assert ended == 2


# ---------------------------------------------------------------- episodes and seeds


def test_a_step_is_one_forward_pass_and_one_more_of_those_that_begin_anew() -> None:
    perceiver = make_stub_perceiver()
    envs = VecObjectSlots(squares(), perceiver)
    envs.reset()
    for action in actions():
        perceiver.detector.calls.clear()
        over = int(envs.step(action)[2].sum())
        assert perceiver.detector.calls == ([N, over] if over else [N])


@pytest.mark.parametrize("below", [False, True])
def test_a_seeded_reset_begins_everything_anew_ids_too(below: bool) -> None:
    envs = slotted()
    first, unseeded = envs.reset(), envs.reset()
    assert unseeded["track_id"].max() > first["track_id"].max()
    (envs.venv if below else envs).seed(7)
    assert_same(envs.reset(), first)
    assert envs.reset()["track_id"].max() > first["track_id"].max()


def test_flat_observations_are_the_others_in_a_row() -> None:
    keys = ("presence", "position")
    flat, wide = slotted(keys=keys, flatten=True), slotted(keys=keys)
    vectors, rows = flat.reset(), wide.reset()
    for action in actions():
        assert isinstance(vectors, np.ndarray)
        assert vectors[0] in flat.observation_space
        parts = np.concatenate([rows[key] for key in keys], axis=-1)
        np.testing.assert_array_equal(vectors.reshape(N, 6, 3), parts)
        vectors, _, dones, infos = flat.step(action)
        rows, *_ = wide.step(action)
        for number in np.flatnonzero(dones):
            assert infos[number]["terminal_observation"] in flat.observation_space


# ---------------------------------------------------------------- saving and putting back


@both
def test_it_goes_on_from_a_saved_state(make: Callable[[], Any]) -> None:
    envs, again = VecObjectSlots(squares(), make()), VecObjectSlots(squares(), make())
    for vector in (envs, again):
        vector.seed(7)
        vector.reset()
    for action in actions()[:4]:
        envs.step(action)
        again.venv.step(action)
    alone = ObjectSlots(gym.make(MOVING_SQUARES), make())
    alone.set_state({name: tensor[1:2] for name, tensor in envs.get_state().items()})
    assert torch.equal(alone.slots.position[0], envs.slots.position[1])
    VecFrameStack(again, 2).set_state(envs.get_state())  # found through what is above
    assert_state(again.get_state(), envs.get_state())
    for action in actions()[4:]:
        assert_same(again.step(action)[0], envs.step(action)[0])
    with pytest.raises(ValueError, match="expected one of 3 environments, got one of 1"):
        envs.set_state(alone.get_state())


# ---------------------------------------------------------------- under and over SB3's wrappers


def test_a_frame_stack_above_puts_the_columns_of_a_row_side_by_side() -> None:
    envs: Any = VecFrameStack(slotted(), 3)
    plain = slotted()
    assert envs.observation_space["position"].shape == (6, 3 * 2)
    stacked, seen, ended = envs.reset(), plain.reset(), 0
    nothing = {key: np.zeros_like(field[0]) for key, field in seen.items()}
    past = [[nothing, nothing, row_of(seen, number)] for number in range(N)]

    def join(frames: list[Any]) -> dict[str, Any]:
        return {key: np.concatenate([frame[key] for frame in frames], axis=-1) for key in nothing}

    for action in actions(8):
        for number in range(N):
            assert_same(row_of(stacked, number), join(past[number]))
        stacked, _, dones, infos = envs.step(action)
        seen, _, _, told = plain.step(action)
        for number in range(N):
            past[number] = past[number][1:]
            if dones[number]:
                last = told[number]["terminal_observation"]
                expected = join([*past[number], last])
                assert_same(infos[number]["terminal_observation"], expected)
                past[number] = [nothing, nothing]
                ended += 1
            past[number].append(row_of(seen, number))
    assert ended >= N


@pytest.mark.parametrize("above", [False, True])
def test_a_monitor_below_or_above_counts_the_same_episodes(above: bool) -> None:
    if above:
        envs: VecEnv = VecMonitor(VecObjectSlots(squares(), make_stub_perceiver()))
    else:
        envs = VecObjectSlots(VecMonitor(squares()), make_stub_perceiver())
    bare = VecMonitor(squares())
    for vector in (envs, bare):
        vector.seed(7)
        vector.reset()
    ended = 0
    for action in actions():
        _, rewards, dones, infos = envs.step(action)
        _, expected, over, plain = bare.step(action)
        np.testing.assert_array_equal(rewards, expected)
        np.testing.assert_array_equal(dones, over)
        for info, other in zip(infos, plain, strict=True):
            assert info.keys() == other.keys()
            if "episode" in other:
                ended += 1
                assert [info["episode"][k] for k in "rl"] == [other["episode"][k] for k in "rl"]
                assert info["terminal_observation"]["position"].shape == (6, 2)
    assert ended > N


def test_normalisation_above_may_leave_bounded_fields_as_they_are() -> None:
    envs: Any = VecNormalize(slotted(), norm_obs_keys=["depth", "what"])
    plain = slotted()
    seen, expected = envs.reset(), plain.reset()
    for action in actions(10):
        for key, field in seen.items():
            same = np.array_equal(field, expected[key])
            assert same == (key not in ("depth", "what")), key
        seen, _, dones, infos = envs.step(action)
        expected, *_ = plain.step(action)
        for number in np.flatnonzero(dones):
            assert abs(infos[number]["terminal_observation"]["depth"]).max() > 0
    np.testing.assert_array_equal(envs.get_original_obs()["what"], expected["what"])


def test_normalisation_of_rewards_may_stand_below() -> None:
    envs = VecObjectSlots(VecNormalize(squares(), norm_obs=False), make_stub_perceiver())
    envs.seed(7)
    assert_same(envs.reset(), slotted().reset())
    assert envs.step(np.ones(N, int))[1].max() != 1


def test_what_changes_frames_must_stand_above() -> None:
    stub = make_stub_perceiver()
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\); put VecObjectSlots below VecTrans"):
        VecObjectSlots(VecTransposeImage(squares()), stub)
    with pytest.raises(ValueError, match=r"got \(32, 32, 12\).* below VecFrameStack, which"):
        VecObjectSlots(VecFrameStack(squares(), 4), stub)
    with pytest.raises(ValueError, match="scale_obs=False"):
        VecObjectSlots(VecNormalize(squares()), stub)
    with pytest.raises(ValueError, match=r"\(84, 84, 1\).*it looks grayscale"):
        VecObjectSlots(AtariVecEnv("ALE/Pong-v5", grayscale=True, screen_size=84), stub)


# ---------------------------------------------------------------- pictures


def test_boxes_are_drawn_also_from_above() -> None:
    envs = VecObjectSlots(squares(render_mode="rgb_array"), make_stub_perceiver())
    envs.reset()
    plain, drawn = envs.venv.get_images(), envs.get_images()
    slots = envs.slots
    for number in range(N):
        frame, boxes = plain[number], slots.boxes(64, 64)[number].numpy()
        presence, ids = slots.presence[number].numpy(), slots.track_id[number].numpy()
        assert frame is not None
        expected = draw_slots(frame, boxes, presence, ids)
        np.testing.assert_array_equal(drawn[number], expected)
        assert not np.array_equal(frame, expected)
    for vector in (envs, VecFrameStack(envs, 2)):
        tiled = vector.render()
        assert tiled is not None
        np.testing.assert_array_equal(tiled[:64, :64], drawn[0])


# ---------------------------------------------------------------- whose weights


def test_weights_are_chosen_by_what_made_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ship_stubs(monkeypatch, last_two=0)
    VecObjectSlots(VecMonitor(squares()))
    VecObjectSlots(squares(partial(SubprocVecEnv, start_method="fork")))
    VecObjectSlots(AtariVecEnv("PongNoFrameskip-v4", 2))
    assert loaded == ["squares", "squares", "pong"]
    with pytest.warns(UserWarning, match="this environment's show the brighter"):
        VecObjectSlots(AtariVecEnv("ALE/Pong-v5", 2, maxpool=True))


def test_the_baseline_is_fitted_also_to_what_make_vec_env_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baseline, "_fitted", {})
    monkeypatch.setattr(baseline, "FRAMES", 40)
    with pytest.warns(UserWarning, match="the baseline without learning is used"):
        envs = VecObjectSlots(make_vec_env(MOVING_SQUARES, N, seed=7), max_slots=5)
    assert envs.reset()["presence"].sum() > N
    assert envs.slots.presence.shape == (N, 5, 1)


def test_an_id_or_weights_are_needed() -> None:
    def nameless() -> gym.Env[Any, Any]:
        env = gym.make(MOVING_SQUARES).unwrapped
        env.spec = None
        return env

    def unsendable() -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(
            gym.make(MOVING_SQUARES), lambda frame: frame, None
        )

    with pytest.raises(ValueError, match="name the weights to use"):
        VecObjectSlots(DummyVecEnv([nameless]))
    with pytest.raises(ValueError, match=r"spec can be sent .* weights=objrl\.load\(name\)"):
        VecObjectSlots(SubprocVecEnv([unsendable], start_method="fork"))
    with pytest.raises(TypeError, match="weights: expected a name"):
        VecObjectSlots(squares(), 3)  # type: ignore[arg-type]


# ---------------------------------------------------------------- agents


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
@pytest.mark.parametrize("flatten", [False, True])
def test_agents_learn(algorithm: str, flatten: bool) -> None:
    envs = VecMonitor(VecFrameStack(slotted(flatten=flatten), 2))
    policy = "MlpPolicy" if flatten else "MultiInputPolicy"
    agent: PPO | DQN
    if algorithm == "PPO":
        agent = PPO(policy, envs, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    else:
        agent = DQN(policy, envs, learning_starts=10, batch_size=8, buffer_size=60, seed=0)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(16 * N)
    pairs = zip(before, agent.policy.parameters(), strict=True)
    assert sum(bool((old != new).any()) for old, new in pairs) >= len(before) // 2
    assert agent.ep_info_buffer
    assert {3, 4, 5, 6, 7, 8} >= {info["l"] for info in agent.ep_info_buffer}


def test_what_an_agent_sees_follows_from_its_seed() -> None:
    envs = slotted()

    def play() -> npt.NDArray[np.int64]:
        PPO("MultiInputPolicy", envs, n_steps=8, batch_size=24, n_epochs=1, seed=3).learn(8 * N)
        return envs.slots.track_id.numpy().copy()  # type: ignore[no-any-return]

    first = play()
    np.testing.assert_array_equal(play(), first)
