"""`objrl collect`: play a game and keep what was seen.

Atari games run in ALE's own vector environment, whose frames are, pixel by pixel, those of
`gym.make`: native size, RGB, neither pooled nor stacked. Anything else whose observations are RGB
frames runs in Gymnasium's `SyncVectorEnv`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

import objrl
from objrl.pretrain.policies import Policy, make_policy
from objrl.pretrain.store import FrameStore, FrameWriter
from objrl.wrappers.choose import game_of, unknown_env

Rows = dict[str, npt.NDArray[Any]]

gym.register_envs(ale_py)


@dataclass(frozen=True)
class CollectConfig:
    """What to play and where to keep the frames.

    Run it again after an interruption, or with more frames, and it goes on where it was; the
    emulator's state is not kept, so new episodes begin there.
    """

    env: str | None = None
    """Environment id, e.g. ALE/Pong-v5 or PongNoFrameskip-v4; any whose observations are RGB."""
    out: Path | None = None
    """The HDF5 file to write, or to go on with; by default runs/<game>.h5."""
    frames: int = 60_000
    """Frames that the file has in the end, of all environments together."""
    policy: str = "random"
    """'random'; 'wander', where every other environment holds each random action for a while and so
    gets about; or the zip of an SB3 agent (PPO, A2C or DQN with a CnnPolicy on grey frames)."""
    epsilon: float = 0.05
    """How often an agent acts at random instead, in [0, 1]."""
    num_envs: int = 8
    """Environments side by side."""
    seed: int = 0
    """Of games, actions and the split into train, val and test; at least 0."""
    last_two: bool = False
    """Keep of the last two emulator frames the brighter value, channel by channel, as DQN's
    preprocessing does: what is drawn in every other frame does not vanish."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps; by default as the environment says."""
    from_minari: str | None = None
    """Import this Minari data set (its id, or its folder) into `out` instead of playing."""
    to_minari: str | None = None
    """Export `out` as a Minari data set of this id, e.g. pong/random-v0, instead of playing."""


def collect(config: CollectConfig) -> Path:
    """Do what the configuration says and return the path of the store.

    Raises:
        ValueError: a bad setting, an unknown environment or one without RGB frames, or `out` holds
            another run.
        OSError: the disk is full; what was written before stays.
    """
    _check(config)
    out = config.out or default_store(config.env or "")
    if config.to_minari is not None:
        from objrl.pretrain.minari import export_minari

        folder = export_minari(out, config.to_minari).spec.data_path
        print(f"written: Minari data set {config.to_minari} in {folder}")
        return out
    if config.from_minari is not None:
        from objrl.pretrain.minari import import_minari

        import_minari(config.from_minari, out)
    else:
        _play(config, out)
    with FrameStore(out) as store:
        print(f"written: {out}, {len(store):,} frames of {store.env_id}")
    return out


def default_store(env_id: str) -> Path:
    """Return where a game's frames are kept when no other place is named."""
    return Path("runs") / f"{game_of(env_id).replace('/', '_')}.h5"


def make_envs(
    spec: EnvSpec, num_envs: int, *, last_two: bool = False
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make environments side by side whose frames are those of `gym.make(spec)`.

    With `last_two`, they show the brighter of the last two emulator frames in place of the last.

    An episode's last frame is returned like any other, and the first of the next by the step
    after (Gymnasium's next-step mode). ALE's frames come as (B, 1, H, W, 3).

    Raises:
        ValueError: observations that are no RGB frames, or `last_two` of an environment that is not
            ALE's own.
    """
    with gym.make(spec) as single:
        space = single.observation_space
    if (
        not isinstance(space, gym.spaces.Box)
        or space.dtype != np.uint8
        or len(space.shape) != 3
        or space.shape[2] != 3
    ):
        raise ValueError(
            f"env: expected {spec.id} to observe RGB frames Box(H, W, 3) uint8, got {space}; "
            "register it with gymnasium.wrappers.AddRenderObservation around it"
        )
    if spec.entry_point == "ale_py.env:AtariEnv" and _is_plain(spec.kwargs):
        games = dict(spec.kwargs)
        if spec.max_episode_steps is not None:
            limit = spec.max_episode_steps * games["frameskip"]
            games["max_num_frames_per_episode"] = min(games["max_num_frames_per_episode"], limit)
        return AtariVectorEnv(
            num_envs=num_envs,
            **games,
            img_height=space.shape[0],
            img_width=space.shape[1],
            grayscale=False,
            stack_num=1,
            maxpool=last_two,
            noop_max=0,
            use_fire_reset=False,
            reward_clipping=False,
        )
    if last_two:
        raise ValueError(
            f"last_two: expected a plain game of ALE with a fixed frameskip, got {spec.id}; wrap "
            "it in gymnasium.wrappers.AtariPreprocessing instead"
        )
    return gym.vector.SyncVectorEnv(
        [lambda: gym.make(spec)] * num_envs, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP
    )


def _is_plain(kwargs: dict[str, Any]) -> bool:
    """Whether ALE's vector environment can be told all of it; not so e.g. a random frameskip."""
    return isinstance(kwargs.get("frameskip"), int) and set(kwargs) == {
        "game",
        "frameskip",
        "repeat_action_probability",
        "full_action_space",
        "max_num_frames_per_episode",
    }


def find_spec(env_id: str) -> EnvSpec:
    """Return a copy of what is registered under an id.

    Raises:
        ValueError: nothing is, with the ids that look most like it.
    """
    try:
        return deepcopy(gym.spec(env_id))
    except (gym.error.Error, ModuleNotFoundError) as problem:
        raise unknown_env(env_id) from problem


def rollout(
    envs: gym.vector.VectorEnv[Any, Any, Any],
    policy: Policy,
    seeds: npt.NDArray[np.int64],
    first_episode: int,
) -> Iterator[Rows]:
    """Play for ever; yield one row an environment a step, as the store wants them.

    Args:
        envs: from `make_envs`.
        policy: who plays.
        seeds: (B,) of the environments.
        first_episode: the first free episode number.
    """
    count = envs.num_envs
    stream = np.arange(count)
    shape = envs.single_observation_space.shape or ()
    seeding: Any = seeds if isinstance(envs, AtariVectorEnv) else seeds.tolist()
    observed, _ = envs.reset(seed=seeding)
    begins = np.ones(count, dtype=np.bool_)
    ended = np.zeros(count, dtype=np.bool_)
    episode, next_episode = first_episode + stream, first_episode + count
    step = np.zeros(count, dtype=np.int64)
    action = np.zeros_like(envs.action_space.sample())
    rows = {"reward": np.zeros(count), "terminated": ended, "truncated": ended}
    while True:
        frames = observed.reshape(count, *shape[-3:])
        yield {
            **rows,
            "frames": frames,
            "action": action,
            "episode": episode,
            "stream": stream,
            "step": step,
        }
        action = policy(frames, begins)
        observed, reward, terminated, truncated, _ = envs.step(action)
        begins, ended = ended, terminated | truncated
        action = action.copy()
        action[begins] = 0  # the environment began an episode and took no action
        step = np.where(begins, 0, step + 1)
        episode = episode.copy()
        episode[begins] = next_episode + np.arange(begins.sum())
        next_episode += int(begins.sum())
        rows = {"reward": reward, "terminated": terminated, "truncated": truncated}


def _play(config: CollectConfig, out: Path) -> None:
    spec = find_spec(config.env or "")
    if config.max_episode_steps is not None:
        spec.max_episode_steps = config.max_episode_steps
    envs = make_envs(spec, min(config.num_envs, config.frames), last_two=config.last_two)
    actions = envs.single_action_space
    shape = envs.single_observation_space.shape or ()
    try:
        # All that can be wrong with the wishes shows before there is a file.
        policy = make_policy(config.policy, envs.action_space, actions, config.epsilon)
        with FrameWriter(
            out,
            frame_shape=shape[-3:],
            action_shape=actions.shape or (),
            action_dtype=actions.dtype or np.int64,
            attributes=_attributes(config, spec),
            versions=_versions(),
            asked=config.frames,
        ) as writer:
            _fill(writer, envs, policy, config)
    finally:
        envs.close()


def _fill(
    writer: FrameWriter,
    envs: gym.vector.VectorEnv[Any, Any, Any],
    policy: Policy,
    config: CollectConfig,
) -> None:
    done = len(writer)
    # A continued run must not play the same games again, so what is there joins the seed.
    *seeds, draws = np.random.SeedSequence([config.seed, done]).generate_state(envs.num_envs + 1)
    env_seeds = np.array(seeds, dtype=np.int64) >> 1  # ALE's seeds are 31 bits
    policy.seed(int(draws))
    bar = tqdm(desc=str(writer.path), initial=done, total=config.frames, unit="frame")
    with bar:
        for rows in rollout(envs, policy, env_seeds, writer.next_episode):
            room = config.frames - len(writer)
            if room <= 0:
                break
            writer.append(**{name: column[:room] for name, column in rows.items()})
            bar.update(min(room, envs.num_envs))


def _check(config: CollectConfig) -> None:
    chosen = [config.env, config.from_minari, config.to_minari]
    if sum(choice is not None for choice in chosen) != 1:
        raise ValueError(
            "collect: expected exactly one of --env, --from-minari and --to-minari, "
            f"got env={config.env!r}, from_minari={config.from_minari!r}, "
            f"to_minari={config.to_minari!r}"
        )
    if config.env is None and config.out is None:
        raise ValueError(
            "out: expected --out FILE.h5 beside --from-minari and --to-minari, got none; only a "
            "game's frames have a place of their own, runs/<game>.h5"
        )
    for name, least in (("frames", 1), ("num_envs", 1), ("seed", 0), ("max_episode_steps", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= config.epsilon <= 1:
        raise ValueError(f"epsilon: expected a probability in [0, 1], got {config.epsilon}")


def _attributes(config: CollectConfig, spec: EnvSpec) -> dict[str, str | int | float]:
    """Return what identifies a run: a file is only continued by one that says the same."""
    try:
        described = spec.to_json()
    except (TypeError, ValueError):  # made of things that JSON cannot hold
        described = json.dumps({"id": spec.id, "max_episode_steps": spec.max_episode_steps})
    skip = spec.kwargs.get("frameskip", 1)
    attributes: dict[str, str | int | float] = {
        "env_id": spec.id,
        "spec": described,
        "frameskip": skip if isinstance(skip, int) else str(skip),
        "repeat_action_probability": float(spec.kwargs.get("repeat_action_probability", 0.0)),
        "seed": config.seed,
        "num_envs": config.num_envs,
        "policy": config.policy,
        "last_two": int(config.last_two),
    }
    if config.policy not in ("random", "wander"):
        path = Path(config.policy)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes |= {"policy": f"{path.name} sha256:{digest}", "epsilon": config.epsilon}
    return attributes


def _versions() -> dict[str, str]:
    return {
        "objrl_version": objrl.__version__,
        "gymnasium_version": gym.__version__,
        "ale_version": ale_py.__version__,
    }
