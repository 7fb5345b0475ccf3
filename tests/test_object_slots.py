"""`ObjectSlots`: what an agent sees of one environment."""

from __future__ import annotations

import json
import warnings
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from objrl.draw import draw_slots
from objrl.slots import Slots
from objrl.weights import registry
from objrl.wrappers import ObjectSlots
from objrl.wrappers.choose import game_of, weights_for
from tests.helpers import (
    MOVING_SQUARES,
    BlobDetector,
    MovingSquares,
    make_stub_perceiver,
)

gym.register_envs(ale_py)
WRAPPED = ".*different from the unwrapped version.*"  # inherent to checking a wrapped environment
UNBOUNDED = ".*A Box observation space m..imum value is -?infinity.*"  # depth and what
ROWS = "Your observation .* has an unconventional shape"  # SB3 expects images and vectors


def squares(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(MOVING_SQUARES, **kwargs)


def slotted(**kwargs: Any) -> ObjectSlots[Any]:
    return ObjectSlots(squares(), make_stub_perceiver(), **kwargs)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Ship three weights by name, all of them the stub; returns what was loaded, and how."""
    loaded: list[tuple[str, Any]] = []
    ids = {
        "median-moving_squares": (MOVING_SQUARES,),
        "space-moving_squares": (MOVING_SQUARES,),
        "space-pong": ("ALE/Pong-v5",),
    }
    entries = [
        registry.Weights(
            name=name, file="", sha256="", model="", env_ids=env_ids, title="", metrics={}
        )
        for name, env_ids in ids.items()
    ]

    def load(name: str, **options: Any) -> Any:
        loaded.append((name, options))
        return make_stub_perceiver(max_slots=options["max_slots"] or 6)

    monkeypatch.setattr(registry, "list_weights", lambda: entries)
    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(registry, "read_header", lambda _: {"data": {}})
    return loaded


# ---------------------------------------------------------------- observations


def test_the_observation_is_one_row_per_object_in_the_documented_space() -> None:
    env = slotted()
    observation, _ = env.reset(seed=3)
    assert isinstance(observation, dict)
    assert observation in env.observation_space
    shapes = {key: (field.shape, field.dtype.name) for key, field in observation.items()}
    assert shapes == {
        "position": ((6, 2), "float32"),
        "velocity": ((6, 2), "float32"),
        "scale": ((6, 2), "float32"),
        "depth": ((6, 1), "float32"),
        "what": ((6, 4), "float32"),
        "presence": ((6, 1), "float32"),
        "track_id": ((6, 1), "int64"),
    }
    assert observation["presence"].sum() == 3
    corners = env.unwrapped._corners  # type: ignore[attr-defined]
    expected = {tuple(corner) for corner in (corners + 2) / 16 - 1}
    assert {tuple(centre) for centre in observation["position"][:3]} == expected
    np.testing.assert_array_equal(observation["scale"][:3], 4 / 32)


def test_gymnasium_finds_no_fault() -> None:
    env = ObjectSlots(squares(render_mode="rgb_array"), make_stub_perceiver())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (WRAPPED, UNBOUNDED):
            warnings.filterwarnings("ignore", message=expected)
        check_env(env)


@pytest.mark.parametrize("flatten", [False, True])
def test_sb3_finds_no_fault_and_has_no_remark_on_the_flat_form(flatten: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not flatten:
            warnings.filterwarnings("ignore", message=ROWS)
        check_env_for_sb3(slotted(flatten=flatten))


def test_ppo_learns_from_slots() -> None:
    env = slotted()
    agent = PPO("MultiInputPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    changed = [bool((a != b).any()) for a, b in zip(before, agent.policy.parameters(), strict=True)]
    assert agent.num_timesteps == 64
    assert all(changed)


def test_flat_columns_are_rows_then_keys_in_the_order_asked_for() -> None:
    keys = ("presence", "track_id", "position")
    flat_env, env = slotted(keys=keys, flatten=True), slotted(keys=keys)
    flat, _ = flat_env.reset(seed=1)
    observation, _ = env.reset(seed=1)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert set(observation) == set(env.observation_space.spaces) == set(keys)
    assert isinstance(flat, np.ndarray)
    assert flat in flat_env.observation_space
    assert (flat.shape, flat.dtype.name) == ((6 * 4,), "float32")
    rows = np.concatenate([observation[key] for key in keys], axis=1)
    np.testing.assert_array_equal(flat.reshape(6, -1), rows)


def test_all_fields_by_default_but_no_ids_in_the_flat_form() -> None:
    everything = ("position", "velocity", "scale", "depth", "what", "presence", "track_id")
    flat, _ = slotted(flatten=True).reset(seed=1)
    observation, _ = slotted().reset(seed=1)
    assert set(observation) == set(everything)
    rows = np.concatenate([observation[key] for key in everything[:-1]], axis=1)
    np.testing.assert_array_equal(flat, rows.ravel())
    named, _ = slotted(keys=everything, flatten=True).reset(seed=1)
    assert isinstance(named, np.ndarray)
    assert named.shape == (6 * (rows.shape[1] + 1),)


def test_velocity_is_the_displacement_of_a_followed_object() -> None:
    env = slotted()
    before, _ = env.reset(seed=1)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert env.observation_space["velocity"] == Box(-2, 2, (6, 2), np.float32)
    assert not before["velocity"].any()
    after, *_ = env.step(2)
    assert after in env.observation_space
    np.testing.assert_array_equal(after["track_id"], before["track_id"])
    moved = after["position"] - before["position"]
    assert (moved[:3] != 0).any(axis=1).all()
    np.testing.assert_allclose(after["velocity"], moved, atol=1e-6)
    again, _ = env.reset()
    assert not again["velocity"].any()


def test_the_last_slots_stay_at_hand_whatever_is_done_to_the_observation() -> None:
    env = slotted(keys=("position",))
    observation, _ = env.reset(seed=0)
    seen = observation["position"].copy()
    observation["position"][:] = 7
    assert isinstance(env.slots, Slots)
    assert env.slots.what.shape == (1, 6, 4)  # also what was not asked for
    np.testing.assert_array_equal(env.slots.position[0].numpy(), seen)


# ---------------------------------------------------------------- episodes


def test_ids_last_an_episode_and_are_never_used_again_until_a_seeded_reset() -> None:
    env = slotted(keys=("track_id", "presence"))
    used: set[int] = set()
    observation, _ = env.reset(seed=5)
    for _ in range(4):
        over, new = False, set(observation["track_id"][:3, 0].tolist())
        assert not new & used
        used |= new
        while not over:
            first = observation
            observation, _, terminated, truncated, _ = env.step(1)
            over = terminated or truncated
            both = (first["presence"] > 0) & (observation["presence"] > 0)
            np.testing.assert_array_equal(first["track_id"][both], observation["track_id"][both])
            used |= set(observation["track_id"][observation["presence"] > 0].tolist())
        observation, _ = env.reset()
    observation, _ = env.reset(seed=5)
    assert sorted(observation["track_id"][:3, 0]) == [0, 1, 2]


def test_everything_but_the_observation_passes_untouched() -> None:
    env, bare = slotted(), squares()
    assert env.reset(seed=2)[1] == bare.reset(seed=2)[1] == {"steps": 0}
    assert env.step(2)[1:] == bare.step(2)[1:]


# ---------------------------------------------------------------- wrappers around it


def test_it_stands_above_and_below_other_wrappers() -> None:
    env: gym.Env[Any, Any] = gym.wrappers.TimeLimit(squares(), 2)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = ObjectSlots(gym.wrappers.FrameStackObservation(env, 1), make_stub_perceiver())
    env = gym.wrappers.FrameStackObservation(
        gym.wrappers.TransformReward(env, lambda r: 2 * float(r)), 2
    )
    observation, _ = env.reset(seed=0)
    assert observation["position"].shape == (2, 6, 2)
    env.step(1)
    observation, reward, _, truncated, info = env.step(1)
    assert observation in env.observation_space
    assert (reward, truncated) == (2, True)
    assert info["episode"]["r"] == 2


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_it_sees_atari_also_below_atari_preprocessing(env_id: str) -> None:
    env = gym.make(env_id, frameskip=1)
    half = gym.wrappers.AtariPreprocessing(
        env, noop_max=0, screen_size=(80, 105), grayscale_obs=False
    )
    seen = []
    for shown in (env, half):
        slots = ObjectSlots(shown, make_stub_perceiver(threshold=150))
        observation, _ = slots.reset(seed=0)
        assert observation in slots.observation_space
        assert observation["presence"].sum() == 3  # two scores and the agent's paddle
        seen.append(observation)
    np.testing.assert_allclose(seen[0]["position"], seen[1]["position"], atol=0.02)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "change", "advice"),
    [
        ("ALE/Pong-v5", {"obs_type": "ram"}, "obs_type='rgb'"),
        ("ALE/Pong-v5", {"obs_type": "grayscale"}, "looks grayscale: .*obs_type='rgb'"),
        (MOVING_SQUARES, gym.wrappers.GrayscaleObservation, "grayscale_obs=False"),
        (
            MOVING_SQUARES,
            lambda env: gym.wrappers.GrayscaleObservation(env, keep_dim=True),
            "looks grayscale",
        ),
        (
            MOVING_SQUARES,
            lambda env: gym.wrappers.FrameStackObservation(
                gym.wrappers.GrayscaleObservation(env), 4
            ),
            r"got Box\(0, 255, \(4, 32, 32\), uint8\).*grayscale stack",
        ),
        (
            MOVING_SQUARES,
            lambda env: gym.wrappers.FrameStackObservation(env, 4),
            "FrameStackObservation goes above",
        ),
        (
            MOVING_SQUARES,
            lambda env: gym.wrappers.RescaleObservation(
                gym.wrappers.DtypeObservation(env, np.float32), np.float32(0), np.float32(1)
            ),
            "scale_obs=False",
        ),
        (
            MOVING_SQUARES,
            lambda env: gym.wrappers.TransformObservation(
                env, lambda frame: frame.transpose(2, 0, 1), Box(0, 255, (3, 32, 32), np.uint8)
            ),
            "colours last",
        ),
        ("FrozenLake-v1", {}, r"got Discrete\(16\); wrap the environment that shows frames"),
    ],
)
def test_what_is_no_rgb_frame_is_refused_with_advice(env_id: str, change: Any, advice: str) -> None:
    if isinstance(change, dict):
        env: gym.Env[Any, Any] = gym.make(env_id, **change)
    else:
        env = change(gym.make(env_id))
    with pytest.raises(ValueError, match=advice):
        ObjectSlots(env, make_stub_perceiver())


# ---------------------------------------------------------------- weights and spec


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("ALE/Pong-v5", "space-pong"),
        ("PongNoFrameskip-v4", "space-pong"),
        (MOVING_SQUARES, "space-moving_squares"),  # SPACE before the others
    ],
)
def test_weights_are_chosen_by_the_game(env_id: str, name: str, shelf: list[Any]) -> None:
    env = ObjectSlots(gym.make(env_id), max_slots=4, device="cpu")
    assert shelf == [(name, {"max_slots": 4, "device": "cpu"})]
    assert env.slots.presence.shape == (1, 4, 1)


@pytest.mark.usefixtures("shelf")
def test_a_game_without_weights_says_what_there_is_and_how_to_make_some() -> None:
    with pytest.raises(
        ValueError,
        match=r"'ALE/Breakout-v5' \(shipped: .*space-pong\).*"
        "`objrl pretrain --env ALE/Breakout-v5 --minutes 10`",
    ):
        weights_for("ALE/Breakout-v5")


@pytest.mark.usefixtures("shelf")
def test_an_id_that_is_not_registered_is_corrected() -> None:
    with pytest.raises(ValueError, match=r"got 'ALE/Braekout-v5'; did you mean ALE/Breakout-v5"):
        weights_for("ALE/Braekout-v5")
    with pytest.raises(ValueError, match="got 'qqqq'; is its package imported"):
        weights_for("qqqq")


def test_an_environment_without_an_id_needs_named_weights() -> None:
    with pytest.raises(ValueError, match="name the weights"):
        ObjectSlots(MovingSquares())


def test_games_are_told_from_ids_as_ale_spells_them() -> None:
    wrong = {
        env_id
        for env_id, spec in gym.registry.items()
        if "game" in spec.kwargs and game_of(env_id) != spec.kwargs["game"]
        if not env_id.startswith("objrl-test/")  # ours, not ALE's
    }
    # Their rom names have no underscore before the digit; both sides of a match are spelt by us.
    assert wrong <= {"ALE/Atlantis2-v5", "ALE/Pitfall2-v5"}
    assert game_of("Other/Pong-v5") != game_of("ALE/Pong-v5")


@pytest.mark.parametrize("keys", [None, ("presence", "what")])
@pytest.mark.parametrize("weights", [None, "space-pong"])
def test_the_spec_makes_the_same_environment_again_also_by_way_of_json(
    weights: str | None, keys: tuple[str, ...] | None, shelf: list[Any]
) -> None:
    env = ObjectSlots(squares(), weights, max_slots=5, keys=keys, flatten=True)
    text = env.spec.to_json()  # type: ignore[union-attr]
    json.loads(text)
    for spec in (env.spec, EnvSpec.from_json(text)):
        again = gym.make(spec)  # type: ignore[arg-type]
        assert again.observation_space == env.observation_space
        np.testing.assert_array_equal(again.reset(seed=4)[0], env.reset(seed=4)[0])
    assert len(set(map(repr, shelf))) == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"keys": ("position", "colour")}, ValueError, "expected some of .*'colour'"),
        ({"keys": ()}, ValueError, "expected some of"),
        ({"keys": ("depth", "depth")}, ValueError, "at most once"),
        ({"keys": "position"}, ValueError, r"write \('position',\)"),
        ({"max_slots": 3}, ValueError, "leave out max_slots and device"),
        ({"device": "cpu"}, ValueError, "leave out max_slots and device"),
        ({"weights": BlobDetector()}, TypeError, "BlobDetector; .*FramePerceiver around it"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ObjectSlots(squares(), **{"weights": make_stub_perceiver(), **options})


# ---------------------------------------------------------------- pictures


def test_render_draws_the_slots_at_the_size_of_the_rendered_frame() -> None:
    env = ObjectSlots(squares(render_mode="rgb_array"), make_stub_perceiver())
    env.reset(seed=0)
    env.step(2)
    plain = env.env.render()
    boxes = env.slots.boxes(64, 64)[0].numpy()  # rendered at twice the frame's size
    ids, presence = env.slots.track_id[0, :, 0].numpy(), env.slots.presence[0, :, 0].numpy()
    assert isinstance(plain, np.ndarray)
    expected = draw_slots(plain, boxes, presence, ids)
    np.testing.assert_array_equal(env.render(), expected)
    assert not np.array_equal(expected, plain)


def test_a_wrapper_above_records_what_is_drawn() -> None:
    env = ObjectSlots(squares(render_mode="rgb_array"), make_stub_perceiver())
    recorded = gym.wrappers.RenderCollection(env)
    recorded.reset(seed=0)
    np.testing.assert_array_equal(recorded.render()[0], env.render())


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env = ObjectSlots(MovingSquares(), make_stub_perceiver())
    env.reset(seed=0)
    assert env.render() is None


def test_weights_of_another_game_are_warned_of() -> None:
    env = gym.make("ALE/Pong-v5")
    with pytest.warns(UserWarning, match=r"learnt from space_invaders, not from ALE/Pong-v5"):
        ObjectSlots(env, "space-space_invaders")


def test_shipped_weights_are_found_by_the_game() -> None:
    env = ObjectSlots(gym.make("ALE/SpaceInvaders-v5"))
    observation, _ = env.reset(seed=0)
    # 36 aliens, 3 shields, and digits of the score.
    assert 40 <= (observation["presence"] > 0).sum() <= 60
