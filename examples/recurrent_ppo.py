"""RecurrentPPO of sb3-contrib, whose LSTM remembers objects that are out of sight.

pip install sb3-contrib
python examples/recurrent_ppo.py --steps 100000
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO

from objrl.agents import SlotExtractor
from objrl.wrappers import AtariVecEnv, VecObjectSlots


def make_envs(count: int) -> VecObjectSlots:
    """Make several games as ALE/Pong-v5 plays; AtariVecEnv alone has no sticky actions."""
    return VecObjectSlots(AtariVecEnv("ALE/Pong-v5", count, action_repeat_probability=0.25))


def main() -> None:
    """Learn, save, load, and play a little with what was loaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="in all games together")
    parser.add_argument("--envs", type=int, default=4, help="games at once")
    parser.add_argument("--out", default="runs/recurrent.zip", help="where the agent is kept")
    options = parser.parse_args()
    shown = min(options.steps, 200)

    envs = make_envs(options.envs)
    model = RecurrentPPO(
        "MultiInputLstmPolicy",
        envs,
        n_steps=max(2, min(128, options.steps // options.envs)),
        n_epochs=4,
        batch_size=128,
        learning_rate=2.5e-4,
        policy_kwargs={"features_extractor_class": SlotExtractor, "lstm_hidden_size": 128},
        device="cpu",
        verbose=1,
    )
    model.learn(options.steps)
    model.save(options.out)
    envs.close()

    model = RecurrentPPO.load(options.out, device="cpu")
    envs = make_envs(1)
    observation: Any = envs.reset()
    memory, begins, score = None, np.ones(1, dtype=np.bool_), 0.0
    for _ in range(shown):
        # Without its memory, and without the ends of games, every step would be a first one to it.
        action, memory = model.predict(observation, memory, begins, deterministic=True)
        observation, rewards, begins, _ = envs.step(action)
        score += float(rewards[0])
    envs.close()
    print(f"score {score:g} after {shown} steps; kept in {options.out}")


if __name__ == "__main__":
    main()
