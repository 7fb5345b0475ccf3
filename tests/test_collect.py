"""Collecting: the frames that the game shows, whole episodes, and clear words when it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from objrl.pretrain.collect import CollectConfig, collect, default_store, find_spec, make_envs
from objrl.pretrain.store import FrameStore
from tests.helpers import STILL_PONG

PONG = CollectConfig(env="ALE/Pong-v5", frames=60, num_envs=3)
PAINTER = replace(PONG, env="objrl-test/Painter-v0")  # quick, where it need not be a game


class Painter(gym.Env[npt.NDArray[np.uint8], npt.NDArray[np.float32]]):
    """Shows its clock and its last action as colours; an episode has five steps."""

    observation_space = gym.spaces.Box(0, 255, (8, 6, 3), np.uint8)
    action_space = gym.spaces.Box(0, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.clock = 0
        return self.paint(np.zeros(2, dtype=np.float32)), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.clock += 1
        return self.paint(action), float(action[0]), self.clock == 5, False, {}

    def paint(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        frame = np.zeros((8, 6, 3), dtype=np.uint8)
        frame[..., 0], frame[..., 1:] = self.clock, action * 255
        return frame


@pytest.fixture(autouse=True, scope="module")
def _painter() -> Any:
    gym.register("objrl-test/Painter-v0", entry_point=lambda **_: Painter())
    yield
    del gym.registry["objrl-test/Painter-v0"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "pong.h5"


@pytest.mark.parametrize("env_id", [STILL_PONG, "PongNoFrameskip-v4"])
def test_frames_are_pixel_by_pixel_those_of_gym_make(out: Path, env_id: str) -> None:
    collect(replace(PONG, env=env_id, out=out, frames=360))
    env = gym.make(env_id)
    with FrameStore(out) as store:
        rows = np.flatnonzero(store.columns["stream"] == 1)
        frames = store.frames(rows)
        actions, rewards = store.columns["action"][rows], store.columns["reward"][rows]
        assert store.frame_shape == (210, 160, 3)
    np.testing.assert_array_equal(frames[0], env.reset(seed=0)[0])
    for frame, action, reward in zip(frames[1:], actions[1:], rewards[1:], strict=True):
        shown, got, *_ = env.step(action)
        np.testing.assert_array_equal(frame, shown)
        assert got == reward
    assert len(np.unique(frames, axis=0)) > 30  # the game was moving


def test_episodes_are_whole_and_numbered(out: Path) -> None:
    collect(replace(PONG, out=out, frames=150, max_episode_steps=9))
    with FrameStore(out) as store:
        columns = store.columns
        assert store.complete
        assert store.attributes["frameskip"] == 4
        assert store.attributes["repeat_action_probability"] == 0.25
    assert set(columns["episode"]) == set(range(15))
    first = columns["step"] == 0
    assert not columns["action"][first].any()
    assert not columns["reward"][first].any()
    for number in range(15):
        rows = np.flatnonzero(columns["episode"] == number)
        assert columns["step"][rows].tolist() == list(range(10))
        assert columns["truncated"][rows].tolist() == [False] * 9 + [True]
        assert len(set(columns["stream"][rows])) == 1


def test_any_environment_of_rgb_frames(out: Path) -> None:
    collect(replace(PAINTER, out=out, frames=40, num_envs=2))
    with FrameStore(out) as store:
        frames = store.frames(range(40))
        columns = store.columns
    assert columns["action"].shape == (40, 2)
    np.testing.assert_array_equal(frames[:, 0, 0, 0], columns["step"])
    painted = (columns["action"] * 255).astype(np.uint8)
    np.testing.assert_array_equal(frames[:, 0, 0, 1:], painted)
    np.testing.assert_array_equal(columns["reward"], columns["action"][:, 0])
    np.testing.assert_array_equal(columns["terminated"], columns["step"] == 5)


def test_the_last_two_frames_show_what_flickers() -> None:
    spec = find_spec("ALE/MsPacman-v5")  # a ghost is drawn in every fourth frame
    one, two = make_envs(spec, 1), make_envs(spec, 1, last_two=True)
    seed: Any = np.array([3])
    one.reset(seed=seed)
    two.reset(seed=seed)
    more = 0
    for step in range(20):
        action = np.array([step % 9])
        last, union = one.step(action)[0], two.step(action)[0]
        assert (union >= last).all()
        more += int((union > last).any())
    assert more > 10


def test_the_last_two_frames_are_part_of_what_a_file_is(out: Path) -> None:
    collect(CollectConfig(env="ALE/Pong-v5", out=out, frames=20, num_envs=2))
    with pytest.raises(ValueError, match=r"last_two = 1 to go on with, got one with 0"):
        collect(CollectConfig(env="ALE/Pong-v5", out=out, frames=40, num_envs=2, last_two=True))
    with pytest.raises(ValueError, match="last_two: expected a plain game of ALE"):
        collect(replace(PAINTER, out=out.with_name("other.h5"), last_two=True))


def test_a_game_has_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = collect(replace(PAINTER, frames=1200))
    assert path == Path("runs/objrl-test_painter.h5") == default_store("objrl-test/Painter-v0")
    assert capsys.readouterr().out == f"written: {path}, 1,200 frames of objrl-test/Painter-v0\n"
    assert default_store("ALE/SpaceInvaders-v5") == Path("runs/space_invaders.h5")
    with pytest.raises(ValueError, match=r"expected --out FILE\.h5 beside --from-minari"):
        collect(CollectConfig(from_minari="pong/random-v0"))


def test_the_seed_decides(tmp_path: Path) -> None:
    seen = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = collect(replace(PAINTER, out=tmp_path / name, frames=240, seed=seed))
        with FrameStore(path) as store:
            seen[name] = store.frames(range(240))
    np.testing.assert_array_equal(seen["a"], seen["b"])
    assert (seen["a"] != seen["c"]).any()


def test_more_frames_go_on_with_new_episodes(out: Path) -> None:
    collect(replace(PAINTER, out=out, frames=40))
    with FrameStore(out) as store:
        before, actions = store.frames(range(40)), store.columns["action"]
    collect(replace(PAINTER, out=out, frames=80))
    with FrameStore(out) as store:
        assert len(store) == 80
        np.testing.assert_array_equal(store.frames(range(40)), before)
        fresh = store.columns["episode"][:40].max() + 1
        assert store.columns["episode"][40:43].tolist() == [fresh, fresh + 1, fresh + 2]
        assert store.columns["step"][40:43].tolist() == [0, 0, 0]
        assert (store.columns["action"][40:] != actions).any()  # not the same games again


def test_a_finished_file_is_left_as_it_is(out: Path) -> None:
    before = collect(replace(PAINTER, out=out)).read_bytes()
    collect(replace(PAINTER, out=out))
    assert out.read_bytes() == before


@pytest.mark.parametrize("change", [{"env": "ALE/Breakout-v5"}, {"seed": 1}, {"num_envs": 2}])
def test_the_file_of_another_run_is_left_as_it_is(out: Path, change: dict[str, Any]) -> None:
    before = collect(replace(PAINTER, out=out)).read_bytes()
    with pytest.raises(ValueError, match="nothing was changed: choose another file"):
        collect(replace(PAINTER, out=out, frames=200, **change))
    assert out.read_bytes() == before


def test_a_killed_run_goes_on(out: Path) -> None:
    call = (
        "from pathlib import Path; from objrl.pretrain.collect import *; import sys;"
        "collect(CollectConfig(env='ALE/Pong-v5', frames=10**6, num_envs=3, out=Path(sys.argv[1])))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", call, str(out)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    held = 0
    while held < 600:
        time.sleep(0.1)
        assert child.poll() is None
        if out.exists():
            try:
                with FrameStore(out) as store:
                    held = len(store)
            except ValueError:
                continue  # nothing committed yet
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with FrameStore(out) as store:
        held = len(store)
        assert held >= 600
        assert not store.complete
    collect(replace(PONG, out=out, frames=held + 100))
    with FrameStore(out) as store:
        assert len(store) == held + 100
        assert store.complete
        assert store.columns["step"][held : held + 3].tolist() == [0, 0, 0]
        assert len(store.frames(range(len(store)))) == held + 100


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("ALE/SpaceInvader-v5", "did you mean ALE/SpaceInvaders-v5"),
        ("SpaceInvaders-v5", "ALE/SpaceInvaders-v5"),
        ("ALE/Pong", "did you mean ALE/Pong-v5"),
        ("no_such_module:Game-v0", "expected the id of a registered environment"),
        ("CartPole-v1", "expected CartPole-v1 to observe RGB frames"),
    ],
)
def test_bad_environments(out: Path, env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(replace(PONG, env=env_id, out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": None}, "exactly one of --env, --from-minari and --to-minari"),
        ({"to_minari": "pong/random-v0"}, "exactly one of --env"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"num_envs": 0}, "num_envs: expected at least 1"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"max_episode_steps": 0}, "max_episode_steps: expected at least 1"),
        ({"epsilon": 1.5}, r"epsilon: expected a probability in \[0, 1\]"),
    ],
)
def test_bad_settings(out: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(replace(PONG, out=out, **change))
    assert not out.exists()


# --- Minari


def test_without_minari(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'objrl\[data\]'"):
        collect(CollectConfig(from_minari="pong/random-v0", out=out))


def test_to_minari_and_back(
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    collect(replace(PONG, out=out, frames=80, max_episode_steps=9))
    collect(CollectConfig(to_minari="pong/random-v0", out=out))
    assert f"pong/random-v0 in {tmp_path / 'minari' / 'pong'}" in capsys.readouterr().out
    data = minari.load_dataset("pong/random-v0")
    assert data.recover_environment().spec.id == "ALE/Pong-v5"
    back = tmp_path / "back.h5"
    collect(CollectConfig(from_minari="pong/random-v0", out=back))
    with FrameStore(out) as ours, FrameStore(back) as theirs:
        order = np.argsort(ours.columns["episode"], kind="stable")
        np.testing.assert_array_equal(theirs.frames(range(80)), ours.frames(order))
        for name in ("action", "reward", "terminated", "episode", "step"):
            np.testing.assert_array_equal(theirs.columns[name], ours.columns[name][order])
        assert theirs.env_id == "ALE/Pong-v5"
        assert theirs.complete
        # Every episode ends in Minari, also those that were still going when collecting stopped.
        assert theirs.columns["truncated"].sum() == 9
    with pytest.raises(ValueError, match="expected a new file"):
        collect(CollectConfig(from_minari="pong/random-v0", out=back))
    with pytest.raises(ValueError, match="expected the id of a Minari data set or its folder"):
        collect(CollectConfig(from_minari=str(tmp_path), out=tmp_path / "new.h5"))
