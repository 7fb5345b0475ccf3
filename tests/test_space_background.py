"""The backgrounds: Algorithms 3 and 4 of the paper, and a known picture with a residual."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.space_background import (
    Components,
    MaskDecoder,
    Smooth,
    Static,
    long_runs,
)

SIZE = (128, 128)


@pytest.fixture(scope="module")
def components() -> Components:
    torch.manual_seed(0)
    return Components(3, SIZE).eval()


def test_components_explain_an_image(components: Components) -> None:
    out = components(torch.rand(2, 3, *SIZE))
    assert out.mean.shape == (2, 3, 3, *SIZE)
    assert out.mask.shape == (2, 3, 1, *SIZE)
    torch.testing.assert_close(out.mask.sum(1), torch.ones(2, 1, *SIZE))
    assert ((out.mean >= 0) & (out.mean <= 1)).all()
    assert ((out.image >= 0) & (out.image <= 1 + 1e-6)).all()
    assert (out.kl_mask > 0).all()
    assert (out.kl_component > 0).all()
    torch.testing.assert_close(
        out.image, sum((out.mask[:, k] * out.mean[:, k] for k in range(3)), torch.tensor(0.0))
    )


def test_components_sample_in_training_only(components: Components) -> None:
    image = torch.rand(1, 3, *SIZE)
    assert torch.equal(components(image).image, components(image).image)
    components.train()
    different = not torch.equal(components(image).image, components(image).image)
    components.eval()
    assert different


def test_a_frame_is_explained_by_itself_whatever_is_beside_it(components: Components) -> None:
    images = torch.rand(3, 3, *SIZE)
    together, alone = components(images), components(images[:1])
    torch.testing.assert_close(together.image[:1], alone.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.kl_mask[:1], alone.kl_mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.kl_component[:1], alone.kl_component, rtol=1e-4, atol=1e-4)


def _constant(layer: nn.Linear, mean: float, raw_std: float) -> None:
    nn.init.zeros_(layer.weight)
    half = layer.out_features // 2
    with torch.no_grad():
        layer.bias[:half] = mean
        layer.bias[half:] = raw_std


def _kl(mean: float, std: float, prior_mean: float, prior_std: float) -> float:
    ratio = (std / prior_std) ** 2
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std) ** 2 - 1 - math.log(ratio))


def test_the_kl_is_the_sum_over_components_and_latents() -> None:
    torch.manual_seed(0)
    model = Components(2, SIZE)
    _constant(model.predict_mask, 0.5, 0.0)
    _constant(model.predict_mask_prior, -0.5, 1.0)
    _constant(model.component_encoder.head, 1.0, -1.0)
    last = model.predict_component[-1]
    assert isinstance(last, nn.Linear)
    _constant(last, 0.0, 0.0)
    with torch.no_grad():
        out = model(torch.rand(1, 3, *SIZE))
    soft = [math.log1p(math.exp(raw)) + 1e-4 for raw in (-1.0, 0.0, 1.0)]
    assert float(out.kl_mask) == pytest.approx(2 * 32 * _kl(0.5, soft[1], -0.5, soft[2]), rel=1e-4)
    assert float(out.kl_component) == pytest.approx(
        2 * 32 * _kl(1.0, soft[0], 0, soft[1]), rel=1e-4
    )


def test_the_prior_of_a_mask_knows_the_masks_before_it() -> None:
    """Eq. 4: p(z_m_k | z_m_<k), given what was sampled; the first has the dummy alone."""
    torch.manual_seed(0)
    model = Components(2, SIZE)
    seen: list[Tensor] = []
    model.prior_rnn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    model.train()
    for _ in range(2):
        model(torch.rand(1, 3, *SIZE))
    (first, second), (again, other) = seen[:2], seen[2:]
    assert torch.equal(first, again)
    assert not torch.equal(second, other)


def test_components_are_drawn_from_the_prior(components: Components) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        out = components.generate(4)
    assert out.image.shape == (4, 3, *SIZE)
    assert ((out.image >= 0) & (out.image <= 1 + 1e-6)).all()
    torch.testing.assert_close(out.mask.sum(1), torch.ones(4, 1, *SIZE))
    assert not torch.equal(out.image[0], out.image[1])


def test_the_mask_decoder_says_what_it_can_draw() -> None:
    with pytest.raises(ValueError, match=r"draws 128 x 128, got \(210, 160\)"):
        MaskDecoder(32, (210, 160))


def test_a_known_picture_is_the_background_until_training_finds_otherwise() -> None:
    torch.manual_seed(0)
    model = Static((50, 40))
    model.faces.random_(0, 256)
    out = model(torch.rand(2, 3, 50, 40))
    assert out.mask.shape == (2, 1, 1, 50, 40)
    assert (out.mask == 1).all()
    assert (out.kl_mask == 0).all()
    assert (out.kl_component >= 0).all()
    torch.testing.assert_close(out.image, model.usual.expand(2, -1, -1, -1))
    torch.testing.assert_close(model.generate(3).image, model.usual.expand(3, -1, -1, -1))


def _teach(model: Static) -> None:
    nn.init.normal_(model.decoder[-1].weight)  # type: ignore[arg-type]


def test_the_residual_is_too_coarse_to_draw_an_object() -> None:
    torch.manual_seed(0)
    model = Static((64, 64), coarse=16).eval()
    _teach(model)
    residual = model(torch.rand(1, 3, 64, 64)).image - model.usual
    spread = residual.std()
    # Between two pixels it changes by no more than a sixteenth of what two knots differ by.
    for step in (residual.diff(dim=2), residual.diff(dim=3)):
        assert step.abs().max() < (residual.max() - residual.min()) / 15
    assert spread > 0.1


def test_the_static_background_samples_in_training_only() -> None:
    torch.manual_seed(0)
    model = Static((32, 32))
    _teach(model)
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(image).image, model(image).image)
    model.eval()
    assert torch.equal(model(image).image, model(image).image)
    assert not torch.equal(model.generate(1).image, model.generate(1).image)


def test_the_picture_has_the_face_nearest_to_what_is_seen() -> None:
    torch.manual_seed(0)
    model = Static((4, 6), faces=3)
    model.faces.random_(0, 256)
    faces = model.faces / 255
    image = torch.rand(5, 3, 4, 6)
    picture = model.picture(image)
    assert picture.shape == image.shape
    chosen = set()
    for b in range(5):
        for y in range(4):
            for x in range(6):
                seen = image[b, :, y, x]
                far = [float((seen - face).abs().max()) for face in faces[:, :, y, x]]
                best = far.index(min(far))
                chosen.add(best)
                assert torch.equal(picture[b, :, y, x], faces[best, :, y, x])
    assert chosen == {0, 1, 2}
    torch.testing.assert_close(model.eval()(image).image, picture)


def test_of_several_games_the_one_most_like_a_frame_is_taken() -> None:
    """And only its faces: what another game shows there is an object."""
    model = Static((8, 8), faces=2, scenes=2).eval()
    model.faces.copy_(torch.tensor([0, 51, 255, 153]).view(4, 1, 1, 1))
    dark, light = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    for image in (dark, light):
        image[:, 4:] = 0.6  # a face of the light one's, between those of the dark one
    dark[:, 6:] = 0.2
    image = torch.stack([light, dark])
    assert model.scene(image).tolist() == [1, 0]
    far = (image - model.picture(image)).abs()
    torch.testing.assert_close(far[0], torch.zeros(3, 8, 8))
    torch.testing.assert_close(far[1, :, 4:6], torch.full((3, 2, 8), 0.4))
    torch.testing.assert_close(far[1, :, :4], torch.zeros(3, 4, 8))
    torch.testing.assert_close(far[1, :, 6:], torch.zeros(3, 2, 8))
    assert set(model.generate(50).image[:, 0, 0, 0].tolist()) == {0.0, 1.0}


def test_of_faces_alike_the_usual_one_is_taken() -> None:
    model = Static((1, 1), faces=2)
    model.faces.copy_(torch.tensor([0, 255]).view(2, 1, 1, 1))
    assert (model.picture(torch.full((1, 3, 1, 1), 0.5)) == 0).all()
    assert (model.generate(1).image == 0).all()


def test_of_several_scenes_the_usual_faces_are_shown() -> None:
    model = Static((2, 2), faces=2, scenes=3)
    model.faces.copy_(torch.arange(6).view(6, 1, 1, 1) * 51)
    torch.testing.assert_close(model.usual[:, 0, 0, 0], torch.tensor([0, 0.4, 0.8]))


def test_a_smooth_background_begins_at_the_picture() -> None:
    torch.manual_seed(0)
    model = Smooth((50, 40))
    model.faces.random_(0, 256)
    out = model(torch.rand(2, 3, 50, 40))
    torch.testing.assert_close(out.image, model.usual.expand(2, -1, -1, -1))
    assert (out.kl_component > 0).all()


@pytest.mark.parametrize(("kind", "learns"), [(Smooth, True), (Static, False)])
def test_a_smooth_background_can_be_another_one_in_every_frame(
    kind: type[Static], learns: bool
) -> None:
    """Walls in a colour each, more of them than a weak residual's eight latents can tell."""
    torch.manual_seed(0)
    model = kind((32, 32)).eval()
    walls = torch.rand(32, 3, 4, 4)
    frames = walls.repeat_interleave(8, 2).repeat_interleave(8, 3)
    model.faces.copy_(frames.mean(0, keepdim=True) * 255)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    begin = (frames - model(frames).image).square().mean().detach()
    for _ in range(200):
        loss = (frames - model(frames).image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (float(loss.detach()) < 0.5 * float(begin)) == learns


def test_large_areas_are_background_wherever_they_are() -> None:
    model = Static((20, 30), faces=1, flat=12).eval()
    model.faces.fill_(51)
    image = torch.full((1, 3, 20, 30), 0.6)  # scrolled in; the object on it is small
    image[..., 5:9, 10:15] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    distance = (image - model.picture(image)).abs()
    thing = torch.zeros(20, 30, dtype=torch.bool)
    thing[5:9, 10:15] = True
    assert (distance.amax(1)[0] > 0).equal(thing)
    torch.testing.assert_close(distance[0, :, 6, 12], (torch.tensor([0.9, 0.1, 0.1]) - 0.2).abs())
    model.flat = 0
    assert ((image - model.picture(image)).abs() > 0.05).any(1).all()


def test_large_areas_are_background_in_the_scenes_that_change_alone() -> None:
    model = Static((20, 30), faces=1, flat=12, scenes=2, changing=(1,)).eval()
    model.faces.copy_(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    image = torch.stack([torch.zeros(3, 20, 30), torch.ones(3, 20, 30)])
    image[..., 4:19] = 0.5
    picture = model.picture(image)
    assert (picture[0] == 0).all()
    assert torch.equal(picture[1], image[1])


def runs(image: Tensor, least: int) -> Tensor:
    """`long_runs` pixel by pixel."""
    _, height, width = image.shape
    found = torch.zeros(1, height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0)):
                length = 1
                for way in (1, -1):
                    v, u = y + way * dy, x + way * dx
                    while (
                        0 <= v < height and 0 <= u < width and image[:, v, u].equal(image[:, y, x])
                    ):
                        length, v, u = length + 1, v + way * dy, u + way * dx
                found[0, y, x] |= length >= least
    return found


@pytest.mark.parametrize("least", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("size", [(6, 9), (9, 4), (1, 7), (5, 1)])
def test_long_runs_are_those_that_counting_finds(size: tuple[int, int], least: int) -> None:
    torch.manual_seed(least)
    images = (torch.rand(3, 2, *size) < 0.2).float()  # four colours, one of them common
    expected = torch.stack([runs(image, least) for image in images])
    assert long_runs(images, least).equal(expected)


@pytest.mark.parametrize("size", [(315, 240), (250, 160), (105, 160)])
def test_areas_of_resized_frames_have_long_runs_too(size: tuple[int, int]) -> None:
    frame = torch.empty(1, *size, 3, dtype=torch.uint8)
    frame[:] = torch.tensor([153, 77, 31])
    assert long_runs(to_image(frame, 210, 160), 160).all()
    frame[:, ::2, ::2] += 1  # a chessboard, a single grey level apart
    frame[:, 1::2, 1::2] += 1
    assert not long_runs(to_image(frame, *size), 2).any()


def test_the_faces_are_saved_with_the_weights() -> None:
    model = Static((32, 32), faces=3, flat=20)
    assert model.state_dict()["faces"].shape == (3, 3, 32, 32)
    assert all(name != "faces" for name, _ in model.named_parameters())
