"""`AtariVecEnv`: ALE's vector environments as Stable-Baselines3 expects them."""

from __future__ import annotations

from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from objrl.wrappers import AtariVecEnv, VecObjectSlots
from tests.helpers import MOVING_SQUARES, make_stub_perceiver

gym.register_envs(ale_py)
BREAKOUT = "ALE/Breakout-v5"
FIRE = 1
AT_ONCE: dict[str, Any] = {"noop_max": 0, "fire_reset": False}  # a game begins with its first frame


class Always:
    """An agent that does one thing."""

    def __init__(self, action: int) -> None:
        self.action = action

    def predict(self, observations: Any, **_: Any) -> tuple[npt.NDArray[np.int64], None]:
        return np.full(len(observations), self.action), None


def actions(envs: AtariVecEnv, steps: int) -> npt.NDArray[np.int64]:
    count = envs.get_attr("action_space")[0].n
    return np.random.default_rng(0).integers(0, count, (steps, envs.num_envs))


def told(info: dict[str, Any]) -> dict[str, Any]:
    """Return what can be compared of an info."""
    episode = {key: info["episode"][key] for key in "rl"} if "episode" in info else None
    return {**info, "terminal_observation": "terminal_observation" in info, "episode": episode}


# ---------------------------------------------------------------- beside make_atari_env


@pytest.mark.parametrize(
    ("game", "clip"), [("Asterix", False), ("Asterix", True), ("Freeway", True)]
)
def test_all_is_as_with_sb3_where_games_begin_alike(game: str, clip: bool) -> None:
    """In games without FIRE, whose lives are left alone."""
    frames = 300
    theirs = make_atari_env(
        *(f"{game}NoFrameskip-v4", 2),
        env_kwargs={"max_num_frames_per_episode": frames},
        wrapper_kwargs={
            **{"noop_max": 0, "screen_size": 20},
            **{"clip_reward": clip, "terminal_on_life_loss": False},
        },
    )
    ours = AtariVecEnv(
        *(f"ALE/{game}-v5", 2),
        noop_max=0,
        clip_reward=clip,
        terminal_on_life_loss=False,
        screen_size=20,
        max_num_frames_per_episode=frames,
    )
    assert theirs.seed(3) == ours.seed(3) == [3, 4]
    assert theirs.action_space == ours.action_space
    theirs.reset()
    ours.reset()
    moved, ended = 0.0, 0
    for action in actions(ours, 155):
        _, rewards, dones, infos = ours.step(action)
        _, expected, over, plain = theirs.step(action)
        np.testing.assert_array_equal(rewards, expected)
        np.testing.assert_array_equal(dones, over)
        assert (rewards.dtype, dones.dtype) == (expected.dtype, over.dtype)
        assert [told(info) for info in infos] == [told(info) for info in plain]
        moved += float(abs(rewards).sum())
        ended += int(dones.sum())
    assert ended == 4
    assert moved > 0 or game == "Freeway"  # where nobody crosses the road by chance


@pytest.mark.parametrize(
    ("game", "steps", "lost_life", "beginning"),
    [("MsPacman", 400, [0], []), ("Breakout", 200, [0, FIRE, 2], [FIRE, 2])],
)
def test_all_is_as_with_sb3_once_its_unseen_steps_are_taken(
    game: str, steps: int, lost_life: list[int], beginning: list[int]
) -> None:
    """SB3 plays some steps itself where a game or a life begins."""
    theirs = make_atari_env(
        f"{game}NoFrameskip-v4", wrapper_kwargs={"noop_max": 0, "screen_size": 20}
    )
    ours = AtariVecEnv(f"ALE/{game}-v5", **AT_ONCE, screen_size=20)

    def catch_up(unseen: list[int]) -> None:
        for action in unseen:
            assert not ours.step(np.array([action]))[2].any()

    theirs.reset()
    ours.reset()
    catch_up(beginning)
    lives, games = 0, 0
    for action in actions(ours, steps):
        _, rewards, dones, infos = ours.step(action)
        _, expected, over, plain = theirs.step(action)
        assert (rewards[0], dones[0]) == (expected[0], over[0])
        assert told(infos[0]) == told(plain[0])
        if dones[0]:
            lost = infos[0]["lives"] > 0
            lives, games = lives + lost, games + (not lost)
            catch_up(lost_life if lost else beginning)
    assert lives >= 2
    assert games >= 1


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("maxpool", [False, True])
def test_frames_are_those_of_the_game_that_its_spec_makes(maxpool: bool) -> None:
    envs = AtariVecEnv("ALE/SpaceInvaders-v5", **AT_ONCE, maxpool=maxpool)
    small = AtariVecEnv("ALE/SpaceInvaders-v5", **AT_ONCE, maxpool=maxpool, screen_size=(84, 60))
    alone = gym.make(envs.get_attr("spec")[0])
    assert (envs.observation_space.shape, small.observation_space.shape) == (
        (210, 160, 3),
        (84, 60, 3),
    )
    shown: Any = envs.reset()
    sized: Any = small.reset()
    expected = alone.reset()[0]
    for action in actions(envs, 30):
        assert shown.dtype == np.uint8
        np.testing.assert_array_equal(shown, expected[None])
        resized = cv2.resize(expected, (60, 84), interpolation=cv2.INTER_AREA)
        assert abs(sized[0].astype(int) - resized).max() <= 1
        shown, _, dones, _ = envs.step(action)
        sized = small.step(action)[0]
        expected = alone.step(action[0])[0]
        assert not dones.any()


@pytest.mark.parametrize("grayscale", [False, True])
def test_a_stack_has_the_newest_frame_last(grayscale: bool) -> None:
    options = {**AT_ONCE, "screen_size": 84, "grayscale": grayscale}
    envs, single = (
        AtariVecEnv(BREAKOUT, 2, stack_num=4, **options),
        AtariVecEnv(BREAKOUT, 2, **options),
    )
    width = 1 if grayscale else 3
    assert envs.observation_space == gym.spaces.Box(0, 255, (84, 84, 4 * width), np.uint8)
    stacked: Any = envs.reset()
    newest: Any = single.reset()
    assert not stacked[..., :-width].any()
    for action in actions(envs, 6):
        before = stacked
        np.testing.assert_array_equal(stacked[..., -width:], newest)
        stacked, newest = envs.step(action)[0], single.step(action)[0]
        np.testing.assert_array_equal(stacked[..., :-width], before[..., width:])
    images = envs.get_images()
    assert [image.shape for image in images] == [(84, 84, 3)] * 2
    np.testing.assert_array_equal(images[1][..., 2], newest[1, ..., -1])


def test_it_renders_what_it_shows() -> None:
    envs = AtariVecEnv(BREAKOUT, 2, screen_size=84)
    shown = envs.reset()
    picture = envs.render()
    assert picture is not None
    np.testing.assert_array_equal(picture, np.concatenate(list(shown)))
    assert envs.get_attr("metadata")[0]["render_fps"] == 15


# ---------------------------------------------------------------- seeds


def test_the_seed_decides_on_no_ops_and_sticky_actions_until_the_next() -> None:
    def play(seed: int) -> npt.NDArray[np.uint8]:
        envs = AtariVecEnv("ALE/SpaceInvaders-v5", 2, screen_size=20, action_repeat_probability=0.5)
        envs.seed(seed)
        shown: list[Any] = [envs.reset()]
        both = actions(envs, 8)[:, :1].repeat(2, axis=1)  # chance alone parts the two games
        shown += [envs.step(action)[0] for action in both]
        shown += [envs.reset() for _ in range(3)]
        return np.stack(shown)

    first = play(2**32 - 1)  # the largest that SB3 draws
    np.testing.assert_array_equal(first, play(2**32 - 1))
    assert (first != play(5)).any()
    assert (first[:, 0] != first[:, 1]).any()
    assert len(np.unique(first[-3:, 0], axis=0)) > 1


@pytest.mark.parametrize("sticky", [0.0, 0.5])
def test_each_game_has_sticky_actions_of_its_own(sticky: float) -> None:
    envs = AtariVecEnv(
        "ALE/SpaceInvaders-v5", 2, screen_size=20, action_repeat_probability=sticky, **AT_ONCE
    )
    envs.seed(3)
    envs.reset()
    both = actions(envs, 60)[:, :1].repeat(2, axis=1)  # for some 30 nobody can move yet
    shown: list[Any] = [envs.step(action)[0] for action in both]
    first, second = np.stack(shown).swapaxes(0, 1)
    assert (first != second).any() == (sticky > 0)


# ---------------------------------------------------------------- lives and games


def test_a_lost_life_ends_the_episode_and_the_game_goes_on() -> None:
    envs = AtariVecEnv(BREAKOUT, screen_size=84, noop_max=0, clip_reward=False)
    first, returns, length = envs.reset(), 0.0, 0
    lives: list[int] = []
    shown: Any
    while len(lives) < 5:
        length += 1
        shown, rewards, dones, infos = envs.step(np.array([2 + length // 3 % 2]))
        returns += float(rewards[0])
        if not dones[0]:
            continue
        info = infos[0]
        lives.append(info["lives"])
        last = info["terminal_observation"]
        assert last in envs.observation_space
        assert np.array_equal(last, shown[0]) == (info["lives"] > 0)
        assert ("episode" in info) == (info["lives"] == 0)
    # Without a hand on FIRE: it is pressed as every life begins.
    assert lives == [4, 3, 2, 1, 0]
    assert info["episode"]["r"] == returns
    assert 4 * length - 4 < info["episode"]["l"] <= 4 * length
    assert info["episode_frame_number"] == info["episode"]["l"]
    np.testing.assert_array_equal(shown, first)
    assert envs.reset_infos[0]["lives"] == 5
    assert envs.reset_infos[0]["episode_frame_number"] == 0


def test_a_game_that_waits_for_fire_begins_also_with_sticky_actions() -> None:
    """Of 16 games the press of a single frame would be swallowed in four."""
    envs = AtariVecEnv(BREAKOUT, 16, screen_size=20, action_repeat_probability=0.25)
    envs.reset()
    lost = np.zeros(16, np.bool_)
    for _ in range(60):
        lost |= envs.step(np.zeros(16, np.int64))[2]
    assert lost.all()


def test_without_fire_reset_nobody_fires() -> None:
    envs = AtariVecEnv(BREAKOUT, screen_size=20, fire_reset=False)
    envs.reset()
    assert not any(envs.step(np.array([0]))[2].any() for _ in range(60))


def test_evaluation_takes_whole_games_for_episodes() -> None:
    envs = AtariVecEnv(BREAKOUT, 2, screen_size=20, max_num_frames_per_episode=300)
    agent: Any = Always(FIRE)
    both: Any = evaluate_policy(agent, envs, n_eval_episodes=2, return_episode_rewards=True)
    assert [len(values) for values in both] == [2, 2]
    assert min(both[1]) >= 300
    assert envs.env_is_wrapped(Monitor) == [True, True]
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]


def test_a_monitor_above_counts_what_it_sees_and_says_so() -> None:
    options = {**AT_ONCE, "max_num_frames_per_episode": 400, "clip_reward": False}
    envs = AtariVecEnv("ALE/Pong-v5", 2, screen_size=20, **options)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        counted = VecMonitor(envs)
    counted.reset()
    returns = np.zeros(2)
    for _ in range(100):
        _, rewards, dones, infos = counted.step(np.array([0, 2]))
        returns += rewards
    assert dones.all()
    for info, expected in zip(infos, returns, strict=True):
        assert info["TimeLimit.truncated"]
        assert (info["episode"]["r"], info["episode"]["l"]) == (expected, 100)
        assert info["episode_frame_number"] == 400
    assert returns.all()


# ---------------------------------------------------------------- what SB3 asks


def test_it_answers_for_every_game() -> None:
    envs = AtariVecEnv(BREAKOUT, 3, action_repeat_probability=0.25, full_action_space=True)
    assert [spec.id for spec in envs.get_attr("spec", indices=[0, 2])] == [BREAKOUT] * 2
    assert envs.get_attr("spec")[0].kwargs["repeat_action_probability"] == 0.25
    assert envs.get_attr("render_mode", indices=1) == ["rgb_array"]
    assert envs.has_attr("action_space")
    assert not envs.has_attr("ale")
    assert envs.action_space == gym.spaces.Discrete(18)
    with pytest.raises(NotImplementedError, match=r"set_attr\('x'\).*without an object for each"):
        envs.set_attr("x", 1)
    with pytest.raises(NotImplementedError, match=r"env_method\('seed'\).*make_atari_env"):
        envs.env_method("seed", 1)
    envs.close()


def test_an_unknown_action_is_refused_and_not_waited_for() -> None:
    envs = AtariVecEnv(BREAKOUT, 2, screen_size=20)
    envs.reset()
    for wrong in ([0, 4], [-1, 0], [0], [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"expected \(2,\) whole numbers from 0 to 3, got"):
            envs.step(np.array(wrong))
    shown: Any = envs.step(np.array([0, 3], np.int32))[0]
    assert shown.shape == (2, 20, 20, 3)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("pong", {}, "registered environment, got 'pong'"),
        (MOVING_SQUARES, {}, "expected a game of ALE .* got 'MovingSquares-v0'"),
        (BREAKOUT, {"n_envs": 0}, "n_envs: expected at least 1, got 0"),
        (BREAKOUT, {"noop_max": -1}, "noop_max: expected at least 0, got -1"),
        (BREAKOUT, {"screen_size": (84, 0)}, "screen_size: expected at least 1, got 0"),
        (BREAKOUT, {"action_repeat_probability": 2}, "expected 0 to 1, got 2"),
    ],
)
def test_bad_arguments_are_named(env_id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariVecEnv(env_id, **options)


# ---------------------------------------------------------------- agents


def test_ppo_learns_from_objects() -> None:
    options: Any = {"noop_max": 0, "max_num_frames_per_episode": 40}
    games = AtariVecEnv("ALE/Pong-v5", 2, screen_size=(105, 80), **options)
    envs = VecObjectSlots(games, make_stub_perceiver(threshold=150))
    agent = PPO("MultiInputPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(32)
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert [info["l"] for info in agent.ep_info_buffer or []] == [40] * 2


def test_ppo_learns_from_pixels() -> None:
    envs = AtariVecEnv("ALE/Pong-v5", grayscale=True, stack_num=4, screen_size=84, maxpool=True)
    agent = PPO("CnnPolicy", envs, n_steps=4, batch_size=4, n_epochs=1, seed=0)
    assert agent.observation_space.shape == (4, 84, 84)
    agent.learn(4)
    assert agent.num_timesteps == 4
