"""The encoder inside the policy: what reaches it, what must not touch it, and at what rate."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack
from torch import Tensor

import objrl
from objrl.agents.end_to_end import EncoderAdam, EncoderExtractor
from objrl.agents.extractors import DeepSetsExtractor, FlatExtractor
from objrl.models.median import Median, MedianConfig
from objrl.models.space import Space, SpaceConfig
from objrl.perceiver import model_of
from objrl.pretrain.presets import SpaceRecipe
from objrl.weights import save_weights
from objrl.wrappers import ObjectSlots
from tests.helpers import MovingSquares, make_scalor, make_stub_perceiver

TINY = SpaceConfig(
    frame_size=(32, 32),
    architecture="fast",
    z_what=4,
    dense=False,
    background="static",
    rendered=6,
    window=16,
    max_slots=6,
)
SEEING = {"image_encoder", "heads", "glimpse_encoder", "what_head"}
"""The networks that slots come from; the others draw."""
FRAME = gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = asdict(replace(SpaceRecipe(), model=TINY))
    return save_weights(
        *(tmp_path_factory.mktemp("weights") / "tiny.safetensors", Space(TINY)),
        model_name="space",
        data={},
        training={"recipe": recipe},
        metrics={},
    )


def frames(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 32, 32) as SB3 hands them over."""
    env = MovingSquares()
    shown = [env.reset(seed=seed + i)[0] for i in range(count)]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float()


def build(weights: Path, **options: Any) -> EncoderExtractor:
    torch.manual_seed(1)
    return EncoderExtractor(FRAME, weights, **options)


def agent_with(
    weights: Path, algorithm: type[Any] = PPO, *, rate: float | None = None, **options: Any
) -> Any:
    kwargs: dict[str, Any] = {
        "features_extractor_class": EncoderExtractor,
        "features_extractor_kwargs": {"weights": weights, **options},
        "normalize_images": False,
    }
    if rate is not None:
        kwargs |= {"optimizer_class": EncoderAdam, "optimizer_kwargs": {"encoder_rate": rate}}
    sizes: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2}
    if algorithm is DQN:
        sizes = {"buffer_size": 64, "learning_starts": 8, "batch_size": 8}
    return algorithm("CnnPolicy", envs(), policy_kwargs=kwargs, seed=0, device="cpu", **sizes)


def envs() -> VecEnv:
    return DummyVecEnv([MovingSquares] * 2)


def encoder_of(agent: Any) -> dict[str, Tensor]:
    """A copy of the weights of the encoder within."""
    first = next(m for m in agent.policy.modules() if isinstance(m, EncoderExtractor))
    return {name: value.clone() for name, value in first.encoder.state_dict().items()}


def changed(old: dict[str, Tensor], new: dict[str, Tensor]) -> set[str]:
    return {name for name in old if not torch.equal(old[name], new[name])}


# ---- what is seen ----------------------------------------------------------------------------


def test_features_are_those_of_the_heads_for_the_encoders_latents(weights: Path) -> None:
    made, seen = build(weights, head_kwargs={"features_dim": 20}), frames(3)
    space = model_of(objrl.load(weights, device="cpu"))
    latents = space.perceive(seen.permute(0, 2, 3, 1).to(torch.uint8))
    slots = {
        "position": latents.z_where[..., 2:],
        "scale": latents.z_where[..., :2],
        "depth": latents.z_depth,
        "what": latents.z_what,
        "presence": latents.presence,
    }
    features = made(seen)
    assert features.shape == (3, made.features_dim) == (3, 20)
    torch.testing.assert_close(features, made.head(slots))
    assert features.std(0).max() > 1e-3
    torch.testing.assert_close(made(seen[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


def test_any_order_of_channels_and_either_type_will_do(weights: Path) -> None:
    made, seen = build(weights), frames(2)
    expected = made(seen)
    assert torch.equal(made(seen.to(torch.uint8)), expected)
    torch.manual_seed(1)
    last = EncoderExtractor(gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), weights)
    assert torch.equal(last(seen.permute(0, 2, 3, 1)), expected)


def test_a_head_and_a_number_of_rows_may_be_chosen(weights: Path) -> None:
    made = build(weights, head=DeepSetsExtractor, max_slots=4)
    assert isinstance(made.head, DeepSetsExtractor)
    assert made.head.rows == 4


# ---- gradients -------------------------------------------------------------------------------


def test_a_gradient_reaches_all_that_makes_the_slots(weights: Path) -> None:
    made = build(weights)
    made(frames(4)).square().sum().backward()
    for name, parameter in made.encoder.foreground.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (name.split(".")[0] in SEEING), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    # z_pres, z_depth, z_scale and z_shift: the means, for nothing is drawn.
    assert made.encoder.foreground.heads.weight.grad is not None
    rows = made.encoder.foreground.heads.weight.grad.flatten(1).abs().sum(1) > 0
    assert rows.tolist() == [True, True, False, True, True, False, False, True, True, False, False]


def test_the_gradient_is_that_of_small_differences(weights: Path) -> None:
    made, seen = build(weights, head_kwargs={"features_dim": 8}), frames(2)
    bias = made.encoder.foreground.heads.bias
    assert bias is not None
    made(seen).sum().backward()
    assert bias.grad is not None
    for row in (0, 1, 3, 7):
        sums = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                bias[row] += step
                sums.append(made(seen).sum().item())
                bias[row] -= step
        slope = (sums[0] - sums[1]) / 2e-3
        assert bias.grad[row].item() == pytest.approx(slope, rel=0.05, abs=0.02), row


def test_the_encoders_own_loss_is_added_in_training_alone(weights: Path) -> None:
    seen = frames(4)

    def gradient(own_loss: float, training: bool) -> Tensor:
        made = build(weights, own_loss=own_loss).train(training)
        torch.manual_seed(2)
        made(seen).sum().backward()
        weight = made.encoder.foreground.heads.weight.grad
        assert weight is not None
        return weight

    made = build(weights, own_loss=1.0).train()
    torch.manual_seed(2)
    loss = made.encoder_loss(seen.permute(0, 2, 3, 1).to(torch.uint8))
    (own,) = torch.autograd.grad(loss, [made.encoder.foreground.heads.weight])
    plain = gradient(0.0, training=True)
    torch.testing.assert_close(
        gradient(30.0, training=True), plain + 30 * own, rtol=1e-3, atol=1e-4
    )
    assert (30 * own).abs().max() > 0.1
    assert torch.equal(gradient(30.0, training=False), plain)
    with torch.no_grad():
        torch.testing.assert_close(made(seen), build(weights)(seen))


# ---- agents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_an_agent_teaches_its_encoder_and_comes_back(
    weights: Path, algorithm: type[Any], tmp_path: Path
) -> None:
    agent = agent_with(weights, algorithm, rate=0.5)
    begun = encoder_of(agent)
    # PPO begins with orthogonal weights everywhere else.
    assert not changed(model_of(objrl.load(weights, device="cpu")).state_dict(), begun)
    agent.learn(32)
    assert {name.split(".")[1] for name in changed(begun, encoder_of(agent))} == SEEING
    agent.save(tmp_path / "agent")
    copy = algorithm.load(tmp_path / "agent", env=envs(), device="cpu")
    assert not changed(encoder_of(agent), encoder_of(copy))
    seen = frames(8, seed=20).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    actions, _ = agent.predict(seen, deterministic=True)
    np.testing.assert_array_equal(copy.predict(seen, deterministic=True)[0], actions)
    copy.learn(16, reset_num_timesteps=False)


def test_a_frozen_encoder_stays_as_it_is(weights: Path) -> None:
    agent = agent_with(weights, trainable=False)
    begun, head = encoder_of(agent), agent.policy.features_extractor.head.state_dict()
    head = {name: value.clone() for name, value in head.items()}
    agent.learn(32)
    assert not changed(begun, encoder_of(agent))
    assert changed(head, agent.policy.features_extractor.head.state_dict())


def test_with_its_own_loss_all_of_the_encoder_learns(weights: Path) -> None:
    agent = agent_with(weights, own_loss=1.0)
    begun = encoder_of(agent)
    agent.learn(16)
    names = {name for name, _ in agent.policy.features_extractor.encoder.named_parameters()}
    assert {name.split(".")[1] for name in changed(begun, encoder_of(agent))} == {
        name.split(".")[1] for name in names
    }


# ---- the optimizer ---------------------------------------------------------------------------


@pytest.fixture
def pair(weights: Path) -> tuple[EncoderExtractor, EncoderExtractor]:
    return build(weights), build(weights)


def test_the_encoder_learns_at_its_own_rate(
    pair: tuple[EncoderExtractor, EncoderExtractor],
) -> None:
    seen, rates = frames(4), (3e-3, 1e-3)
    slow = EncoderAdam(pair[0].parameters(), lr=1.0, encoder_rate=0.25)
    each = [
        torch.optim.Adam(pair[1].encoder.parameters(), lr=1.0, eps=1e-5),
        torch.optim.Adam(pair[1].head.parameters(), lr=1.0, eps=1e-5),
    ]
    for rate in rates:
        update_learning_rate(slow, rate)  # SB3 does it before every update
        update_learning_rate(each[0], 0.25 * rate)
        update_learning_rate(each[1], rate)
        for made in pair:
            made.zero_grad()
            made(seen).square().mean().backward()
        slow.step()
        for optimizer in each:
            optimizer.step()
        assert {group["lr"] for group in slow.param_groups} == {rate}
    for one, other in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_bad_rates_are_refused(pair: tuple[EncoderExtractor, EncoderExtractor]) -> None:
    with pytest.raises(ValueError, match="with an encoder inside, got one without"):
        EncoderAdam(pair[0].head.parameters())
    with pytest.raises(ValueError, match=r"encoder_rate: .* got 0.0; trainable=False"):
        EncoderAdam(pair[0].parameters(), encoder_rate=0.0)


# ---- bad arguments ---------------------------------------------------------------------------


def test_normalised_pixels_are_refused(weights: Path) -> None:
    kwargs = {
        "features_extractor_class": EncoderExtractor,
        "features_extractor_kwargs": {"weights": weights},
    }
    agent = PPO("CnnPolicy", envs(), n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu")
    with pytest.raises(ValueError, match=r"fractions up to 1; .* normalize_images=False"):
        agent.learn(16)


def test_black_frames_are_frames_and_prove_nothing(weights: Path) -> None:
    made = build(weights)
    assert made(torch.zeros_like(frames(1))).isfinite().all()
    with pytest.raises(ValueError, match="normalize_images=False"):
        made(frames(1) / 255)
    made(frames(1))


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (VecFrameStack(envs(), 4).observation_space, "leave out VecFrameStack"),
        (gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), "show frames in colour"),
        (gym.spaces.Box(0, 255, (84, 84, 1), np.uint8), "show frames in colour"),
        (gym.spaces.Box(0, 1, (3, 84, 84), np.float32), "0 to 255, and leave out wrappers"),
        (ObjectSlots(MovingSquares(), make_stub_perceiver()).observation_space, "the policy"),
    ],
)
def test_other_observations_are_refused(weights: Path, space: Any, match: str) -> None:
    with pytest.raises(ValueError, match=rf"expected single RGB frames(.|\n)*{match}"):
        EncoderExtractor(space, weights)


def test_other_models_are_refused(tmp_path: Path) -> None:
    def save(name: str, model: torch.nn.Module) -> Path:
        path = tmp_path / f"{name}.safetensors"
        return save_weights(path, model, model_name=name, data={}, training={}, metrics={})

    with pytest.raises(ValueError, match=r"a Scalor, which remembers .* without their past"):
        build(save("scalor", make_scalor()))
    with pytest.raises(ValueError, match=r"a Median, in which there is nothing .* teach"):
        build(save("median", Median(MedianConfig(frame_size=(32, 32)))))
    with pytest.raises(ValueError, match=r"own_loss: .* no training recipe"):
        build(save("space", Space(TINY)), own_loss=1.0)
    with pytest.raises(ValueError, match="unknown weights"):
        EncoderExtractor(FRAME, "space-pon")


def test_other_bad_arguments_are_named(weights: Path) -> None:
    with pytest.raises(ValueError, match="head: expected an extractor for sets"):
        build(weights, head=FlatExtractor)
    for options in ({"own_loss": -1.0}, {"own_loss": 1.0, "trainable": False}):
        with pytest.raises(ValueError, match="own_loss: expected 0, or above"):
            build(weights, **options)
