"""What `ObjectSlots` sees with where no weights are shipped for the game."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from objrl.models.median import Median
from objrl.wrappers import ObjectSlots, VectorObjectSlots, baseline
from tests.helpers import MOVING_SQUARES, MovingSquares

gym.register_envs(ale_py)
N = 2
STEPS = 12  # several episodes of 3 to 8 steps
SILENT = "ignore:no weights are shipped:UserWarning"


@pytest.fixture(autouse=True)
def nothing_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a new process does, and play little."""
    monkeypatch.setattr(baseline, "_fitted", {})
    monkeypatch.setattr(baseline, "FRAMES", 40)
    monkeypatch.setattr(baseline, "STRIDE", 2)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The frames of every fit from here on."""
    seen: list[Any] = []
    fit = Median.fit

    def watched(frames: Any, *config: Any) -> Median:
        seen.append(frames)
        return fit(frames, *config)

    monkeypatch.setattr(Median, "fit", watched)
    return seen


def squares(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(MOVING_SQUARES, **kwargs)


def inverted(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return gym.wrappers.TransformObservation(env, lambda frame: 255 - frame, env.observation_space)


def play(env: gym.Env[Any, Any], seed: int) -> list[dict[str, Any]]:
    """Return STEPS + 1 observations of several episodes."""
    seen = [env.reset(seed=seed)[0]]
    over = False
    for _ in range(STEPS):
        if over:
            observation, over = env.reset()[0], False
        else:
            observation, _, terminated, truncated, _ = env.step(1)
            over = terminated or truncated
        seen.append(observation)
    return seen


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for key in one.keys() - {"track_id"}:  # in a vector all environments share the numbers
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


# ---------------------------------------------------------------- the warning


def test_a_warning_says_what_is_used_instead_and_how_to_do_better() -> None:
    with pytest.warns(UserWarning, match="no weights") as told:
        ObjectSlots(squares())
    (warning,) = told
    assert warning.filename == __file__  # the line that asked for it
    text = str(warning.message)
    assert text.startswith(f"no weights are shipped for '{MOVING_SQUARES}' (shipped: space-")
    assert "without learning is used (median background" in text
    assert "40 frames of random play" in text
    assert f"`objrl pretrain --env {MOVING_SQUARES} --minutes 10`" in text
    assert "weights=" in text


def test_it_is_fitted_once_for_a_game_as_it_is_shown(fits: list[Any]) -> None:
    with pytest.warns(UserWarning, match="no weights"):
        ObjectSlots(squares())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ObjectSlots(squares(), max_slots=5)
        ObjectSlots(squares(render_mode="rgb_array"))
        VectorObjectSlots(SyncVectorEnv([squares] * N))
    assert len(fits) == 1
    for other in (squares(size=48), squares(squares=2), inverted(squares())):
        with pytest.warns(UserWarning, match="no weights"):
            ObjectSlots(other)
    assert len(fits) == 4


# ---------------------------------------------------------------- what it sees


@pytest.mark.filterwarnings(SILENT)
def test_it_sees_what_moves() -> None:
    env = ObjectSlots(squares(), max_slots=5)
    observation, _ = env.reset(seed=8)  # squares well apart, and away from the edges
    assert observation in env.observation_space
    assert isinstance(observation, dict)
    assert observation["presence"].ravel().tolist() == [1, 1, 1, 0, 0]
    corners = env.unwrapped._corners  # type: ignore[attr-defined]
    expected = {tuple(corner) for corner in (corners + 2) / 16 - 1}
    assert {tuple(centre) for centre in observation["position"][:3]} == expected


@pytest.mark.filterwarnings(SILENT)
def test_what_is_played_is_always_the_same_and_of_several_episodes(
    fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for env in (squares(), squares(render_mode="rgb_array")):
        monkeypatch.setattr(baseline, "_fitted", {})
        env.reset(seed=len(fits))
        ObjectSlots(env)
    np.testing.assert_array_equal(fits[0], fits[1])
    assert fits[0].shape == (40, 32, 32, 3)
    assert len({frame.tobytes() for frame in fits[0]}) > 20


@pytest.mark.filterwarnings(SILENT)
@pytest.mark.parametrize("wrap", [lambda env: env, inverted])
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_every_process_and_a_vector_see_the_same(
    kind: Any, wrap: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []
    for seed in range(3, 3 + N):
        monkeypatch.setattr(baseline, "_fitted", {})
        alone.append(play(ObjectSlots(wrap(squares())), seed))
    assert any(observation["presence"].sum() == 3 for observation in alone[0])
    monkeypatch.setattr(baseline, "_fitted", {})
    assert_same(play(ObjectSlots(wrap(squares())), 3), alone[0])
    monkeypatch.setattr(baseline, "_fitted", {})
    envs = VectorObjectSlots(kind([lambda: wrap(squares())] * N))
    together: list[Any] = [envs.reset(seed=3)[0]]
    together += [envs.step(np.ones(N, int))[0] for _ in range(STEPS)]
    for number in range(N):
        rows = [{key: field[number] for key, field in seen.items()} for seen in together]
        assert_same(rows, alone[number])
    envs.close()


@pytest.mark.filterwarnings(SILENT)
@pytest.mark.parametrize("height", [210, 105])
def test_it_sees_ales_own_vector_environment_whatever_its_frames_are_made_into(height: int) -> None:
    options: dict[str, Any] = {
        "grayscale": False,
        "stack_num": 1,
        "img_height": height,
        "img_width": 160,
    }
    envs = VectorObjectSlots(gym.make_vec("ALE/Gopher-v5", N, noop_max=0, **options))
    single = ObjectSlots(gym.make("ALE/Gopher-v5"))
    envs.reset(seed=1)
    for _ in range(20):
        envs.step(np.full(N, 2))
    assert 1 <= (envs.slots.presence[0] > 0).sum() <= 6  # scores, paddles, the ball
    backgrounds = [
        env.perceiver.detector.faces[0].float().numpy()  # type: ignore[attr-defined]
        for env in (envs, single)
    ]
    assert backgrounds[0].shape == (height, 160, 3)
    step = 210 // height
    # Equal but where a resized row is a mixture of two.
    close = np.abs(backgrounds[0] - backgrounds[1][::step]).max(axis=2) < 3
    assert close.mean() > (0.999 if step == 1 else 0.9)
    envs.close()


@pytest.mark.filterwarnings(SILENT)
def test_it_sees_environments_that_observe_what_they_render() -> None:
    rendered = gym.wrappers.AddRenderObservation(squares(render_mode="rgb_array"))
    observation, _ = ObjectSlots(rendered).reset(seed=3)
    assert isinstance(observation, dict)
    assert observation["presence"].sum() == 3


@pytest.mark.filterwarnings(SILENT)
def test_a_spec_by_way_of_json_makes_the_same_again() -> None:
    env = ObjectSlots(squares(), max_slots=5)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))  # type: ignore[union-attr]
    assert_same(play(again, 3), play(env, 3))


# ---------------------------------------------------------------- what it leaves alone


@pytest.mark.filterwarnings(SILENT)
def test_the_environment_goes_on_as_if_nothing_had_been_played() -> None:
    env, bare = squares(), squares()
    for one in (env, bare):
        one.action_space.seed(5)
        one.reset(seed=5)
        one.step(1)
    drawn = torch.get_rng_state()
    slots = ObjectSlots(env)
    assert torch.equal(torch.get_rng_state(), drawn)
    for _ in range(20):
        action = bare.action_space.sample()
        assert slots.action_space.sample() == action
        frame, reward, terminated, truncated, info = bare.step(action)
        assert slots.step(action)[1:] == (reward, terminated, truncated, info)
        np.testing.assert_array_equal(env.unwrapped._frame(), frame)  # type: ignore[attr-defined]
        if terminated or truncated:
            bare.reset()
            slots.reset()


@pytest.mark.filterwarnings(SILENT)
def test_what_is_played_shows_no_window_collects_no_pictures_and_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[str | None] = []
    closed: list[Any] = []

    class Window(MovingSquares):
        metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(render_mode=render_mode)
            modes.append(render_mode)

        def close(self) -> None:
            closed.append(self)

    make: Any = Window
    monkeypatch.setitem(gym.registry, "Window-v0", EnvSpec("Window-v0", entry_point=make))
    ObjectSlots(gym.make("Window-v0", render_mode="human"))
    assert modes == ["human", None]
    assert len(closed) == 1
    env = gym.wrappers.RenderCollection(gym.make("Window-v0", render_mode="rgb_array"))

    def collect(*_: Any, **__: Any) -> None:
        raise AssertionError("a second collection of pictures")

    monkeypatch.setattr(baseline, "_fitted", {})
    monkeypatch.setattr(gym.wrappers.RenderCollection, "__init__", collect)
    ObjectSlots(env)


@pytest.mark.filterwarnings(SILENT)
def test_moving_one_perceiver_elsewhere_leaves_the_others() -> None:
    one, other = ObjectSlots(squares()), ObjectSlots(squares())
    before = other.perceiver.detector.faces.clone()  # type: ignore[attr-defined]
    one.perceiver.detector.faces.fill_(9)  # type: ignore[attr-defined]
    for env in (other, ObjectSlots(squares())):
        assert torch.equal(env.perceiver.detector.faces, before)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- checkers and mistakes


@pytest.mark.filterwarnings(SILENT)
def test_gymnasium_and_sb3_find_no_fault() -> None:
    env = ObjectSlots(squares(render_mode="rgb_array"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (
            ".*different from the unwrapped version.*",  # inherent to checking a wrapped one
            ".*A Box observation space m..imum value is -?infinity.*",  # depth and what
            "Your observation .* has an unconventional shape",  # SB3 expects images and vectors
        ):
            warnings.filterwarnings("ignore", message=expected)
        check_env(env)
        check_env_for_sb3(ObjectSlots(squares()))
        check_env_for_sb3(ObjectSlots(squares(), flatten=True))


def test_an_environment_that_cannot_be_made_again_needs_weights() -> None:
    class Unrecorded(gym.Wrapper[Any, Any, Any, Any]):
        """Does not keep its arguments."""

    match = (
        rf"no weights .* for '{MOVING_SQUARES}'.*cannot be made again .*RecordConstructorArgs.*"
        rf"`objrl pretrain --env {MOVING_SQUARES} --minutes 10`"
    )
    with pytest.raises(ValueError, match=match):
        ObjectSlots(Unrecorded(squares()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_slots": 0}, "max_slots: expected at least 1, got 0"),
        ({"device": "tpu"}, "device: expected 'auto', 'cpu'"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_played(
    options: dict[str, Any], match: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=match):
            ObjectSlots(squares(), **options)
