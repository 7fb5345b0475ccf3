"""Extractors of slots: sets are sets, empty rows are nothing, and SB3's agents learn with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations
from torch import Tensor, nn

from objrl.agents.extractors import (
    DeepSetsExtractor,
    FlatExtractor,
    RelationalExtractor,
    SlotExtractor,
)
from objrl.wrappers.spaces import KEYS, make_layout

Observations = dict[str, Tensor]

SETS: list[type[Any]] = [SlotExtractor, DeepSetsExtractor, RelationalExtractor]
EVERY = [*SETS, FlatExtractor]
ROWS, WHAT = 6, 3

few = settings(max_examples=8, deadline=None)


def space(rows: int = ROWS, stack: int = 1, keys: Sequence[str] | None = None) -> gym.spaces.Dict:
    made: Any = make_layout(rows, WHAT, keys, flatten=False).space()
    if stack > 1:
        made = StackedObservations(1, stack, made).stacked_observation_space
    assert isinstance(made, gym.spaces.Dict)
    return made


def draw(seed: int, rows: int = ROWS, stack: int = 1, batch: int = 3, share: float = 0.5) -> Any:
    """Slots as `ObjectSlots` shows them: rows are empty in some frames, and 0 there."""
    random = torch.Generator().manual_seed(seed)
    there = torch.rand(batch, rows, stack, 1, generator=random) < share
    found = {}
    for key, width in zip(KEYS, (2, 2, 2, 1, WHAT, 1, 1), strict=True):
        field = torch.randn(batch, rows, stack, width, generator=random)
        field = field.sigmoid() if key == "presence" else field
        found[key] = torch.where(there, field, 0).flatten(2)
    ids = torch.randint(99, (batch, rows, stack), generator=random)
    return found | {"track_id": torch.where(there[..., 0], ids, -1).float()}


def build(kind: type[Any], *args: Any, **sizes: Any) -> Any:
    torch.manual_seed(0)
    return kind(*(args or (space(),)), **sizes)


def check_same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- sets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SETS)
@few
@given(seed=st.integers(0, 999), stack=st.sampled_from([1, 3]))
def test_the_order_of_rows_does_not_matter(kind: type[Any], seed: int, stack: int) -> None:
    net, observations = build(kind, space(stack=stack)), draw(seed, stack=stack)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    moved = {key: field[:, order] for key, field in observations.items()}
    check_same(net(moved), net(observations))


def test_to_the_flat_one_another_row_is_another_object() -> None:
    net, observations = build(FlatExtractor), draw(0)
    moved = {key: field.flip(1) for key, field in observations.items()}
    assert (net(moved) - net(observations)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", EVERY)
@few
@given(seed=st.integers(0, 999), stack=st.sampled_from([1, 3]))
def test_what_an_empty_row_shows_does_not_matter(kind: type[Any], seed: int, stack: int) -> None:
    net, observations = build(kind, space(stack=stack)), draw(seed, stack=stack)
    spoilt = {}
    for key, field in observations.items():
        empty = (observations["presence"] == 0).repeat_interleave(field.shape[-1] // stack, dim=-1)
        rubbish = torch.tensor([torch.nan, torch.inf, -1e30, 5.0])[torch.randint(4, field.shape)]
        spoilt[key] = field if key == "presence" else torch.where(empty, rubbish, field)
    check_same(net(spoilt), net(observations))


@pytest.mark.parametrize("kind", SETS)
@few
@given(seed=st.integers(0, 999), more=st.integers(1, 9))
def test_more_empty_rows_change_nothing(kind: type[Any], seed: int, more: int) -> None:
    net, wide = build(kind), build(kind, space(ROWS + more))
    wide.load_state_dict(net.state_dict())
    observations = draw(seed)
    padded = {key: nn.functional.pad(x, (0, 0, 0, more)) for key, x in observations.items()}
    check_same(wide(padded), net(observations))


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("kind", EVERY)
def test_no_objects_at_all(kind: type[Any], stack: int) -> None:
    net = build(kind, space(stack=stack))
    observations = draw(0, stack=stack, share=0.0)
    features = net(observations)
    assert features.shape == (3, net.features_dim)
    assert features.isfinite().all()
    assert torch.equal(features[0], features[1])
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    # Beside a frame with objects, too.
    both = {
        key: torch.cat([field[:1], draw(1, stack=stack)[key]])
        for key, field in observations.items()
    }
    torch.testing.assert_close(net(both)[:1], features[:1])


@pytest.mark.parametrize("kind", SETS)
def test_the_less_an_object_is_there_the_less_it_matters(kind: type[Any]) -> None:
    net, observations = build(kind), draw(0, share=1.0)
    presence = observations["presence"].clone()
    changes = []
    without = presence.clone()
    without[:, 2] = 0
    for faint in (0.5, 0.05, 1e-6):
        presence[:, 2] = faint
        gone = net(observations | {"presence": without})
        change = net(observations | {"presence": presence}) - gone
        changes.append(change.detach().abs().max().item())
    assert changes[0] > changes[1] > 10 * changes[2]
    assert changes[2] < 1e-4


# ---- what is looked at -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_everything_but_names_is_looked_at(kind: type[Any]) -> None:
    net, observations = build(kind, space(stack=2)), draw(0, stack=2, share=1.0)
    features = net(observations)
    for key, field in observations.items():
        for frame in field.chunk(2, dim=-1):  # views: each frame by itself
            before = frame.clone()
            frame[:, 0] *= 0.5
            change = float((net(observations) - features).abs().max().detach())
            frame.copy_(before)
            assert (change == 0) if key == "track_id" else (change > 1e-5), key


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "keys", [("presence",), ("what", "presence", "track_id"), ("scale", "presence")]
)
def test_any_keys_with_presence_will_do(kind: type[Any], keys: tuple[str, ...]) -> None:
    net, observations = build(kind, space(keys=keys)), draw(0)
    features = net({key: observations[key] for key in keys})
    assert features.std(dim=0).max() > 0


def test_relations_are_those_of_the_likeliest_rows() -> None:
    net, observations = build(RelationalExtractor, most=2), draw(0, share=1.0)
    features = net(observations)
    least = observations["presence"].argmin(1, keepdim=True)
    moved = observations["position"].scatter(1, least.expand(-1, -1, 2), 0.9)
    assert torch.equal(net(observations | {"position": moved}), features)
    most = observations["presence"].argmax(1, keepdim=True)
    moved = observations["position"].scatter(1, most.expand(-1, -1, 2), 0.9)
    assert not torch.allclose(net(observations | {"position": moved}), features)


# ---- by hand -------------------------------------------------------------------------------


def test_deep_sets_by_hand() -> None:
    net = build(DeepSetsExtractor, space(3, keys=("position", "presence")))
    # What is pooled are x, y and presence themselves.
    net.embed, net.out = nn.Linear(net.row_inputs, 3, bias=False), nn.Sequential()
    net.embed.weight.data = torch.eye(3, net.row_inputs)
    position = torch.tensor([[[0.8, -1.0], [0.25, 0.5], [7.0, 7.0]]], requires_grad=True)
    presence = torch.tensor([[[0.5], [1.0], [0.0]]], requires_grad=True)
    features = net({"position": position, "presence": presence})
    total = torch.tensor([0.5 * 0.8 + 0.25, -0.5 + 0.5, 0.25 + 1])
    most = torch.tensor([0.5 * 0.8, 0.5, 1.0])
    torch.testing.assert_close(features[0], torch.cat([total / 1.5, total / 16, most]))
    features.sum().backward()
    assert position.grad is not None
    each = 1 / 16 + 1 / 1.5
    expected = [[0.5 * each + 0.5, 0.5 * each], [each, each + 1], [0, 0]]
    torch.testing.assert_close(position.grad[0], torch.tensor(expected))


def test_a_newest_position_is_told_by_waves_too() -> None:
    net = build(DeepSetsExtractor, space(2, keys=("position", "presence"), stack=2))
    position = torch.tensor([[[0.9, 0.9, 0.5, -0.25], [0.1, 0.1, 0.2, 0.2]]])
    presence = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    waves = net.read({"position": position, "presence": presence}).inputs[0, :, 6:]
    angles = torch.tensor([0.5 * w for w in (1, 2, 4, 8)] + [-0.25 * w for w in (1, 2, 4, 8)])
    expected = torch.cat([(torch.pi * angles).sin(), (torch.pi * angles).cos()])
    torch.testing.assert_close(waves[0], expected)
    assert not waves[1].any()  # who is not in the newest frame


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_are_those_of_small_differences(kind: type[Any]) -> None:
    net = build(kind, features_dim=4).double()
    rows = {key: field.double() for key, field in draw(2, batch=1).items()}
    keys = ("position", "velocity", "scale", "depth", "what", "presence")
    there = rows["presence"][0, :, 0] > 0
    assert 1 < there.sum() < ROWS

    def present(*fields: Tensor) -> Tensor:
        """Only rows with an object: at 0 presence has a corner."""
        whole = {
            k: rows[k].index_put((torch.tensor([0]), there.nonzero()[:, 0]), f)
            for k, f in zip(keys, fields, strict=True)
        }
        found: Tensor = net(whole)
        return found

    fields = [rows[key][0, there].clone().requires_grad_() for key in keys]
    assert torch.autograd.gradcheck(present, fields, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_compiled_as_one_graph_it_is_the_same(kind: type[Any]) -> None:
    torch.compiler.reset()
    net = build(kind, space(stack=2))
    compiled: Any = torch.compile(net, backend="eager", fullgraph=True)
    for share in (0.3, 0.0):  # with rows left out where it is not compiled, and with none
        observations = draw(0, stack=2, share=share)
        torch.testing.assert_close(compiled(observations), net(observations))


# ---- agents --------------------------------------------------------------------------------


class Sides(gym.Env[dict[str, Any], np.int64]):
    """One object in some row, to the left or to the right, which is what to answer."""

    observation_space = space()
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], Any]:
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(action == self.side)
        return self._show(), reward, self.steps == 5, False, {}

    def _show(self) -> dict[str, Any]:
        found = {k: np.zeros(s.shape or (), s.dtype) for k, s in space().items()}
        found["track_id"] -= 1
        self.side = int(self.np_random.integers(2))
        row = self.np_random.integers(ROWS)
        found["position"][row] = self.side - 0.5, self.np_random.uniform(-1, 1)
        found["presence"][row], found["scale"][row], found["track_id"][row] = 1, 0.1, self.steps
        return found


def envs(seed: int = 0) -> VecEnv:
    made = DummyVecEnv([Sides] * 4)
    made.seed(seed)
    return made


def policy(kind: type[Any], **more: Any) -> dict[str, Any]:
    return {"features_extractor_class": kind, "features_extractor_kwargs": more}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_an_agent_learns_and_comes_back_from_a_file(
    algorithm: type[Any], kind: type[Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
    if algorithm is DQN:
        options = {"learning_starts": 8, "buffer_size": 64, "batch_size": 8}
    kwargs = policy(kind, features_dim=24)
    agent = algorithm(
        "MultiInputPolicy", envs(), policy_kwargs=kwargs, seed=0, device="cpu", **options
    )
    extractor = next(m for m in agent.policy.modules() if isinstance(m, kind))
    before = [weight.clone() for weight in extractor.parameters()]
    agent.learn(32)
    assert any(
        not torch.equal(old, new) for old, new in zip(before, extractor.parameters(), strict=True)
    )
    agent.save(tmp_path / "agent")
    copy = algorithm.load(tmp_path / "agent", device="cpu")
    seen = {key: field.numpy() for key, field in draw(5, batch=20).items()}
    actions, _ = agent.predict(seen, deterministic=True)
    np.testing.assert_array_equal(copy.predict(seen, deterministic=True)[0], actions)
    agent.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("kind", EVERY)
def test_frames_of_slots_are_stacked_by_sb3(kind: type[Any]) -> None:
    stacked = VecFrameStack(envs(), 3)
    agent = PPO(
        "MultiInputPolicy",
        stacked,
        n_steps=8,
        batch_size=16,
        n_epochs=1,
        policy_kwargs=policy(kind),
        device="cpu",
    )
    agent.learn(32)
    assert isinstance(agent.policy.features_extractor, kind)
    assert agent.policy.features_extractor.frames == 3


@pytest.mark.parametrize("kind", SETS)
def test_it_learns_how_many_there_are_and_where_the_leftmost_is(kind: type[Any]) -> None:
    net = build(kind, space(keys=("position", "presence")))
    model = nn.Sequential(net, nn.Linear(net.features_dim, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        found = draw(step, batch=64, share=0.6)
        there = found["presence"] > 0
        found["presence"] = there.float()
        leftmost = found["position"][..., :1].masked_fill(~there, 2).amin(1)
        goal = torch.cat([leftmost, there.sum(1) / 2], dim=1)
        error = (model(found) - goal).square().mean(0)
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
    assert (error < 0.15 * goal.var(0)).all()


# ---- bad arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_flattened_slots_are_refused(kind: type[Any]) -> None:
    flat = make_layout(ROWS, WHAT, None, flatten=True).space()
    with pytest.raises(ValueError, match="leave flatten out of ObjectSlots"):
        kind(flat)


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \('position', 'what'\); .* name presence too"):
        SlotExtractor(space(keys=("position", "what")))
    with pytest.raises(ValueError, match="expected a Dict of keys of ObjectSlots"):
        SlotExtractor(gym.spaces.Discrete(3))
    above = gym.wrappers.FrameStackObservation(Sides(), 2).observation_space
    with pytest.raises(ValueError, match=r"got \(2, 6, 2\).* put VecFrameStack above"):
        SlotExtractor(above)


@pytest.mark.parametrize(
    ("kind", "sizes", "match"),
    [
        (SlotExtractor, {"width": 30}, "width: expected a multiple of heads=4, got 30"),
        (SlotExtractor, {"blocks": 0}, "blocks: expected at least 1"),
        (DeepSetsExtractor, {"features_dim": 0}, "features_dim: expected at least 1"),
        (RelationalExtractor, {"most": 0}, "most: expected at least 1"),
        (FlatExtractor, {"width": -1}, "width: expected at least 1"),
    ],
)
def test_bad_sizes_are_named(kind: type[Any], sizes: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(space(), **sizes)
