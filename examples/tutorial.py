"""From `gym.make` to an agent that learnt from objects, was saved, loaded and watched.

python examples/tutorial.py --steps 20000
"""

import argparse

import ale_py
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

from objrl import ObjectSlots
from objrl.agents import SlotExtractor
from objrl.draw import write_video

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20_000, help="actions to learn from")
steps = parser.parse_args().steps

# A game that shows pixels, and in front of it what turns them into objects.
gym.register_envs(ale_py)
env = ObjectSlots(gym.make("ALE/Pong-v5", render_mode="rgb_array"))

# An agent that takes objects as they come, in any order and any number.
policy = {"features_extractor_class": SlotExtractor, "net_arch": [64]}
model = PPO("MultiInputPolicy", env, n_steps=min(steps, 512), policy_kwargs=policy, verbose=1)
model.learn(steps)
model.save("runs/tutorial.zip")

# As another program would, later: it plays for a minute, and `render` draws what it sees.
model = PPO.load("runs/tutorial.zip")
observation, info = env.reset(seed=0)
film, score, over = [np.asarray(env.render())], 0.0, False
while not over and len(film) < min(steps, 900):
    action, _ = model.predict(observation, deterministic=True)
    observation, reward, terminated, truncated, info = env.step(action)
    film.append(np.asarray(env.render()))
    score, over = score + float(reward), terminated or truncated
write_video("runs/tutorial.mp4", film, fps=15)
print(f"score {score:g} in {len(film)} frames: runs/tutorial.mp4")
