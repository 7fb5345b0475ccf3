"""Agents that play while frames are collected: as in SB3, and nothing of theirs run."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch

from objrl.pretrain.collect import CollectConfig, collect
from objrl.pretrain.policies import SavedPolicy, WanderPolicy
from objrl.pretrain.store import FrameStore
from tests.helpers import STILL_PONG

PONG = CollectConfig(env="ALE/Pong-v5", frames=60, num_envs=3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "pong.h5"


def save_agent(path: Path, kind: str, count: int = 6, opinion: float = 1e6) -> Any:
    """Save an untrained SB3 agent; `opinion` scales what it outputs."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Screen(gym.Env[npt.NDArray[np.uint8], np.int64]):
        observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        action_space = gym.spaces.Discrete(count)

    torch.manual_seed(0)
    envs = DummyVecEnv([Screen])
    agent: Any = (
        PPO("CnnPolicy", envs, n_steps=2, batch_size=2, device="cpu")
        if kind == "ppo"
        else DQN("CnnPolicy", envs, buffer_size=1, device="cpu")
    )
    with torch.no_grad():
        for name, parameter in agent.policy.named_parameters():
            if name.startswith(("action_net", "q_net.q_net")):
                parameter.mul_(opinion)
    agent.save(path)
    return agent


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_a_saved_agent_acts_as_in_sb3(tmp_path: Path, kind: str) -> None:
    from stable_baselines3.common.atari_wrappers import WarpFrame

    agent = save_agent(tmp_path / "agent.zip", kind)
    policy = SavedPolicy(tmp_path / "agent.zip", gym.spaces.Discrete(6), epsilon=0.0)
    env = WarpFrame(gym.make(STILL_PONG, render_mode="rgb_array"))
    env.reset(seed=0)
    stack = np.zeros((84, 84, 4), dtype=np.uint8)
    for step in range(12):
        frame: Any = env.render()
        stack = np.concatenate([stack[..., 1:], env.observation(frame)], axis=-1)
        action = policy(frame[None], np.array([step == 0]))
        wanted, _ = agent.predict(stack, deterministic=True)
        assert action.tolist() == [wanted]
        env.step(step % 6)


def test_epsilon_and_beginnings(tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.zip", "dqn")
    space = gym.spaces.Discrete(6)
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    calm = SavedPolicy(tmp_path / "agent.zip", space, epsilon=0.0)
    first = calm(frames, np.array([True, True]))
    calm(frames[::-1], np.array([False, False]))
    np.testing.assert_array_equal(calm(frames, np.array([True, True])), first)
    wild = SavedPolicy(tmp_path / "agent.zip", space, epsilon=1.0)
    drawn = [wild(frames, np.array([True, True])) for _ in range(40)]
    assert set(np.concatenate(drawn)) == set(range(6))


def test_an_actor_draws_by_its_probabilities(tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.zip", "ppo", opinion=1.0)  # untrained, so nearly indifferent
    policy = SavedPolicy(tmp_path / "agent.zip", gym.spaces.Discrete(6), epsilon=0.0)
    frames = np.zeros((100, 84, 84, 3), dtype=np.uint8)
    policy.seed(1)
    drawn = policy(frames, np.ones(100, dtype=bool))
    assert set(drawn) == set(range(6))
    policy.seed(1)
    np.testing.assert_array_equal(policy(frames, np.ones(100, dtype=bool)), drawn)


def test_an_agent_collects(tmp_path: Path, out: Path) -> None:
    save_agent(tmp_path / "agent.zip", "ppo")
    config = replace(PONG, out=out, frames=30, policy=str(tmp_path / "agent.zip"))
    with FrameStore(collect(config)) as store:
        assert str(store.attributes["policy"]).startswith("agent.zip sha256:")
        assert store.complete
    save_agent(tmp_path / "agent.zip", "dqn")
    with pytest.raises(ValueError, match=r"policy = 'agent\.zip"):
        collect(replace(config, frames=60))


class _Trap:
    """Says at unpickling that it was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("an agent's zip was unpickled",)


def test_an_agents_pickled_objects_are_left_alone(tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.zip", "ppo")
    trap = base64.b64encode(pickle.dumps(_Trap())).decode()
    with (
        zipfile.ZipFile(tmp_path / "agent.zip") as old,
        zipfile.ZipFile(tmp_path / "trap.zip", "w") as new,
    ):
        data = json.loads(old.read("data"))
        pickled = [entry for entry in data.values() if ":serialized:" in str(entry)]
        assert pickled
        for entry in pickled:
            entry[":serialized:"] = trap
        new.writestr("data", json.dumps(data))
        new.writestr("policy.pth", old.read("policy.pth"))
    policy = SavedPolicy(tmp_path / "trap.zip", gym.spaces.Discrete(6), epsilon=0.0)
    assert policy(np.zeros((1, 210, 160, 3), dtype=np.uint8), np.array([True])).shape == (1,)


def repack(agent: Path, to: Path, **members: bytes) -> Path:
    """Copy an agent's zip with other contents for some of its members."""
    with zipfile.ZipFile(agent) as old, zipfile.ZipFile(to, "w") as new:
        for name in ("data", "policy.pth"):
            new.writestr(name, members.get(name.partition(".")[0], old.read(name)))
    return to


def test_an_agents_tensors_may_hold_nothing_else(tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.zip", "ppo")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        good = archive.read("policy.pth")
    trapped = io.BytesIO()
    torch.save({"action_net.weight": _Trap()}, trapped)
    refused = "expected tensors in its policy.pth, got what torch's restricted reader"
    tensor = io.BytesIO()
    torch.save(torch.zeros(3), tensor)
    bad = {
        "hostile": (trapped.getvalue(), refused),
        "hostile, in torch's old form": (pickle.dumps(_Trap(), protocol=2), refused),
        "garbage": (b"This is no agent. " * 50, refused),
        "cut short": (good[: len(good) // 2], refused),
        "empty": (b"", refused),
        "a tensor alone": (tensor.getvalue(), "no dictionary of tensors"),
    }
    for name, (content, message) in bad.items():
        path = repack(tmp_path / "agent.zip", tmp_path / "bad.zip", policy=content)
        with pytest.raises(ValueError, match=message) as caught:
            SavedPolicy(path, gym.spaces.Discrete(6), epsilon=0.0)
        assert "\n" not in str(caught.value), name
        assert "weights_only=False" not in str(caught.value), name


@pytest.mark.parametrize("shape", [4, [4, "84", 84], None])
def test_an_agents_shape_is_checked(tmp_path: Path, shape: Any) -> None:
    save_agent(tmp_path / "agent.zip", "ppo")
    data = json.dumps({"observation_space": {"_shape": shape}}).encode()
    path = repack(tmp_path / "agent.zip", tmp_path / "bad.zip", data=data)
    with pytest.raises(ValueError, match="its observations have shape"):
        SavedPolicy(path, gym.spaces.Discrete(6), epsilon=0.0)


def test_agents_that_cannot_play(tmp_path: Path, out: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--policy: random, wander or an SB3 zip"):
        collect(replace(PONG, out=out, policy="trained"))
    (tmp_path / "text.zip").write_text("agent")
    with pytest.raises(ValueError, match="expected a zip written by Stable-Baselines3"):
        collect(replace(PONG, out=out, policy=str(tmp_path / "text.zip")))
    save_agent(tmp_path / "other.zip", "ppo", count=3)
    with pytest.raises(ValueError, match=r"environment's 6 actions, got one with 3"):
        collect(replace(PONG, out=out, policy=str(tmp_path / "other.zip")))


class TestWander:
    def play(
        self, space: gym.Space[Any], steps: int, is_first: bool = False, **how: float
    ) -> npt.NDArray[Any]:
        """(steps, B, …) actions, from seed 1."""
        policy = WanderPolicy(space, **how)
        policy.seed(1)
        frames, first = np.zeros((4, 2, 2, 3), np.uint8), np.full(4, is_first)
        actions = np.stack([policy(frames, first) for _ in range(steps)])
        assert all(space.contains(action) for action in actions)
        return actions

    def kept(self, actions: npt.NDArray[Any]) -> list[float]:
        """How often each environment repeats its action."""
        rates: list[float] = (actions[1:] == actions[:-1]).mean(0).tolist()
        return rates

    @pytest.mark.parametrize("hold", [4, 8])
    def test_every_other_environment_holds_its_actions(self, hold: float) -> None:
        # One in a hundred is drawn again by chance.
        space = gym.spaces.MultiDiscrete([100] * 4)
        rates = self.kept(self.play(space, 3000, hold=hold))
        held = 1 - 1 / hold + 0.01 / hold
        assert rates == pytest.approx([0.01, held, 0.01, held], abs=0.03)

    def test_for_eight_steps_unless_told_otherwise(self) -> None:
        space = gym.spaces.MultiDiscrete([100] * 4)
        assert np.array_equal(self.play(space, 50), self.play(space, 50, hold=8))

    def test_an_episode_begins_with_an_action_of_its_own(self) -> None:
        space = gym.spaces.MultiDiscrete([100] * 4)
        assert max(self.kept(self.play(space, 300, is_first=True))) < 0.05

    def test_actions_of_several_numbers_are_held_as_a_whole(self) -> None:
        actions = self.play(gym.spaces.Box(-1, 1, (4, 3), np.float32), 300)
        assert actions.dtype == np.float32
        same = actions[1:] == actions[:-1]
        assert (same.any(2) == same.all(2)).all()
        assert same[:, 1].mean() > 0.7
        assert not same[:, 0].any()

    def test_a_seed_begins_it_all_anew(self) -> None:
        space = gym.spaces.MultiDiscrete([100] * 4)
        policy = WanderPolicy(space)
        frames, first = np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.bool_)
        plays = []
        for seed in (1, 1, 2):
            policy.seed(seed)
            plays.append(np.stack([policy(frames, first) for _ in range(20)]))
        assert np.array_equal(plays[0], plays[1])
        assert not np.array_equal(plays[0], plays[2])

    def test_it_collects(self, out: Path) -> None:
        config = replace(PONG, out=out, frames=120, num_envs=2, policy="wander")
        with FrameStore(collect(config)) as store:
            assert store.attributes["policy"] == "wander"
            stream, action = (store.columns[name] for name in ("stream", "action"))
        rates = [self.kept(action[stream == which]) for which in (0, 1)]
        assert rates[0] < rates[1]
