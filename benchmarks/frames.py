"""Which frames are worth learning from: whose play, and of one emulator frame or of two.

`.venv/bin/python -m benchmarks.frames` trains an SB3 agent, collects frames of its play and of
random play, trains a detector on each, and scores every detector on labelled frames of both kinds
of play; the same for frames of one and of the last two emulator frames. It wants OCAtari for the
labels (docs/truth.md). What is there already is taken as it is, so a run that was killed goes on.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

import objrl
from objrl.atomic import write_atomically
from objrl.pretrain.collect import CollectConfig, collect
from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.measure import Report
from objrl.pretrain.ram_truth import TruthConfig, make_truth
from objrl.pretrain.run import CHECKPOINT, WEIGHTS
from objrl.pretrain.store import FrameStore
from objrl.pretrain.truth import read_truth


@dataclass(frozen=True)
class FramesConfig:
    """Train detectors on frames of several kinds and write a table of their scores."""

    played: tuple[str, ...] = ("Riverraid",)
    """Games in which random, wandering and trained players are compared, in ALE's spelling."""
    flickering: tuple[str, ...] = ("MsPacman", "SpaceInvaders")
    """Games in which one and two emulator frames are compared."""
    agent_steps: int = 200_000
    """Steps of the agent's training, each of four emulator frames."""
    frames: int = 20_000
    """Frames to train a detector on."""
    labelled: int = 128
    """Frames to score it on."""
    minutes: float = 10.0
    """Wall time of a detector's training, at most."""
    workers: int = 2
    """Trainings at once."""
    runs: Path = Path("runs/worth")
    """Folder of agents, frames, labels and runs."""
    out: Path = Path("docs/frames.md")
    """The page."""


class Kind(NamedTuple):
    """One kind of a game's frames."""

    game: str
    name: str
    policy: str = "wander"
    last_two: bool = False


def main(config: FramesConfig) -> None:
    """Train agents, collect, train detectors, label, score, write the page."""
    config.runs.mkdir(parents=True, exist_ok=True)
    played = {
        game: [
            *(Kind(game, "random", "random"), Kind(game, "wander")),
            Kind(game, "agent", str(_agent(config, game))),
        ]
        for game in config.played
    }
    flickering = {
        game: [Kind(game, "wander"), Kind(game, "last_two", last_two=True)]
        for game in config.flickering
    }
    kinds = sorted({kind for rows in chain(played.values(), flickering.values()) for kind in rows})
    with ThreadPoolExecutor(config.workers) as pool:
        list(pool.map(lambda kind: _train(config, kind), kinds))
    lines = _head(config)
    for game, rows in played.items():
        lines += _players(config, game, rows)
    for game, rows in flickering.items():
        lines += _emulator_frames(config, game, rows)
    write_atomically(config.out, ("\n".join(lines) + "\n").encode())


def _agent(config: FramesConfig, game: str) -> Path:
    """Train an agent on grey frames as SB3's users do; its hyperparameters are the zoo's."""
    path = config.runs / f"{game}-ppo.zip"
    if path.exists():
        return path
    torch.set_num_threads(1)
    envs = VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", n_envs=8, seed=0), 4)
    agent = PPO(
        *("CnnPolicy", envs),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=lambda left: 2.5e-4 * left,
        clip_range=lambda left: 0.1 * left,
        ent_coef=0.01,
        vf_coef=0.5,
        seed=0,
        device="cpu",
    )
    agent.learn(config.agent_steps)
    unfinished = path.with_suffix(".part.zip")
    agent.save(unfinished)
    return unfinished.replace(path)


def _train(config: FramesConfig, kind: Kind) -> None:
    """Collect frames of a kind and train a detector on them, by the commands that users have."""
    run = config.runs / f"{kind.game}-{kind.name}"
    if (run / WEIGHTS).exists():
        return
    data = collect(
        CollectConfig(
            env=f"ALE/{kind.game}-v5",
            out=run.with_suffix(".h5"),
            frames=config.frames,
            policy=kind.policy,
            last_two=kind.last_two,
        )
    )
    command = [sys.executable, "-m", "objrl.cli", "pretrain", "--data", str(data), "--threads", "1"]
    command += ["--minutes", str(config.minutes), "--out", str(run)]
    command += ["--resume"] if (run / CHECKPOINT).exists() else []
    with run.with_suffix(".log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def _score(config: FramesConfig, kind: Kind, on: Kind) -> Report:
    """Score the detector of one kind of frames on labelled ones of another."""
    path = config.runs / f"{on.game}-{on.name}.npz"
    if not path.exists():
        make_truth(
            TruthConfig(
                env=f"ALE/{on.game}-v5",
                out=path,
                frames=config.labelled,
                last_two=on.last_two,
                policy=on.policy,
                seed=4242,
            )
        )
    labelled = read_truth(path)
    weights = config.runs / f"{kind.game}-{kind.name}" / WEIGHTS
    perceiver = objrl.load(weights, device="cpu")
    return evaluate_perceiver(perceiver, labelled.frames, labelled.truth)


def _head(config: FramesConfig) -> list[str]:
    return [
        "# Frames worth learning from",
        "",
        "Written by `.venv/bin/python -m benchmarks.frames`; do not edit by hand.",
        "",
        f"Each detector: `objrl pretrain --minutes {config.minutes:g} --threads 1` on "
        f"{config.frames:,} frames, seed 0, {config.workers} at a time. Each score: F1 by centre "
        f"and at IoU 0.5 on {config.labelled} frames of another seed, boxes told by the RAM. "
        f"{platform.machine()}, torch {torch.__version__}.",
    ]


def _players(config: FramesConfig, game: str, kinds: Sequence[Kind]) -> list[str]:
    """Return a table of detectors by whose frames they learnt from."""
    on = [kind for kind in kinds if kind.name != "wander"]
    lines = [
        "",
        f"## {game}: who plays",
        "",
        "*Random* draws every action anew, *wander* holds it for a while in every other "
        f"environment, *agent* is SB3's PPO after {config.agent_steps:,} steps with the zoo's "
        "hyperparameters, one action in twenty at random.",
        "",
        "| frames of | reward per 1,000 frames | on random play | on the agent's |",
        "|---|--:|--:|--:|",
    ]
    for kind in kinds:
        with FrameStore(config.runs / f"{game}-{kind.name}.h5") as store:
            reward = 1000 * float(store.columns["reward"].mean())
        scores = [_score(config, kind, other).metrics() for other in on]
        cells = [f"{s['f1_centre']:.3f}, {s['f1_iou']:.3f}" for s in scores]
        lines.append(f"| {kind.name} | {reward:.1f} | {' | '.join(cells)} |")
    return lines


def _emulator_frames(config: FramesConfig, game: str, kinds: Sequence[Kind]) -> list[str]:
    """Return a table, class by class, of detectors by the emulator frames that they learnt from."""
    last, two = kinds
    pairs = ((last, last), (two, two), (last, two))
    reports = [_score(config, kind, on) for kind, on in pairs]
    metrics = [report.metrics() for report in reports]
    classes = [report.classes() for report in reports]
    lines = [
        "",
        f"## {game}: one emulator frame or two",
        "",
        "Learnt from and scored on the last emulator frame of each step; on the brighter of the "
        "last two (`--last-two`); learnt from the former and scored on the latter; all of "
        "wandering play. Classes: recall by centre, at IoU 0.5, and how many there are.",
        "",
        "| | last | last two | learnt from last, shown last two |",
        "|---|--:|--:|--:|",
        "| F1 | " + " | ".join(f"{m['f1_centre']:.3f}, {m['f1_iou']:.3f}" for m in metrics) + " |",
    ]
    for name in sorted({name for found in classes for name in found}):
        cells = [_recall(found.get(name)) for found in classes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _recall(found: dict[str, float] | None) -> str:
    if found is None:
        return "none there"
    return f"{found['recall_centre']:.3f}, {found['recall_iou']:.3f} of {found['objects']:.0f}"


if __name__ == "__main__":
    main(tyro.cli(FramesConfig))
