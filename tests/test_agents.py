"""Training an agent, its files, going on after an interruption; in Breakout games are short."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from objrl.agents import presets
from objrl.agents import train as train_module
from objrl.agents.agent import AGENT, load_agent
from objrl.agents.presets import Recipe, recipe_for
from objrl.agents.train import CHECKPOINT, CURVE, VIDEO, ZIP, Course, TrainConfig, train
from objrl.agents.watch import WatchConfig, watch
from objrl.checkpoint import Checkpoint, load_checkpoint, tensors_of
from objrl.locking import Lock


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Few steps an update, so that there are some."""
    for key in presets._RECIPES:
        if key[0] == "ppo":
            few = {"n_steps": 16, "n_epochs": 1, "batch_size": 16}
            made = presets._RECIPES[key]
            patch.setitem(
                presets._RECIPES,
                key,
                replace(made, envs=2, arguments={**made.arguments, **few}),
            )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def config(out: Path, **options: object) -> TrainConfig:
    defaults = TrainConfig(
        *("ALE/Breakout-v5",), obs="pixels", steps=64, episodes=1, out=out, video=False
    )
    return replace(defaults, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("agent")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        train(config(out, video=True))
        yield out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / CURVE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_the_best_agent_its_curve_and_a_film(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *(AGENT, ZIP, CHECKPOINT, CURVE, VIDEO, "logs")
    }
    last = rows(trained)[-1]
    assert int(last["steps"]) == 64
    assert float(last["cpu_seconds"]) > 0
    assert any(row["evaluated"] for row in rows(trained))
    assert any((trained / "logs").iterdir())


def test_both_files_hold_the_same_agent(trained: Path) -> None:
    agent = load_agent(trained / AGENT, device="cpu")
    zipped = PPO.load(trained / ZIP, device="cpu")
    seen = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    ours, _ = agent.model.predict(seen, deterministic=True)
    theirs, _ = zipped.predict(seen, deterministic=True)
    assert ours.tolist() == theirs.tolist()
    assert agent.about["steps"] == 64
    agent.envs.close()


def test_who_watches_gets_the_returns_and_a_film(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = watch(WatchConfig(trained, games=2, out=tmp_path / "film.mp4", device="cpu"))
    assert len(scores) == 2
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    assert "game 2" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, go_on = Course._on_rollout_start, Course.go_on
    seeds: list[int | None] = []

    def interrupted(course: Course) -> None:
        course.stop = lambda: course.num_timesteps >= 32
        course._returns.extend([3.0, 4.0] * (course.num_timesteps == 0))
        begin(course)

    def watched(course: Course, model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
        go_on(course, model, checkpoint)
        # The policy, its optimiser and the last returns are as they were; the games are others.
        for name, value in tensors_of(model.policy).items():
            assert torch.equal(value, checkpoint.tensors[f"model.{name}"]), name
        states = model.policy.optimizer.state_dict()["state"]
        assert states
        for number, state in states.items():
            for name, value in state.items():
                assert torch.equal(value, checkpoint.tensors[f"optimizer.0.{number}.{name}"])
        assert list(course._returns)[:2] == [3.0, 4.0]
        assert model.env is not None
        seeds.extend(model.env.unwrapped._seeds)

    with monkeypatch.context() as patch:
        patch.setattr(Course, "_on_rollout_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path))
    # It stopped with whole rollouts, two environments for 16 steps each.
    assert load_checkpoint(tmp_path / CHECKPOINT).about["steps"] == 32
    with pytest.raises(FileExistsError, match="--resume"):
        train(config(tmp_path))
    with pytest.raises(ValueError, match="another seed"):
        train(config(tmp_path, seed=1, resume=True))
    with Lock(tmp_path), pytest.raises(ValueError, match="folder that nobody writes"):
        train(config(tmp_path, resume=True))
    with monkeypatch.context() as patch:
        recipe = presets._RECIPES["ppo", True]
        patch.setitem(presets._RECIPES, ("ppo", True), replace(recipe, learning_rate=9.0))
        with pytest.raises(ValueError, match="another recipe"):
            train(config(tmp_path, resume=True))
        patch.undo()
        patch.setattr(Course, "go_on", watched)
        make_small(patch)
        train(config(tmp_path, resume=True))
    assert not set(seeds) & {0, 1}
    assert int(rows(tmp_path)[0]["steps"]) == 32
    assert load_checkpoint(tmp_path / CHECKPOINT).about["steps"] == 64


def test_evaluations_come_when_they_would_have_and_the_best_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(train_module, "evaluate_policy", lambda *_, **__: ([next(scores)], [1]))
    begin = Course._on_rollout_start

    def interrupted(course: Course) -> None:
        course.stop = lambda: course.num_timesteps >= 96
        begin(course)

    with monkeypatch.context() as patch:
        patch.setattr(Course, "_on_rollout_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path, steps=160, evaluate_every=64))
    with pytest.raises(ValueError, match="another evaluate_every"):
        train(config(tmp_path, steps=160, evaluate_every=32, resume=True))
    train(config(tmp_path, steps=160, evaluate_every=64, resume=True))
    evaluated = {int(row["steps"]): row["evaluated"] for row in rows(tmp_path) if row["evaluated"]}
    assert evaluated == {64: "5.0", 128: "3.0", 160: "4.0"}
    about = load_agent(tmp_path, device="cpu").about
    assert (about["steps"], about["return"]) == (64, 5.0)


@pytest.mark.parametrize(("starts", "again"), [(10, 1_032), (5_000, 5_000)])
def test_a_dqn_that_goes_on_has_forgotten_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: int, again: int
) -> None:
    dqn = presets._RECIPES["dqn", True]
    small = {**dqn.arguments, "buffer_size": 100, "learning_starts": starts}
    monkeypatch.setitem(presets._RECIPES, ("dqn", True), replace(dqn, envs=1, arguments=small))
    begin = Course._on_rollout_start

    def interrupted(course: Course) -> None:
        course.stop = lambda: course.num_timesteps >= 32
        begin(course)

    monkeypatch.setattr(Course, "_on_rollout_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, algo="dqn"))
    go_on = Course.go_on

    def watched(course: Course, model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
        go_on(course, model, checkpoint)
        assert isinstance(model, DQN)
        found.append(model.learning_starts)
        raise KeyboardInterrupt

    found: list[int] = []
    monkeypatch.setattr(Course, "go_on", watched)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, algo="dqn", resume=True))
    assert found == [again]


def test_who_is_asked_to_stop_plays_no_more_games_and_plays_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Course.finish

    def asked(course: Course, model: BaseAlgorithm) -> None:
        signal.raise_signal(signal.SIGTERM)
        finish(course, model)

    with monkeypatch.context() as patch:
        patch.setattr(Course, "finish", asked)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path))
    assert load_checkpoint(tmp_path / CHECKPOINT).about["steps"] == 64
    assert not (tmp_path / AGENT).exists()
    train(config(tmp_path, resume=True))
    found = rows(tmp_path)
    assert found[-1]["evaluated"]
    assert len({row["steps"] for row in found}) == len(found), "a row a time"
    train(config(tmp_path, resume=True, video=True))
    assert rows(tmp_path) == found, "what has ended is left as it is"
    film = (tmp_path / VIDEO).stat()
    train(config(tmp_path, resume=True, video=True))
    assert (tmp_path / VIDEO).stat() == film, "nor is it filmed again"


@pytest.mark.parametrize(
    "options",
    [
        {"obs": "slots"},
        {"obs": "slots", "encoder": "finetune"},
        {"obs": "slots", "encoder": "joint"},
        {"obs": "ram"},
        {"obs": "slots", "algo": "dqn"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_it_learns_from_objects_and_is_found_again(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options["obs"] == "ram":
        pytest.importorskip("ocatari")
    dqn = presets._RECIPES["dqn", False]
    small = {**dqn.arguments, "buffer_size": 100, "learning_starts": 10}
    monkeypatch.setitem(presets._RECIPES, ("dqn", False), replace(dqn, arguments=small))
    # Whole games take their time, and are played elsewhere.
    monkeypatch.setattr(train_module, "evaluate_policy", lambda *_, **__: ([1.0], [1]))
    before: dict[str, torch.Tensor] = {}

    def noted(course: Course) -> None:
        before.update({name: v.clone() for name, v in tensors_of(course.model.policy).items()})
        start(course)

    start = Course._on_training_start
    monkeypatch.setattr(Course, "_on_training_start", noted)
    path = train(config(tmp_path, steps=32, env="ALE/SpaceInvaders-v5", **options))
    agent = load_agent(path, device="cpu")
    after = tensors_of(agent.model.policy)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert agent.config.weights == ("space-space_invaders" if options["obs"] == "slots" else None)
    observation = agent.envs.reset()
    action, _ = agent.model.predict(observation)  # type: ignore[arg-type]
    assert agent.envs.action_space.contains(action[0])
    if agent.config.sees != "frames":
        assert set(observation) >= {"position", "presence"}
    agent.envs.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 on, got 0"),
        ({"steps": 1.5}, "whole number"),
        ({"weights": "space-pong"}, "leave --weights and --encoder out"),
        ({"extractor": "set"}, "leave --extractor out"),
        ({"env": "ALE/Pang-v5"}, "Pong"),
        ({"env": "CartPole-v1"}, "expected a game of ALE"),
        ({"env": "CartPole-v1", "obs": "slots"}, "expected a game of ALE"),
        ({"env": "Pong-v4"}, "fixed number of frames"),
        ({"algo": "dqn", "obs": "slots", "encoder": "joint"}, "20 GB"),
        ({"resume": True}, "no such checkpoint"),
    ],
)
def test_bad_settings(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config(tmp_path, **options))


def test_what_is_no_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="objrl train"):
        load_agent(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        load_agent(tmp_path / "bad.safetensors")


def test_rates_fall_to_zero_where_they_are_to() -> None:
    made = Recipe(1, 1, {"clip_range": 0.2}, 1e-3, falling=True).rates()
    assert made["learning_rate"](0.5) == 5e-4
    assert made["clip_range"](0.0) == 0
    assert recipe_for("dqn", "pixels").rates() == {"learning_rate": 1e-4}
