"""What the scene mixtures bring to the training loop: frames as they are, and a loss.

Letters: B batch, H W canvas.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.econ import Econ
from objrl.models.econ_loss import code_gap, econ_terms, hidden_gap
from objrl.models.iodine import Iodine, iodine_terms
from objrl.models.mixture import MixtureDetector, Scene, slots_of
from objrl.models.monet import Monet, monet_terms
from objrl.models.regions import Image
from objrl.models.rmonet import Rmonet
from objrl.nn.geco import Geco
from objrl.nn.proposals import proposal_terms
from objrl.perceiver import FramePerceiver, Perceiver
from objrl.pretrain.mixture_presets import (
    EconRecipe,
    IodineRecipe,
    Mixture,
    MonetRecipe,
    RmonetRecipe,
)
from objrl.pretrain.pseudo_boxes import pseudo_boxes

_CHANGED = 0.02
"""How much, relatively, a copy of an expert is changed at random."""

Terms = dict[str, Tensor]
"""(B,) nats by name, or () of what a batch has together."""


class Stills(NamedTuple):
    """What goes to the device each step."""

    frames: Tensor
    """(B, h, w, 3) uint8, of any size, or (B, T, h, w, 3)."""

    def to(self, device: torch.device) -> Stills:
        """Move to a device."""
        return Stills(self.frames.to(device, non_blocking=True))


R = TypeVar("R", bound=Mixture)


class MixtureTask(nn.Module, Generic[R]):
    """One recipe; `forward` is the loss. What a model's loss is made of says `objective`."""

    model_name: str
    length = 1

    def __init__(self, recipe: R, model: MixtureDetector) -> None:
        super().__init__()
        self.recipe, self.model = recipe, model

    def perceiver(self) -> Perceiver:
        """Return the model as an agent has it."""
        return FramePerceiver(self.model)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the one of the whole model."""
        kind = torch.optim.Adam if self.recipe.optimizer == "adam" else torch.optim.RMSprop
        return [kind(self.model.parameters(), lr=self.recipe.lr)]

    def prepare(self, frames: Image) -> Stills:
        """Take (B, h, w, 3) uint8 frames of any size, or (B, T, h, w, 3), as they are."""
        return Stills(torch.from_numpy(frames))

    def objective(self, image: Tensor, at: float) -> tuple[Scene, Terms, dict[str, float]]:
        """Return what (B, 3, H, W) images look like to the model, the loss's terms and weights."""
        raise NotImplementedError

    def total(self, means: Terms, weights: dict[str, float]) -> Tensor:
        """Return the loss of () means."""
        return torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()

    def forward(self, batch: Stills, at: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its terms by name as means over the batch.

        Args:
            batch: on the model's device.
            at: time in the recipe's unit.
        """
        frames, size = batch.frames, self.model.frame_size
        image = to_image(frames.flatten(0, -4), *size)
        if self.length > 1:
            image = image.view(-1, self.length, *image.shape[1:])
        scene, terms, weights = self.objective(image, at)
        means = {name: term.mean() for name, term in terms.items()}
        total = self.total(means, weights)
        with torch.no_grad():
            means["loss"] = total
            means["objects"] = slots_of(scene).mask.sum() / len(image)
            means["mse"] = F.mse_loss(scene.image, image[:, -1] if self.length > 1 else image)
        return total, means


class MonetTask(MixtureTask[MonetRecipe]):
    """MONet's loss (its eq. 3)."""

    model_name = "monet"

    def __init__(self, recipe: MonetRecipe) -> None:
        super().__init__(recipe, Monet(recipe.model))

    def objective(self, image: Tensor, at: float) -> tuple[Scene, Terms, dict[str, float]]:
        """As `MixtureTask.objective`."""
        recipe, out = self.recipe, self.model(image)
        terms = monet_terms(out, image, recipe.sigma_bg, recipe.sigma_fg)
        return out.scene, terms, {"kl_what": recipe.beta, "kl_mask": recipe.gamma}


class IodineTask(MixtureTask[IodineRecipe]):
    """IODINE's loss (section 3.3); of sequences, where the recipe says so (B.4)."""

    model_name = "iodine"

    def __init__(self, recipe: IodineRecipe) -> None:
        super().__init__(recipe, Iodine(recipe.model))
        self.length = recipe.length
        self.geco = None
        if recipe.goal is not None:
            height, width = recipe.model.frame_size
            self.geco = Geco(recipe.goal * 3 * height * width, recipe.step)

    def perceiver(self) -> Perceiver:
        """Return the model, which follows by itself."""
        model: Any = self.model.eval()
        follows: Iodine = model
        return follows

    def objective(self, image: Tensor, at: float) -> tuple[Scene, Terms, dict[str, float]]:
        """As `MixtureTask.objective`."""
        explained = self.model(image)
        # Held-out frames are to say how good the last guess is.
        counted = explained if self.model.training else explained[-1:]
        return explained[-1].scene, iodine_terms(counted), {"kl_what": self.recipe.beta}

    def total(self, means: Terms, weights: dict[str, float]) -> Tensor:
        """As `MixtureTask.total`, or with a weight that adapts."""
        if self.geco is None:
            return super().total(means, weights)
        loss: Tensor = self.geco.train(self.model.training)(means["nll"], means["kl_what"])
        means["weight"] = self.geco.weight.clone()
        return loss


class RmonetTask(MixtureTask[RmonetRecipe]):
    """R-MONet's loss (its eq. 3)."""

    model_name = "rmonet"

    def __init__(self, recipe: RmonetRecipe) -> None:
        super().__init__(recipe, Rmonet(recipe.model))

    def objective(self, image: Tensor, at: float) -> tuple[Scene, Terms, dict[str, float]]:
        """As `MixtureTask.objective`."""
        recipe, out = self.recipe, self.model(image)
        scene = out.monet.scene
        terms = monet_terms(out.monet, image, recipe.sigma_bg, recipe.sigma_fg, behind=-1)
        true, there = pseudo_boxes(scene.mask[:, :-1, 0], recipe.boxes)
        terms |= proposal_terms(out.proposed, true, there, samples=recipe.drawn)
        weights = {"kl_what": recipe.beta, "kl_mask": recipe.gamma}
        return scene, terms, weights | {"proposal": recipe.delta, "proposal_box": recipe.lambda_}


class EconTask(MixtureTask[EconRecipe]):
    """ECON's loss (its eq. 13), and who competes.

    As long as the recipe says, one expert learns alone, against the mean colour of what is left: so
    it takes what stands out, and no expert for the background has learnt to paint that. Then a
    second comes in, and they part as figure and ground; then the others, as copies of the figure,
    that have only the classes to part by. What keeps one of them from taking all is that who wins
    much becomes dearer, an idea from mixtures of experts (Wang et al. 2024, arXiv 2408.15664);
    after training all cost what they cost.

    Attributes:
        handicap: (K,) nats that experts are dearer while training; infinity of those that wait.
        share: (K,) how much of the parts each has won lately.
    """

    model_name = "econ"
    handicap: Tensor
    share: Tensor

    def __init__(self, recipe: EconRecipe) -> None:
        super().__init__(recipe, Econ(recipe.model))
        self.register_buffer("handicap", torch.zeros(recipe.model.experts))
        self.register_buffer("share", torch.zeros(recipe.model.experts))
        if recipe.alone:
            self.handicap[1:] = torch.inf

    def objective(self, image: Tensor, at: float) -> tuple[Scene, Terms, dict[str, float]]:
        """As `MixtureTask.objective`."""
        recipe, model = self.recipe, self.model
        assert isinstance(model, Econ)
        if model.training and at >= recipe.alone:
            self._let_in(2 if at < recipe.pair else len(self.handicap))
        out = model(image, recipe.temperature(at), self.handicap, flat=at < recipe.alone)
        if model.training:
            self._adapt(out.winner)
        terms = econ_terms(out, recipe.model.sigma)
        weights = {"kl_what": recipe.beta, "kl_mask": recipe.gamma(at)}
        if recipe.fill(at) > 0:
            terms["fill"], weights["fill"] = code_gap(out), recipe.fill(at)
        if recipe.hide(at) > 0:
            terms["hide"], weights["hide"] = hidden_gap(model, image, out), recipe.hide(at)
        return model.scene(out), terms, weights

    def _let_in(self, count: int) -> None:
        """Make experts that wait copies of the one that wins most, a little changed."""
        experts = self.model.get_submodule("experts")
        first = experts.get_submodule(str(int(self.share.argmax())))
        for number in self.handicap[:count].isinf().nonzero()[:, 0].tolist():
            copy = experts.get_submodule(str(number))
            copy.load_state_dict(first.state_dict())
            with torch.no_grad():
                same = torch.Generator().manual_seed(number)  # on all devices of a run
                for parameter in copy.parameters():
                    noise = torch.randn(parameter.shape, generator=same)
                    parameter.mul_(1 + _CHANGED * noise.to(parameter))
            self.handicap[number] = 0

    def _adapt(self, winner: Tensor) -> None:
        """Make those dearer that won more than their share of (B, T), once none waits."""
        won = torch.bincount(winner.flatten(), minlength=len(self.share)) / winner.numel()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(won)
            won /= dist.get_world_size()
        self.share.lerp_(won, 0.05)
        if self.handicap.isfinite().all():
            self.handicap += self.recipe.balance * (len(won) * won - 1)
