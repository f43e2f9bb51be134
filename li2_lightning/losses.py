"""The training losses. Each is a mean over rows of something per row, so that any split of the rows can be summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from li2_lightning.distributed.collectives import row_mean
from li2_lightning.errors import InputError
from li2_lightning.plugins import Registry
from li2_lightning.theory.lazy import center


class Loss:
    """A loss that is a mean over rows.

    Outputs Ŷ are n × C and real, labels (n,). A subclass gives `rows`; one that is blind to an offset per class also
    gives `offset`, which is then added to the outputs before losses and accuracies are taken.
    """

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row, (n,)."""
        raise NotImplementedError

    def offset(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """The offset per class, (C,), fitted on the training rows of every rank; None where there is none.

        It has no gradient: the best offset is where the loss does not change with it.
        """
        return None

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """D with ∂L/∂Ŷ = −(2/n)D, n × C, of a squared loss over training rows; None for any other.

        It differs from the residual R = P₁⊥(Y − Ŷ) by what the loss does not see: R = P₁⊥(D + δ1ᵀ), δ as `unseen`.
        """
        return None

    def unseen(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """δ (n,), the part of each row of Y − Ŷ that is the same for all classes; None where the loss sees it."""
        return None

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """F and Y as the ridge readout that minimizes this loss sees them; `InputError` where it has none."""
        raise InputError(f"The loss {type(self).__name__} has no ridge readout; use network.readout=gradient.")

    def __call__(self, outputs: Tensor, labels: Tensor, total: int | None = None) -> Tensor:
        """The mean loss over training rows, a scalar; on several ranks, what this rank's rows add to it.

        Args:
            total: rows of all ranks; those given where None.
        """
        return self.fitted_rows(outputs, labels).sum() / (total or len(labels))

    def fitted_rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each training row, (n,), with the offset that fits them."""
        offset = self.offset(outputs, labels)
        return self.rows(outputs if offset is None else outputs + offset, labels)


LOSSES: Registry[type[Loss]] = Registry("loss", "li2_lightning.losses", makes=Loss)


# Training and test labels are the same tensors in every step; their one-hots go when they do.
_ONE_HOTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Y, n × C; shared between calls, so not to be written to."""
    if labels.is_inference():  # it may be written to without a trace
        return functional.one_hot(labels, num_classes).to(dtype)
    made_for = num_classes, dtype, labels._version
    known = _ONE_HOTS.get(labels)  # type: ignore[no-untyped-call]
    if known is None or known[0] != made_for:
        # Whoever asks next may want to differentiate, which tensors made in inference mode do not allow.
        with torch.inference_mode(False):
            known = made_for, functional.one_hot(labels, num_classes).to(dtype)
        _ONE_HOTS[labels] = known
    targets: Tensor = known[1]
    return targets


class _SquaredNorms(torch.autograd.Function):
    """‖D_i‖² of each row, whose gradient is −2D: one pass, where autograd goes back through every step to D."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, differences: Tensor) -> Tensor:
        ctx.save_for_backward(differences)
        return differences.square().sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (differences,) = ctx.saved_tensors
        return differences * (-2 * gradient[:, None]), None


class SquaredLoss(Loss):
    """A loss of ‖D_i‖² a row, with D such that ∂‖D_i‖²/∂o_i = −2D_i: Y − Ŷ but for what the loss does not see."""

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """D of outputs that have their offset, n × C."""
        raise NotImplementedError

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        rows: Tensor = _SquaredNorms.apply(outputs, self.differences(outputs.detach(), labels))  # type: ignore[no-untyped-call]
        return rows


@LOSSES.register("mse")
class ClassCentredMSE(SquaredLoss):
    """L = (1/n) Σ_i ‖(o_i − mean_c o_i) − (y_i − 1/C)‖², centred over classes (the experiments of the source)."""

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        difference = one_hot(labels, outputs.shape[1], outputs.dtype) - outputs
        return difference - difference.mean(dim=1, keepdim=True)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.differences(outputs, labels)

    def unseen(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 1 / outputs.shape[1] - outputs.mean(dim=1)

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return features, targets - 1 / targets.shape[1]


@LOSSES.register("projected_mse")
class ProjectedMSE(SquaredLoss):
    """L = (1/n) ‖P₁⊥(Y − Ŷ)‖², centred over samples: Eq. 1 of arXiv:2509.21519 times 2/n.

    It is blind to one offset per class, so losses and accuracies use Ŷ + mean over the training rows of (Y − Ŷ).
    """

    def offset(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return row_mean(one_hot(labels, outputs.shape[1], outputs.dtype) - outputs)

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return one_hot(labels, outputs.shape[1], outputs.dtype) - outputs

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return center(self.differences(outputs, labels))

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return features - row_mean(features), targets - row_mean(targets)


@LOSSES.register("cross_entropy")
class CrossEntropy(Loss):
    """L = −(1/n) Σ_i log softmax(o_i)[y_i]."""

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels, reduction="none")


def build_loss(name: str) -> Loss:
    """The loss called ``name``; an unknown one is an `InputError` that lists them."""
    loss: Loss = LOSSES.build(name, "loss", {})
    return loss
