"""`RamSlots`: objects out of the RAM are where the picture shows them, and are followed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from objrl.agents.ram import RamSlots, Rows, follow
from objrl.pretrain.policies import make_policy
from objrl.pretrain.ram_truth import OPENING, TruthConfig, make_truth
from objrl.pretrain.truth import read_truth
from objrl.wrappers.ram_reader import INSTALL
from tests.helpers import MOVING_SQUARES

gym.register_envs(ale_py)
WRAPPED = ".*different from the unwrapped version.*"  # inherent to checking a wrapped environment
UNBOUNDED = ".*A Box observation space m..imum value is -?infinity.*"  # depth and what
ROWS = "Your observation .* has an unconventional shape"  # SB3 expects images and vectors
needs_ocatari = pytest.mark.skipif(
    importlib.util.find_spec("ocatari") is None, reason="needs OCAtari"
)


def ram_slots(game: str = "Pong", *, keys: Any = None, flatten: bool = False, **kwargs: Any) -> Any:
    """Typed as anything, for what stands in an observation depends on the arguments."""
    return RamSlots(gym.make(f"ALE/{game}-v5", **kwargs), keys=keys, flatten=flatten)


def play(env: Any, seed: int, steps: int) -> list[Any]:
    """Play at random, always the same with the same seed; return the observations."""
    env.action_space.seed(seed)
    observations = [env.reset(seed=seed)[0]]
    while len(observations) <= steps:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(observation)
        if terminated or truncated:
            observations.append(env.reset()[0])
    return observations


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in (*a, *b)
    )


def present_ids(observation: Any) -> set[int]:
    return set(observation["track_id"][observation["presence"] > 0].tolist())


def boxes(env: Any) -> dict[str, list[tuple[int, ...]]]:
    """x0, y0, x1, y1 in pixels of what is present, by class."""
    found: dict[str, list[tuple[int, ...]]] = {}
    slots, (height, width) = env.slots, env.unwrapped.ale.getScreenDims()
    for row in slots.mask[0].nonzero()[:, 0]:
        box = slots.boxes(height, width)[0, row].round().int().tolist()
        found.setdefault(env.classes[slots.what[0, row].argmax()], []).append(tuple(box))
    return found


# ---------------------------------------------------------------- observations


@needs_ocatari
def test_the_observation_is_that_of_object_slots_with_a_row_for_each_place() -> None:
    env = ram_slots()
    assert env.classes == ("Player", "Ball", "Enemy")
    first, *observations = play(env, 0, 90)
    for observation in observations:
        assert observation in env.observation_space
    shapes = {key: (field.shape, field.dtype.name) for key, field in first.items()}
    assert shapes == {
        "position": ((3, 2), "float32"),
        "velocity": ((3, 2), "float32"),
        "scale": ((3, 2), "float32"),
        "depth": ((3, 1), "float32"),
        "what": ((3, 3), "float32"),
        "presence": ((3, 1), "float32"),
        "track_id": ((3, 1), "int64"),
    }
    with_ball = next(o for o in observations if o["presence"].all())
    without = next(o for o in observations if o["presence"].tolist() == [[1], [0], [1]])
    np.testing.assert_array_equal(with_ball["what"], np.eye(3))
    np.testing.assert_array_equal(without["what"], np.diag([1, 0, 1]))
    assert without["track_id"][1] == -1
    assert not any(without[key][1].any() for key in ("position", "velocity", "scale"))


@needs_ocatari
def test_gymnasium_finds_no_fault() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (WRAPPED, UNBOUNDED):
            warnings.filterwarnings("ignore", message=expected)
        check_env(ram_slots(render_mode="rgb_array"))


@needs_ocatari
@pytest.mark.parametrize("flatten", [False, True])
def test_sb3_finds_no_fault_and_has_no_remark_on_the_flat_form(flatten: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not flatten:
            warnings.filterwarnings("ignore", message=ROWS)
        check_env_for_sb3(ram_slots(flatten=flatten))


@needs_ocatari
def test_flat_columns_are_rows_then_keys_in_the_order_asked_for() -> None:
    keys = ("presence", "position")
    flat = play(ram_slots(keys=keys, flatten=True), 1, 50)[-1]
    observation = play(ram_slots(keys=keys), 1, 50)[-1]
    assert set(observation) == set(keys)
    rows = np.concatenate([observation[key] for key in keys], axis=1)
    np.testing.assert_array_equal(flat.reshape(3, -1), rows)


@needs_ocatari
def test_the_score_is_no_object_unless_it_is_asked_for() -> None:
    env = RamSlots(gym.make("ALE/Pong-v5"), hud=True)
    env.reset(seed=0)
    assert env.classes == ("Player", "Ball", "Enemy", "PlayerScore", "EnemyScore")
    assert boxes(env)["EnemyScore"] == [(36, 1, 48, 21)]


@needs_ocatari
def test_it_does_not_matter_what_the_environment_shows() -> None:
    expected = play(ram_slots(), 3, 60)
    assert same(play(ram_slots(obs_type="ram"), 3, 60), expected)
    small = gym.wrappers.AtariPreprocessing(gym.make("ALE/Pong-v5"), noop_max=0, frame_skip=1)
    assert same(play(RamSlots(small), 3, 60), expected)


@needs_ocatari
def test_a_spec_makes_the_same_again() -> None:
    env = RamSlots(gym.make("ALE/Pong-v5"), keys=["position"], hud=True)
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space


# ---------------------------------------------------------------- where things are


@needs_ocatari
def test_boxes_of_pong_hold_nothing_but_the_object() -> None:
    env = ram_slots(render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=0)
    colours = {"Player": (92, 186, 92), "Enemy": (213, 130, 74), "Ball": (236, 236, 236)}
    seen = dict.fromkeys(colours, 0)
    for _ in range(150):
        env.step(env.action_space.sample())
        frame = env.unwrapped.render()
        for name, found in boxes(env).items():
            for x0, y0, x1, y1 in found:
                drawn = (frame[y0:y1, x0:x1] == colours[name]).all(axis=-1)
                # While it goes in or out, the RAM is ahead of the screen.
                seen[name] += bool(drawn.size and drawn.all())
    assert seen["Player"] >= 100
    assert seen["Enemy"] >= 100
    assert seen["Ball"] >= 30


@needs_ocatari
def test_whatever_has_the_colour_of_an_alien_is_in_an_alien_s_box() -> None:
    env = ram_slots("SpaceInvaders", render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(50):
        env.step(env.action_space.sample())
        alien = (env.unwrapped.render() == (134, 134, 29)).all(axis=-1)
        shares = []
        for x0, y0, x1, y1 in boxes(env)["Alien"]:
            shares.append(alien[y0:y1, x0:x1].mean())
            alien[y0:y1, x0:x1] = False
        assert len(shares) == 36
        assert min(shares) > 0.3
        assert not alien.any()


@needs_ocatari
@pytest.mark.parametrize("game", ["Pong", "SpaceInvaders"])
def test_boxes_are_those_that_objrl_truth_writes(game: str, tmp_path: Path) -> None:
    env: Any = RamSlots(gym.make(f"ALE/{game}-v5"), hud=True)
    labelled = read_truth(
        make_truth(TruthConfig(env.spec.id, tmp_path / "it.npz", frames=6, seed=7))
    )
    policy = make_policy("random", env.action_space, env.action_space, 0.0)
    policy.seed(7)
    env.reset(seed=7)
    nothing = np.zeros((1, 1, 1, 3), np.uint8), np.array([False])
    kept = []
    for step in range(1, 11 * 6 + OPENING):
        env.step(policy(*nothing).item())
        if step > OPENING and step % 11 == 0:
            kept.append((boxes(env), env.unwrapped.ale.getScreenRGB()))
    for index, (found, frame) in enumerate(kept[:6]):
        np.testing.assert_array_equal(frame, labelled.frames[index])
        truth, ignored = (
            {tuple(map(int, box)) for box in kind[index]}
            for kind in (labelled.truth.boxes, labelled.truth.ignored)
        )
        assert truth <= {box for some in found.values() for box in some} == truth | ignored
        for name, box in zip(
            labelled.truth.labels[index], labelled.truth.boxes[index], strict=True
        ):
            assert tuple(map(int, box)) in found[name]


# ---------------------------------------------------------------- following


SIZE = np.array([160, 200], np.float32)  # of the frame


def rows(*boxes: tuple[int, int, int, int] | None, kind: int = 0) -> tuple[Any, Any]:
    """What `follow` is given: the class and the box of each row."""
    kinds = np.array([-1 if box is None else kind for box in boxes])
    return kinds, np.array([box or (0, 0, 0, 0) for box in boxes], np.float32)


def seen(of: Rows) -> dict[str, Any]:
    return of.fields(SIZE, 2)


def test_ids_and_velocities_follow_from_the_boxes_of_each_row() -> None:
    rows_1 = follow(*rows((0, 0, 8, 10), (80, 100, 88, 110), None), Rows.empty(3))
    first = seen(rows_1)
    assert first["track_id"].tolist() == [[0], [1], [-1]]
    assert not first["velocity"].any()
    np.testing.assert_allclose(first["position"], [[-0.95, -0.95], [0.05, 0.05], [0.0, 0.0]], 1e-5)
    np.testing.assert_allclose(first["scale"], [[0.05, 0.05], [0.05, 0.05], [0.0, 0.0]])
    assert first["what"].tolist() == [[1, 0], [1, 0], [0, 0]]
    assert first["presence"].tolist() == [[1], [1], [0]]

    rows_2 = follow(*rows((4, 0, 12, 10), None, (80, 100, 88, 110)), rows_1)
    second = seen(rows_2)
    assert second["track_id"].tolist() == [[0], [-1], [2]]
    np.testing.assert_allclose(second["velocity"], [[0.05, 0.0], [0.0, 0.0], [0.0, 0.0]])

    third = seen(follow(*rows((4, 0, 12, 10), (80, 100, 88, 110), (80, 95, 88, 105)), rows_2))
    assert third["track_id"].tolist() == [[0], [3], [2]]  # what is back is another one
    np.testing.assert_allclose(third["velocity"], [[0.0, 0.0], [0.0, 0.0], [0.0, -0.05]])


@pytest.mark.parametrize(
    ("box", "kind", "goes_on"),
    [
        ((30, 0, 38, 10), 0, True),  # 20 is its width and 12 more
        ((31, 0, 39, 10), 0, False),
        ((10, 22, 18, 32), 0, True),  # and 22 its height and 12 more
        ((10, 23, 18, 33), 0, False),
        ((12, 0, 20, 10), 1, False),  # something else in the same place
    ],
)
def test_what_leaps_or_changes_its_class_is_another_object(
    box: tuple[int, int, int, int], kind: int, goes_on: bool
) -> None:
    first = follow(*rows((10, 0, 18, 10)), Rows.empty(1))
    second = seen(follow(*rows(box, kind=kind), first))
    assert second["track_id"].item() == (0 if goes_on else 1)
    assert second["velocity"].any() == goes_on
    assert second["what"].tolist() == [[1 - kind, kind]]


@needs_ocatari
def test_velocity_is_how_far_an_object_went_since_the_last_step() -> None:
    observations = play(ram_slots(), 0, 200)
    moves = 0
    for last, now in pairwise(observations):
        goes_on = (now["track_id"] == last["track_id"]) & (now["presence"] > 0)
        moved = (now["position"] - last["position"]) * goes_on
        np.testing.assert_allclose(now["velocity"], moved, atol=1e-6)
        moves += moved[1].any()  # of the ball
    assert moves > 30


@needs_ocatari
@pytest.mark.parametrize("by_itself", [False, True])
def test_ids_are_counted_on_over_episodes_and_anew_with_a_seed(by_itself: bool) -> None:
    game = gym.make("ALE/Pong-v5", max_episode_steps=80)
    env: Any = RamSlots(gym.wrappers.Autoreset(game) if by_itself else game)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=5)
    used: set[int] = set()
    for _ in range(3):
        over, now = False, present_ids(observation)
        assert not observation["velocity"].any()
        while not over:
            observation, _, _, over, _ = env.step(env.action_space.sample())
            now |= present_ids(observation)
        assert now
        assert min(now) > max(used, default=-1)
        used |= now
        observation = env.step(0)[0] if by_itself else env.reset()[0]
    assert used == set(range(len(used)))
    again, _ = env.reset(seed=5)
    assert again["track_id"].max() < 2


# ---------------------------------------------------------------- the same again


@needs_ocatari
def test_everything_follows_from_the_seed() -> None:
    env = ram_slots()
    expected = play(env, 0, 60)
    assert same(play(env, 0, 60), expected)
    assert same(play(ram_slots(), 0, 60), expected)
    assert not same(play(env, 1, 60), expected)


@needs_ocatari
@pytest.mark.parametrize("game", ["Assault", "Pooyan"])
def test_no_environment_sees_what_happens_in_another(game: str) -> None:
    alone = play(ram_slots(game), 0, 80)
    one, other = ram_slots(game), ram_slots(game)
    one.action_space.seed(0)
    beside = [one.reset(seed=0)[0]]
    other.reset(seed=1)
    for _ in range(80):
        other.step(1)  # shoot
        beside.append(one.step(one.action_space.sample())[0])
    assert same(beside, alone)


@needs_ocatari
def test_everything_but_the_observation_passes_untouched() -> None:
    env, bare = ram_slots(), gym.make("ALE/Pong-v5")
    assert env.reset(seed=2)[1] == bare.reset(seed=2)[1]
    assert env.step(2)[1:] == bare.step(2)[1:]


@needs_ocatari
def test_boxes_are_drawn_on_what_is_rendered() -> None:
    env = ram_slots(render_mode="rgb_array")
    play(env, 0, 60)
    drawn, plain = env.render(), env.unwrapped.render()
    ((x0, y0, *_),) = boxes(env)["Player"]
    assert drawn.shape[2] == 3
    assert not np.array_equal(drawn, plain)
    assert x0 > 0
    assert y0 > 0


# ---------------------------------------------------------------- errors


def test_what_to_install_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ocatari.ram.extract_ram_info", None)
    with pytest.raises(ImportError, match="OCAtari cannot be imported") as caught:
        ram_slots()
    assert str(caught.value).endswith(f": {INSTALL}")


@needs_ocatari
def test_games_that_ocatari_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'pitfall2'; it knows pitfall"):
        ram_slots("Pitfall2")
    with pytest.raises(ValueError, match="no objects of 'robotank'"):
        ram_slots("Robotank")
    with pytest.raises(ValueError, match=r"OCAtari fails on 'air_raid' \(TypeError"):
        ram_slots("AirRaid").reset()


def test_what_has_no_ram_is_refused() -> None:
    several: Any = gym.make_vec("ALE/Pong-v5", 2)
    squares: Any = gym.make(MOVING_SQUARES)
    for env in (several, squares):
        with pytest.raises(ValueError, match="expected a single Atari game of ALE"):
            RamSlots(env)


@needs_ocatari
def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keys: expected some of .* got .*colour"):
        ram_slots(keys=("colour",))
