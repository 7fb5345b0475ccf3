"""`objrl train`: an agent learns to play from objects, pixels or the RAM."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure as configure_logger
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from objrl.agents.agent import AGENT, AgentConfig, load_agent, save_agent
from objrl.agents.envs import check_game
from objrl.agents.presets import Algorithm, Encoder, Extractor
from objrl.agents.watch import film
from objrl.atomic import replacing, write_atomically
from objrl.checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint
from objrl.clock import Clock
from objrl.locking import writing
from objrl.stopping import asked_to_stop
from objrl.weights import WEIGHTS
from objrl.wrappers.choose import game_of, weights_for

ZIP, CHECKPOINT, CURVE, VIDEO = "agent.zip", "checkpoint.safetensors", "curve.csv", "best.mp4"

_REFILL = 1_000
"""Steps for which a resumed DQN, whose memory of what it saw was not kept, acts at random."""

COLUMNS = ("steps", "games", "score", "evaluated", "spread", "wall_seconds", "cpu_seconds")
"""Of the curve; `score` is the mean return of the last 100 games that it learnt from."""


@dataclass(frozen=True)
class TrainConfig:
    """Train an agent with Stable-Baselines3, and keep the best one.

    Ends with agent.safetensors and agent.zip (the best policy, for objrl and for SB3), curve.csv
    and best.mp4 in the folder of the run.
    """

    env: str = "ALE/Pong-v5"
    """Game of ALE."""
    algo: Algorithm = "ppo"
    """Algorithm."""
    obs: Literal["slots", "pixels", "ram"] = "slots"
    """What it sees: objects of a perceiver, pixels (four grey frames of 84 x 84), or the objects
    that OCAtari reads from the RAM."""
    steps: float = 1e6
    """Actions in all environments together; PPO ends with the rollout in which they are done."""
    weights: str | None = None
    """With slots, whose: a name of `objrl weights` or a path; by default the game's own."""
    extractor: Extractor = "deepsets"
    """What makes features of objects: attention (set), sums (deepsets), pairs (relational), or row
    by row (flat)."""
    encoder: Encoder = "freeze"
    """With slots: the encoder stays as it is; or it learns by the agent's loss; or by its own,
    too."""
    seed: int = 0
    """Of games, policy and samples."""
    out: Path | None = None
    """Folder of the run; by default runs/agents/<game>-<obs>-<algo>-<seed>."""
    resume: bool = False
    """Go on from the folder's last checkpoint; the other options must be those of the run."""
    evaluate_every: float = 1e5
    """Actions between evaluations."""
    episodes: int = 10
    """Games of an evaluation, with the likeliest actions."""
    checkpoint_every: float = 5e4
    """Actions between checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads for networks; where others use the machine, more wait for each other."""
    video: bool = True
    """Whether the best policy is filmed."""


def train(config: TrainConfig) -> Path:
    """Train and return the path of the best agent's file.

    Raises:
        FileNotFoundError: nothing to resume.
        FileExistsError: the folder holds a run, and `resume` was not asked for.
        ValueError: a bad setting, an unknown game or weights, another run's checkpoint, or a
            folder that is being written.
        ImportError: the RAM's objects are wanted, and OCAtari is not there.
        KeyboardInterrupt: asked to stop, by Ctrl-C or SIGTERM; a checkpoint was written.
    """
    _check(config)
    check_game(config.env)
    torch.set_num_threads(config.threads)
    agent = _agent(config)
    name = f"{game_of(config.env)}-{config.obs}-{config.algo}-{config.seed}"
    out = config.out or Path("runs/agents") / name
    with writing(out):
        _learn(config, agent, out, _checkpoint(config, agent, out))
    return out / AGENT


def _learn(
    config: TrainConfig, agent: AgentConfig, out: Path, checkpoint: Checkpoint | None
) -> None:
    """Train from the beginning or from a checkpoint to the end, and film what is best."""
    done = checkpoint.about["steps"] if checkpoint else 0
    left = int(config.steps) - done
    # Games cannot be resumed: others begin, and other samples are drawn.
    seed = _derived(config.seed, done)
    envs = agent.envs(
        *(agent.recipe.envs,),
        learning=True,
        seed=seed,
        device=config.device,
        threads=config.threads,
    )
    course = Course(config, agent, out)
    with contextlib.closing(envs), contextlib.closing(course):
        model = agent.build(envs, seed=seed, device=config.device)
        model.set_logger(configure_logger(str(out / "logs"), ["tensorboard"]))
        if checkpoint:
            course.go_on(model, checkpoint)
        with asked_to_stop() as stop:
            course.stop = stop
            if left > 0:
                model.learn(left, course, reset_num_timesteps=checkpoint is None)
            if course.stopped:
                raise KeyboardInterrupt
            course.finish(model)
    print(f"wrote {out / AGENT}: {course.best:.1f}, the best of its evaluations")
    if config.video and (left > 0 or not (out / VIDEO).exists()):
        film(load_agent(out / AGENT, device=config.device), out / VIDEO)


def _check(config: TrainConfig) -> None:
    for name, least in (("steps", 1), ("evaluate_every", 1), ("checkpoint_every", 1)):
        value = getattr(config, name)
        if not (value >= least and float(value).is_integer()):
            raise ValueError(f"{name}: expected a whole number from {least} on, got {value}")
    for name, least in (("seed", 0), ("episodes", 1), ("threads", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
    if config.obs != "slots" and (config.weights or config.encoder != "freeze"):
        raise ValueError(
            f"obs: expected slots with weights or an encoder that learns, got {config.obs!r}; "
            "leave --weights and --encoder out"
        )
    if config.obs == "pixels" and config.extractor != TrainConfig.extractor:
        raise ValueError(
            f"extractor: expected none with pixels, which go through NatureCNN, got "
            f"{config.extractor!r}; leave --extractor out"
        )
    if config.algo == "dqn" and config.encoder != "freeze":
        raise ValueError(
            "algo: expected ppo with an encoder that learns, got dqn, whose memory would hold "
            "100,000 frames in colour, 20 GB; take --algo ppo, or --encoder freeze"
        )


def _derived(seed: int, *what: int) -> int:
    """Return a seed for a part of a run, far from those of other parts and of other runs."""
    return int(np.random.SeedSequence([seed, *what]).generate_state(1)[0]) % 2**30


def _agent(config: TrainConfig) -> AgentConfig:
    weights = config.weights
    if config.obs == "slots" and weights is None:
        weights = weights_for(config.env)
    if weights is not None and weights not in WEIGHTS:
        weights = str(Path(weights).resolve())  # the agent is to find it from anywhere
    return AgentConfig(
        *(config.env, config.algo, config.obs, weights), config.extractor, config.encoder
    )


def _checkpoint(config: TrainConfig, agent: AgentConfig, out: Path) -> Checkpoint | None:
    """Return the run's last checkpoint, if it is to be resumed."""
    path = out / CHECKPOINT
    if not config.resume:
        if path.exists():
            raise FileExistsError(
                f"{out}: expected a new folder, got one with a run; go on with --resume, or take "
                "another --out"
            )
        return None
    checkpoint = load_checkpoint(path)
    given = json.loads(json.dumps(_plain(config, agent)))
    other = [key for key, value in given.items() if checkpoint.about["config"].get(key) != value]
    if other:
        raise ValueError(
            f"resume: expected the options of the run in {out}, got another {', '.join(other)} "
            "(recipe and digest also change with objrl and its weights); take another --out"
        )
    return checkpoint


def _plain(config: TrainConfig, agent: AgentConfig) -> dict[str, Any]:
    """Return what a run and its resumption must have in common."""
    # How often it is evaluated, and by how many games, decides which agent is the best.
    chosen = ("env", "algo", "obs", "steps", "weights", "extractor", "encoder", "seed")
    return {
        **{name: getattr(config, name) for name in (*chosen, "evaluate_every", "episodes")},
        "recipe": dataclasses.asdict(agent.recipe),
        "digest": agent.digest,
    }


class Course(BaseCallback):
    """What goes on beside learning: returns, evaluations, checkpoints, progress.

    Attributes:
        rows: of curve.csv.
        best: mean return of the best evaluation so far, if there was one.
        stopped: whether the run was asked to stop.
    """

    def __init__(self, config: TrainConfig, agent: AgentConfig, out: Path) -> None:
        super().__init__()
        self.config, self.agent, self.out = config, agent, out
        self.rows: list[dict[str, Any]] = []
        self.best: float | None = None
        self.games, self.stopped = 0, False
        self.stop: Callable[[], bool] = lambda: False
        self._returns: deque[float] = deque(maxlen=100)
        self._evaluated = self._kept = 0
        self._clock = Clock()
        self._rivals: VecEnv | None = None

    def go_on(self, model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint was written."""
        about = checkpoint.about
        restore(checkpoint, model.policy, [model.policy.optimizer])
        model.num_timesteps = about["steps"]
        if isinstance(model, DQN):
            model.learning_starts = max(model.learning_starts, about["steps"] + _REFILL)
        self.rows, self.best, self.games = about["rows"], about["best"], about["games"]
        self._returns.extend(about["returns"])
        self._clock = Clock(**about["spent"])
        self._evaluated, self._kept = about["evaluated"], about["steps"]

    def finish(self, model: BaseAlgorithm) -> None:
        """Evaluate what was learnt in the end, if that was not done yet, and write everything."""
        self.model, self.num_timesteps = model, model.num_timesteps
        if self._evaluated < self.num_timesteps:
            self._keep()
            self._evaluate()
            self._keep()

    def close(self) -> None:
        """Close the games that it is evaluated by."""
        if self._rivals is not None:
            self._rivals.close()

    def _on_training_start(self) -> None:
        total = int(self.config.steps)
        self._bar = tqdm(total=total, initial=self.num_timesteps, unit="step", smoothing=0.05)

    def _on_training_end(self) -> None:
        self._bar.close()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._returns.append(info["episode"]["r"])
                self.games += 1
        self._bar.update(self.num_timesteps - self._bar.n)
        return not self.stopped

    def _on_rollout_start(self) -> None:
        """Between two updates."""
        if self._returns:
            best = {} if self.best is None else {"best": f"{self.best:.1f}"}
            self._bar.set_postfix(score=f"{np.mean(self._returns):.1f}", **best)
        if self.num_timesteps - self._evaluated >= self.config.evaluate_every:
            self._evaluate()
        # Here, and not within a rollout, of which nothing would have been learnt.
        self.stopped = self.stop()
        if self.stopped or self.num_timesteps - self._kept >= self.config.checkpoint_every:
            self._keep()

    def _evaluate(self) -> None:
        """Play whole games with the likeliest actions; keep the best policy."""
        try:
            with self._clock.stopped():
                scores = self._play()
        except KeyboardInterrupt:
            self._keep()  # the run goes on with these games
            raise
        self._evaluated = self.num_timesteps
        mean, spread = float(np.mean(scores)), float(np.std(scores))
        self._row(evaluated=mean, spread=spread)
        self.logger.record("eval/return", mean)
        self.logger.dump(self.num_timesteps)
        if self.best is not None and mean <= self.best:
            return
        self.best = mean
        about = {
            "steps": self.num_timesteps,
            "return": mean,
            "spread": spread,
            "games": self.config.episodes,
            "seed": self.config.seed,
            "cpu_seconds": round(self._clock.cpu, 1),
        }
        save_agent(self.out / AGENT, self.agent, self.model, about)
        with replacing(self.out / ZIP) as temporary:
            self.model.save(temporary)

    def _play(self) -> list[float]:
        """Return what whole games come to, or stop with KeyboardInterrupt if asked to."""
        if self._rivals is None:
            self._rivals = self.agent.envs(
                min(self.config.episodes, 8),
                learning=False,
                seed=_derived(self.config.seed, 0, 1),  # no game that it learns from
                device=self.config.device,
                threads=self.config.threads,
            )
        with tqdm(total=self.config.episodes, unit="game", desc="plays", leave=False) as bar:

            def after_a_step(here: dict[str, Any], _: dict[str, Any]) -> None:
                bar.update(int(here["episode_counts"].sum()) - bar.n)
                if self.stop():
                    raise KeyboardInterrupt

            scores, _ = evaluate_policy(
                *(self.model, self._rivals, self.config.episodes),
                callback=after_a_step,
                return_episode_rewards=True,
            )
            bar.update(bar.total - bar.n)
        assert isinstance(scores, list)
        return scores

    def _keep(self) -> None:
        """Write a checkpoint and the curve."""
        self._kept = self.num_timesteps
        self._row()
        about = {
            "config": _plain(self.config, self.agent),
            "steps": self.num_timesteps,
            "rows": self.rows,
            "best": self.best,
            "evaluated": self._evaluated,
            "games": self.games,
            "returns": list(self._returns),
            "spent": {"wall": self._clock.wall, "cpu": self._clock.cpu},
        }
        policy = self.model.policy
        save_checkpoint(self.out / CHECKPOINT, policy, [policy.optimizer], about)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.out / CURVE, text.getvalue().encode())

    def _row(self, **more: float) -> None:
        """Note how far it is, in one row; `score` is the mean return of the last 100 games."""
        if self.rows and self.rows[-1]["steps"] == self.num_timesteps:
            more = {**self.rows.pop(), **more}
        score = {"score": float(np.mean(self._returns))} if self._returns else {}
        self.rows.append(
            {
                "steps": self.num_timesteps,
                "games": self.games,
                **score,
                "wall_seconds": round(self._clock.wall, 1),
                "cpu_seconds": round(self._clock.cpu, 1),
                **more,
            }
        )
