"""PPO of RLlib, on slots as one vector.

    pip install 'ray[rllib]'
    python examples/rllib_ppo.py --steps 4000 --iterations 100 --envs 8

With one game a process it is `ObjectSlots`; with several, `VectorObjectSlots` sees all of them in
one forward pass.
"""

from __future__ import annotations

import argparse
from typing import Any

import ale_py
import gymnasium as gym
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env

from objrl import ObjectSlots, VectorObjectSlots

SEEN: dict[str, Any] = {
    # Bounded, all of them; `depth` and `what` are not, and RLlib's networks take them as they are.
    "keys": ("position", "velocity", "scale", "presence"),
    "flatten": True,  # RLlib has no network for a Dict
    "device": "cpu",
}


def make_env(context: dict[str, Any]) -> gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]:
    """Make one game, or as many as RLlib asks for at once; called in the process that plays."""
    gym.register_envs(ale_py)
    if "num_envs" not in context:
        return ObjectSlots(gym.make("ALE/Pong-v5"), **SEEN)
    screen: dict[str, Any] = {
        "grayscale": False,
        "stack_num": 1,
        "img_height": 210,
        "img_width": 160,
    }
    envs = gym.make_vec("ALE/Pong-v5", context["num_envs"], maxpool=False, **screen)
    return VectorObjectSlots(envs, **SEEN)


def main() -> None:
    """Learn for some iterations, and tell how it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=512, help="of an iteration, in all games")
    parser.add_argument("--iterations", type=int, default=2, help="updates of the network")
    parser.add_argument("--envs", type=int, default=1, help="games of a process")
    parser.add_argument("--runners", type=int, default=0, help="processes that play; 0: this one")
    options = parser.parse_args()

    ray.init(num_cpus=1 + options.runners, include_dashboard=False)
    register_env("pong-slots", make_env)
    config = (
        PPOConfig()
        .environment("pong-slots")
        .env_runners(
            num_env_runners=options.runners,
            num_envs_per_env_runner=options.envs,
            gym_env_vectorize_mode="vector_entry_point" if options.envs > 1 else "sync",
        )
        .training(
            train_batch_size_per_learner=options.steps,
            minibatch_size=min(options.steps, 128),
            num_epochs=4,
        )
    )
    algorithm = config.build_algo()
    for number in range(1, options.iterations + 1):
        told = algorithm.train()
        steps = int(told["num_env_steps_sampled_lifetime"])
        score = told["env_runners"].get("episode_return_mean", "no game over yet")
        print(f"iteration {number}: {steps} steps, return {score}")
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
