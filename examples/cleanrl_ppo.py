"""PPO in one file, in the manner of CleanRL: Gymnasium's vector API, torch, and slots.

    python examples/cleanrl_ppo.py --steps 1000000

Both autoreset modes are understood. Where a game is over, NEXT_STEP (what `gym.make_vec` gives for
ALE) shows its last frame, and the next step begins a new game instead of acting: it is left out of
what is learnt from. SAME_STEP shows the new game at once, and the last frame in `final_obs`.

Letters: T steps of a rollout, N environments, M = T * N, K slots.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn
from torch.distributions import Categorical

from objrl import VectorObjectSlots
from objrl.agents import SlotExtractor

LENGTH, EPOCHS, BATCHES = 128, 4, 4  # T; passes over a rollout; minibatches of a pass
GAMMA, LAMBDA, CLIP, ENTROPY, RATE = 0.99, 0.95, 0.1, 0.01, 5e-4
KEYS = ("position", "velocity", "scale", "depth", "what", "presence")  # an id is a name, no number
MODES = {"next": AutoresetMode.NEXT_STEP, "same": AutoresetMode.SAME_STEP}

Observation = dict[str, Any]
"""Arrays or tensors by key, (N, K, ·) or (M, K, ·)."""


class Agent(nn.Module):
    """From slots to what to do, and to what will come of it."""

    def __init__(self, slots: gym.Space[Any], actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(SlotExtractor(slots, 128), nn.Linear(128, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, actions), nn.Linear(64, 1)
        nn.init.zeros_(self.actor.weight)  # no action is preferred at first

    def forward(self, slots: Observation) -> tuple[Categorical, Tensor]:
        """Return the odds of actions, and (·,) values."""
        features = self.body({key: torch.as_tensor(field) for key, field in slots.items()})
        return Categorical(logits=self.actor(features)), self.critic(features)[:, 0]


def make_envs(count: int, autoreset: str) -> VectorEnv[Any, Any, Any]:
    """Make N games; `VectorObjectSlots` learns the mode from the metadata of those below."""
    gym.register_envs(ale_py)
    screen: dict[str, Any] = {
        "grayscale": False,
        "stack_num": 1,
        "img_height": 210,
        "img_width": 160,
    }
    mode = MODES[autoreset]
    envs = gym.make_vec("ALE/Pong-v5", count, **screen, maxpool=False, autoreset_mode=mode)
    return RecordEpisodeStatistics(VectorObjectSlots(envs, keys=KEYS))


def last_frames(observation: Observation, infos: dict[str, Any]) -> Observation:
    """Return what the steps led to, also where a new game is shown already."""
    last = {key: field.copy() for key, field in observation.items()}
    for index in np.flatnonzero(infos.get("_final_obs", ())):
        for key, field in last.items():
            field[index] = infos["final_obs"][index][key]
    return last


def advantages(rewards: Tensor, values: Tensor, over: Tensor) -> Tensor:
    """(T, N), (T + 1, N), (T, N) -> (T, N): how much better it went than was thought (GAE)."""
    result, later = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        goes_on = (~over[t]).float()
        surprise = rewards[t] + GAMMA * goes_on * values[t + 1] - values[t]
        result[t] = later = surprise + GAMMA * LAMBDA * goes_on * later
    return result


def train(envs: VectorEnv[Any, Any, Any], steps: int, seed: int = 0) -> Agent:
    """Learn from so many steps of all games together, whole rollouts of them."""
    torch.manual_seed(seed)
    agent = Agent(envs.single_observation_space, envs.action_space[0].n)  # type: ignore[index]
    optimizer = torch.optim.Adam(agent.parameters(), RATE, eps=1e-5)
    waits = envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    length = max(2, min(LENGTH, steps // envs.num_envs))
    observation, _ = envs.reset(seed=seed)
    begins = np.zeros(envs.num_envs, dtype=np.bool_)
    returns: list[float] = []
    for done in range(0, steps, length * envs.num_envs):
        seen, rows = [], []
        for _ in range(length):
            with torch.no_grad():
                odds, value = agent(observation)
            action = odds.sample()
            seen.append(observation)
            observation, reward, ended, cut_off, infos = envs.step(action.numpy())
            reward, over = reward.astype(np.float32), ended | cut_off
            if cut_off.any():  # the game would have gone on: what was to come counts as reward
                with torch.no_grad():
                    _, to_come = agent(last_frames(observation, infos))
                reward += GAMMA * np.where(cut_off, to_come.numpy(), 0)
            row = action, odds.log_prob(action), value, reward, over, ~begins
            rows.append([torch.as_tensor(column) for column in row])
            begins = over & waits
            returns += infos["episode"]["r"][over].tolist() if over.any() else []
        actions, logs, values, rewards, ends, acted = map(torch.stack, zip(*rows, strict=True))
        with torch.no_grad():
            _, value = agent(observation)
        better = advantages(rewards, torch.cat([values, value[None]]), ends)
        slots = {key: np.concatenate([one[key] for one in seen]) for key in seen[0]}
        columns = [column.flatten() for column in (actions, logs, better, better + values)]
        update(agent, optimizer, slots, columns, acted.flatten().nonzero()[:, 0])
        score = f"return {np.mean(returns[-100:]):.2f}" if returns else "no game over yet"
        print(f"{done + length * envs.num_envs} steps, {score}", flush=True)
    return agent


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    slots: Observation,
    columns: Sequence[Tensor],
    rows: Tensor,
) -> None:
    """Learn from some rows of M, in minibatches."""
    for _ in range(EPOCHS):
        for chosen in rows[torch.randperm(len(rows))].chunk(BATCHES):
            action, logs, better, target = (column[chosen] for column in columns)
            odds, value = agent({key: field[chosen.numpy()] for key, field in slots.items()})
            better = (better - better.mean()) / (better.std(correction=0) + 1e-8)
            ratio = (odds.log_prob(action) - logs).exp()
            gain = torch.min(ratio * better, ratio.clamp(1 - CLIP, 1 + CLIP) * better).mean()
            loss = F.mse_loss(value, target) / 4 - gain - ENTROPY * odds.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="of all games together")
    parser.add_argument("--envs", type=int, default=8, help="games at once")
    parser.add_argument("--autoreset", choices=MODES, default="next", help="when games begin anew")
    options = parser.parse_args()
    envs = make_envs(options.envs, options.autoreset)
    train(envs, options.steps)
    envs.close()
