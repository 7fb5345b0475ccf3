"""SPACE: the paper's algorithms, the sparse reading against the dense one, boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from objrl import load
from objrl.frames import to_image
from objrl.models import space
from objrl.models.boxes import clip_boxes, tight_boxes
from objrl.models.space import Space, SpaceConfig, SpaceOutput
from objrl.models.space_background import Static
from objrl.models.space_loss import Priors, boundary_loss, elbo_terms
from objrl.perceiver import model_of
from objrl.weights import save_weights

PRIORS = Priors(presence=0.1, scale_mean=(-2.0, -2.0), scale_std=0.1, sigma_fg=0.15, sigma_bg=0.15)
TINY = SpaceConfig(
    frame_size=(48, 64),
    architecture="fast",
    z_what=8,
    dense=False,
    background="static",
    rendered=12,
    window=24,
    max_slots=10,
)

SMOOTH = replace(TINY, background="smooth")


def build(config: SpaceConfig) -> Space:
    torch.manual_seed(0)
    return Space(config)


# ---- algorithms 1 and 2 --------------------------------------------------------------------


def test_algorithm_2() -> None:
    net = build(SpaceConfig()).foreground
    zero = torch.zeros(1, 256, 2)
    where = net.where(zero, zero)
    # Cell 17 of 16 x 16 is column 1, row 1; its centre is at 1.5 of 16.
    torch.testing.assert_close(where[0, 17], torch.tensor([0.5, 0.5, 3 / 16 - 1, 3 / 16 - 1]))
    torch.testing.assert_close(where[0, 2, 2:], torch.tensor([5 / 16 - 1, 1 / 16 - 1]))
    scale = torch.tensor([-2.0, 1.0]).expand(1, 256, 2)
    shift = torch.tensor([100.0, -100.0]).expand(1, 256, 2)
    moved = net.where(scale, shift)
    torch.testing.assert_close(moved[0, 17, :2], torch.sigmoid(torch.tensor([-2.0, 1.0])))
    # One whole cell right and up.
    torch.testing.assert_close(
        moved[..., 2:] - where[..., 2:], torch.tensor([0.125, -0.125]).expand(1, 256, 2)
    )


def test_per_object_decoding_is_the_same_alone_and_together() -> None:
    model = build(TINY).eval()
    z_what = torch.randn(2, 5, 8)
    appearance, mask = model.foreground.decode(z_what)
    assert appearance.shape == (2, 5, 3, 16, 16)
    assert mask.shape == (2, 5, 1, 16, 16)
    for drawn in (appearance, mask):
        assert ((drawn >= 0) & (drawn <= 1)).all()
    one, alone = model.foreground.decode(z_what[1:, 3:4])
    torch.testing.assert_close(one[0, 0], appearance[1, 3])
    torch.testing.assert_close(alone[0, 0], mask[1, 3])


def test_the_picture_is_put_together_from_what_is_decoded() -> None:
    model = build(TINY).eval()
    out = model(torch.rand(2, 3, 48, 64))
    assert out.index.shape == (2, 12)
    chosen = out.z_pres.gather(1, out.index[..., None])
    assert chosen.min() >= out.z_pres.flatten(1).kthvalue(48 - 12 + 1, dim=1).values.min()
    assert ((out.foreground.alpha >= 0) & (out.foreground.alpha <= 1 + 1e-6)).all()
    assert (out.foreground.mean <= out.foreground.alpha + 1e-6).all()
    expected = out.foreground.mean + (1 - out.foreground.alpha) * out.background.image
    assert torch.equal(out.reconstruction, expected)


# ---- sparse against dense ------------------------------------------------------------------

ARCHITECTURES: list[SpaceConfig] = [
    replace(TINY, frame_size=(48, 64)),
    replace(TINY, frame_size=(64, 64), architecture="paper", cell=16),
]


def everything(model: Space, image: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Pictures, loss terms; and the gradient of their sum for every parameter."""
    torch.manual_seed(7)
    out: SpaceOutput = model(image, 1.0)
    terms = elbo_terms(out, image, PRIORS)
    terms["boundary"] = boundary_loss(out, model.config.frame_size)
    model.zero_grad()
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    pictures = [out.foreground.mean, out.foreground.alpha, out.reconstruction, *terms.values()]
    return [picture.detach() for picture in pictures], gradients


@pytest.mark.parametrize("config", ARCHITECTURES, ids=["fast", "paper"])
def test_rendering_all_cells_on_the_whole_canvas_is_the_dense_model(config: SpaceConfig) -> None:
    image = torch.rand(2, 3, *config.frame_size)
    found = []
    for dense in (True, False):
        whole = replace(config, dense=dense, rendered=config.cells, window=max(config.frame_size))
        model = build(whole).train()
        assert isinstance(model.background, Static)
        model.background.faces.fill_(128)
        found.append(everything(model, image))
    (dense_values, dense_gradients), (values, gradients) = found
    assert dense_values[1].max() > 0.3
    for one, other in zip(values, dense_values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert set(gradients) == set(dense_gradients)
    for name, gradient in gradients.items():
        scale = dense_gradients[name].abs().max().clamp(min=1)
        assert (gradient - dense_gradients[name]).abs().max() <= 1e-4 * scale, name


# ---- training ------------------------------------------------------------------------------


def check_gradients(model: Space) -> None:
    image = torch.rand(1, 3, *model.config.frame_size)
    _, gradients = everything(model.train(), image)
    for name, _ in model.named_parameters():
        assert name in gradients, name
        assert gradients[name].isfinite().all(), name
        assert gradients[name].abs().sum() > 0, name
    # The heads share one layer: z_pres, z_depth, z_scale, z_shift each learn.
    rows = gradients["foreground.heads.weight"].flatten(1).abs().sum(1)
    assert (rows > 0).all()


@pytest.mark.parametrize(
    "cell", [32, pytest.param(16, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_a_gradient_reaches_every_parameter_of_the_paper(cell: int) -> None:
    check_gradients(build(SpaceConfig(cell=cell, components=2)))


@pytest.mark.parametrize("config", [TINY, SMOOTH], ids=["static", "smooth"])
def test_a_gradient_reaches_every_parameter_of_the_fast_one(config: SpaceConfig) -> None:
    model = build(config)
    assert isinstance(model.background, Static)
    # Its last layer begins at zero, and so hides the one before from the first gradient.
    nn.init.normal_(model.background.decoder[-1].weight, std=0.1)  # type: ignore[arg-type]
    check_gradients(model)


def test_one_picture_can_be_learnt_by_heart() -> None:
    """Two squares on a known background: the loss falls, and two slots fit them."""
    torch.manual_seed(0)
    config = replace(TINY, rendered=8, max_slots=8)
    model = build(config)
    image = torch.full((1, 3, 48, 64), 0.1)
    image[0, :, 10:18, 10:20] = torch.tensor([0.9, 0.2, 0.2]).view(3, 1, 1)
    image[0, :, 30:38, 40:50] = torch.tensor([0.2, 0.9, 0.2]).view(3, 1, 1)
    assert isinstance(model.background, Static)
    model.background.faces.fill_(26)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        terms = elbo_terms(model(image, 0.5), image, PRIORS)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1000
    model.eval()
    error = (model(image).reconstruction - image).abs().detach()
    assert error.mean() < 0.05


# ---- inference -----------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["static", "smooth", "components"])
def test_evaluation_is_deterministic_and_training_is_not(background: str) -> None:
    config = replace(SpaceConfig(cell=32), z_what=8)
    if background != "components":
        config = replace(TINY, background=background)  # type: ignore[arg-type]
    model = build(config).eval()
    image = torch.rand(1, 3, *config.frame_size)
    with torch.no_grad():
        assert torch.equal(model(image).reconstruction, model(image).reconstruction)
        model.train()
        assert not torch.equal(model(image).reconstruction, model(image).reconstruction)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, dense=True), SMOOTH, SpaceConfig(cell=16)],
    ids=["fast", "dense", "smooth", "paper"],
)
def test_scenes_are_drawn_from_the_prior(config: SpaceConfig) -> None:
    model = build(config)
    torch.manual_seed(0)
    few = model.generate(3, presence=0.0, scale_mean=(-2.0, -2.0), scale_std=0.1)
    many = model.generate(3, presence=0.3, scale_mean=(-2.0, -2.0), scale_std=0.1)
    for scene in (few, many):
        assert scene.shape == (3, 3, *config.frame_size)
        assert scene.min() >= 0
        assert scene.max() <= 1 + 1e-5
        assert not scene.requires_grad
    if config.background != "components":
        # A black picture: what is seen is objects, and without objects there is nothing.
        assert (few == 0).all()
        assert (many > 0.05).any()


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, faces=3, flat=20), replace(SMOOTH, scenes=2)],
    ids=["one", "faces", "smooth"],
)
def test_weights_alone_rebuild_the_model(config: SpaceConfig, tmp_path: Path) -> None:
    model = build(config).eval()
    assert isinstance(model.background, Static)
    model.background.faces.random_(0, 256)
    torch.manual_seed(1)
    file = save_weights(
        *(tmp_path / "space.safetensors", model),
        model_name="space",
        data={},
        training={},
        metrics={},
    )
    copy = model_of(load(file, device="cpu"))
    assert isinstance(copy, Space)
    assert copy.config == config
    image = torch.rand(1, 3, 48, 64)
    image[..., 20:] = 0.5  # a large area
    with torch.no_grad():
        assert torch.equal(copy(image).reconstruction, model(image).reconstruction)
        picture = copy.background(image).image
    assert (picture[..., 20:] == 0.5).all() == bool(config.flat)


def test_in_another_scene_nothing_is_known() -> None:
    config = replace(TINY, background="static", threshold=0.0)
    model = build(config).eval()
    assert isinstance(model.background, Static)
    model.background.faces.fill_(100)
    frames = torch.full((3, 48, 64, 3), 100, dtype=torch.uint8)
    frames[0, :32] = 200  # two thirds
    frames[1, :40] = 200  # five sixths
    slots = model.detect(frames)
    assert slots.mask.any(1).tolist() == [True, False, True]
    for name in ("position", "scale", "what", "depth"):
        assert (getattr(slots, name)[1] == 0).all()


def test_slots_follow_presence_and_threshold() -> None:
    model = build(TINY).eval()
    frames = torch.randint(0, 255, (2, 48, 64, 3), dtype=torch.uint8)
    frames[:, 20:] = 0  # the background, or it were another scene
    with torch.no_grad():
        seen = model.perceive(frames)
        middle = float(seen.presence[0, 4, 0] + seen.presence[0, 5, 0]) / 2
        model.config = replace(TINY, threshold=middle, distinct=1.0)
        slots = model.detect(frames)
    assert slots.mask[0].tolist() == [True] * 5 + [False] * 5
    torch.testing.assert_close(slots.presence[0, :5], seen.presence[0, :5])
    torch.testing.assert_close(slots.what[0, :5], seen.z_what[0, :5])
    torch.testing.assert_close(slots.depth[0, :5], seen.z_depth[0, :5])


def test_presence_is_the_cells_own() -> None:
    """What perceive says of a slot is what the training forward says of its cell."""
    model = build(TINY).eval()
    frames = torch.randint(0, 255, (1, 48, 64, 3), dtype=torch.uint8)
    frames[:, 20:] = 0  # the background, or it were another scene
    with torch.no_grad():
        seen = model.perceive(frames)
        out = model(frames.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(seen.presence[0, :, 0], out.z_pres[0, :, 0].topk(10).values)
    torch.testing.assert_close(seen.z_where[0], out.z_where[0, out.index[0, :10]])
    torch.testing.assert_close(seen.z_what[0], out.z_what[0, :10], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.z_depth[0], out.z_depth[0, out.index[0, :10]])


def test_the_foreground_is_shown_a_known_background_but_no_smooth_one() -> None:
    image = torch.rand(1, 3, 48, 64)
    for config, known in ((TINY, True), (SMOOTH, False)):
        model = build(config).eval()
        assert isinstance(model.background, Static)
        with torch.no_grad():
            before = model.infer(image).logit
            model.background.faces.fill_(200)
            assert model.infer(image).logit.equal(before) != known


def test_before_a_smooth_background_boxes_are_the_masks_own() -> None:
    model = build(SMOOTH).eval()
    model.config = replace(SMOOTH, threshold=0.0, distinct=1.0)
    frames = torch.randint(0, 255, (2, 48, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        seen, slots = model.perceive(frames), model.detect(frames)
        masks = model.masks(seen.z_what)
    torch.testing.assert_close(seen.outline, masks)
    tight = clip_boxes(tight_boxes(masks, seen.z_where), (48, 64))
    torch.testing.assert_close(slots.scale, tight[..., :2])


def test_cells_without_an_object_are_left_out_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(TINY).eval()
    frames = torch.zeros(3, 48, 64, 3, dtype=torch.uint8)  # less than is another scene differs
    frames[:, 10:30, 10:40] = torch.randint(0, 255, (3, 20, 30, 3), dtype=torch.uint8)
    with torch.no_grad():
        presence = torch.sigmoid(model.infer(to_image(frames, 48, 64)).logit)
        best = presence[..., 0].sort(descending=True).values[:, :8]
        # Between the fifth and the sixth likeliest of the frame that has the most.
        model.config = replace(TINY, threshold=float((best[:, 4].max() + best[:, 5].max()) / 2))
        seen = model.perceive(frames, model.config.threshold)
        assert 5 <= int((seen.z_where != 0).any(-1).sum(1).max()) < model.max_slots
        spared = model.detect(frames)
        monkeypatch.setattr(space, "_on_host", lambda tensor: False)
        whole = model.detect(frames)
    assert bool(spared.mask.any())
    for name in ("position", "scale", "depth", "what", "presence"):
        torch.testing.assert_close(getattr(spared, name), getattr(whole, name), msg=name)
