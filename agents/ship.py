"""Turn a run into a shipped agent: let it play games that are new to it, write what it came to.

    python -m objrl.agents.ship runs/agents/Pong-space-ppo-500000-0

For maintainers, in a checkout. It writes agents/shipped/GAME.safetensors, the same as a zip of
Stable-Baselines3 and a card.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3.common.evaluation import evaluate_policy

from objrl.agents.agent import AGENT, SHIPPED, Agent, load_agent, save_agent
from objrl.agents.envs import make_envs
from objrl.agents.train import ZIP
from objrl.atomic import replacing, write_atomically
from objrl.wrappers.choose import game_of

SEED = 2**22
"""Of the games: none that it learnt from or was picked by."""
AT_ONCE = 8


@dataclass(frozen=True)
class ShipConfig:
    """Measure a trained agent and put it into the package."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of `objrl train`."""
    games: int = 30
    """Games that it plays, and that are played at random beside it."""
    out: Path = SHIPPED
    """Where to."""


def ship(config: ShipConfig) -> Path:
    """Play, write and return the path of the agent's file.

    Raises:
        FileNotFoundError: no agent in the folder.
        ValueError: it does not play better than at random, or no games.
    """
    if config.games < 1:
        raise ValueError(f"games: expected at least 1, got {config.games}")
    torch.set_num_threads(1)
    agent = load_agent(config.run / AGENT)
    learnt, chance = played(agent, config.games), at_random(agent.config.env, config.games)
    if learnt["return"] <= chance["return"]:
        raise ValueError(
            f"run: expected an agent that plays better than at random, got {learnt} against "
            f"{chance}; train it for longer"
        )
    about = {**agent.about, "measured": learnt, "random": chance}
    name = game_of(agent.config.env)
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / f"{name}.safetensors"
    with replacing(path.with_suffix(".zip")) as temporary:
        shutil.copyfile(config.run / ZIP, temporary)
    save_agent(path, agent.config, agent.model, about)
    write_atomically(path.with_suffix(".md"), _card(name, agent, about).encode())
    return path


def played(agent: Agent, games: int) -> dict[str, Any]:
    """Return what an agent comes to in whole games with the likeliest actions."""
    envs = agent.config.envs(min(games, AT_ONCE), learning=False, seed=SEED)
    try:
        scores, _ = evaluate_policy(agent.model, envs, games, return_episode_rewards=True)
    finally:
        envs.close()
    return _summary(np.asarray(scores))


def at_random(env_id: str, games: int) -> dict[str, Any]:
    """Return what random actions come to in whole games."""
    count = min(games, AT_ONCE)
    envs = make_envs(env_id, "pixels", count, learning=False, seed=SEED)
    rng = np.random.default_rng(0)
    # The first to end are the shortest: each environment gives about as many, and all are played.
    left = np.array([len(part) for part in np.array_split(np.arange(games), count)])
    scores: list[float] = []
    envs.reset()
    while left.any():
        actions = rng.integers(0, envs.action_space.n, count)  # type: ignore[attr-defined]
        _, _, _, infos = envs.step(actions)
        for index, info in enumerate(infos):
            if "episode" in info and left[index]:
                left[index] -= 1
                scores.append(info["episode"]["r"])
    envs.close()
    return _summary(np.asarray(scores))


def _summary(scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "games": len(scores),
        "return": round(float(scores.mean()), 2),
        "spread": round(float(scores.std()), 2),
    }


def _card(name: str, agent: Agent, about: dict[str, Any]) -> str:
    config, learnt, chance = agent.config, about["measured"], about["random"]
    return f"""\
# Agent {name}

Plays {config.env} from the slots of `{config.weights}` ({config.algo.upper()}, \
`{type(agent.model.policy.features_extractor).__name__}`).

| | return | games |
|---|--:|--:|
| the agent, likeliest actions | {learnt["return"]} ± {learnt["spread"]} | {learnt["games"]} |
| random actions | {chance["return"]} ± {chance["spread"]} | {chance["games"]} |

Mean ± standard deviation of whole games with seed {SEED}, which it neither learnt from nor was \
picked by: `python -m objrl.agents.ship`. It is the best of the evaluations of its run by \
`objrl train` (seed {about["seed"]}), after {about["steps"]:,} actions and \
{about["cpu_seconds"]:,.0f} CPU-seconds.

`objrl watch {name}` films it, `objrl demo --env {config.env}` plays with it. In Python \
`objrl.agents.load_agent("{name}")`; {name}.zip is the same for `stable_baselines3.\
{type(agent.model).__name__}.load`, which unpickles: for files that you trust.
"""


if __name__ == "__main__":
    print(f"wrote {ship(tyro.cli(ShipConfig))}")
