"""The training losses. Each is the mean of a value per row, so the sums of any split of the rows can be added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from li2_lightning._compat import kept_with
from li2_lightning.distributed.collectives import row_mean
from li2_lightning.errors import InputError
from li2_lightning.plugins import Registry


class Loss:
    """A loss that is a mean over rows.

    Outputs Ŷ are n × C and real, labels (n,). In a stack of runs both have a leading axis; a class that is written for
    it sets ``takes_stacks``, and any other loss is computed for one run after the other. A subclass defines `rows`. A
    subclass whose value does not change with an offset per class also defines `offset`, which is added to the outputs
    before losses and accuracies are computed.
    """

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row, (n,)."""
        raise NotImplementedError

    def offset(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """The offset per class, (C,), fitted on the training rows of every rank; None where there is none.

        The offset needs no gradient: it is a stationary point of the loss.
        """
        return None

    def summed_error(self, total: Tensor) -> Tensor | None:
        """Σ_i D_i over the training rows, (…, C), of a squared loss with ∂L/∂Ŷ = −(2/n)D; None for any other loss.

        The residual is R = P₁⊥(Y − Ŷ) = P₁⊥(D + δ1ᵀ), with δ from `ignored_class_mean` (0 where that is None).

        Args:
            total: Σ_i (Y_i − Ŷ_i), (…, C).
        """
        return None

    def ignored_class_mean(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """δ (n,), the mean of each row of Y − Ŷ over the classes, where the loss does not depend on it; else None."""
        return None

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """F and Y, centred so that their ridge readout minimizes this loss; an `InputError` where there is none."""
        raise InputError(f"The loss {type(self).__name__} has no ridge readout; use network.readout=gradient.")

    def __call__(self, outputs: Tensor, labels: Tensor, total: int | None = None) -> Tensor:
        """The mean loss over training rows, a scalar; on several ranks, the part of the mean that this rank's rows add.

        Args:
            total: number of rows of all ranks; None: the number of labels.
        """
        return self.fitted_rows(outputs, labels).sum() / (total or len(labels))

    def fitted_rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each training row, (…, n), with `offset` added to the outputs."""
        return self.rows(self.fitted_outputs(outputs, outputs, labels), labels)

    def fitted_outputs(self, outputs: Tensor, training_outputs: Tensor, training_labels: Tensor) -> Tensor:
        """Outputs of any rows, …×m×C, with the `offset` of the training rows added."""
        offset = self.offset(training_outputs, training_labels)
        return outputs if offset is None else outputs + offset.unsqueeze(-2)


LOSSES: Registry[type[Loss]] = Registry("loss", "li2_lightning.losses", makes=Loss)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Y, …×n×C. Calls with the same labels share one tensor, which must not be written to."""
    purpose = "one_hot", num_classes, dtype
    return kept_with(labels, purpose, lambda: functional.one_hot(labels, num_classes).to(dtype))


class _SquaredNorms(torch.autograd.Function):
    """‖D_i‖² of each row with the gradient −2D in one pass; autograd would go through every operation that made D."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, differences: Tensor) -> Tensor:
        ctx.save_for_backward(differences)
        norms: Tensor = torch.linalg.vector_norm(differences, dim=-1)
        return norms.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (differences,) = ctx.saved_tensors
        return differences * (-2 * gradient[..., None]), None


class SquaredLoss(Loss):
    """A loss of ‖D_i‖² a row, where D is Y − Ŷ projected on what the loss depends on, so that ∂‖D_i‖²/∂o_i = −2D_i."""

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """D, …×n×C, from outputs that include the offset."""
        raise NotImplementedError

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        rows: Tensor = _SquaredNorms.apply(outputs, self.differences(outputs.detach(), labels))  # type: ignore[no-untyped-call]
        return rows


@LOSSES.register("mse")
class ClassCentredMSE(SquaredLoss):
    """L = (1/n) Σ_i ‖(o_i − mean_c o_i) − (y_i − 1/C)‖², centred over classes (the experiments of the source)."""

    takes_stacks = True

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        difference = one_hot(labels, outputs.shape[-1], outputs.dtype) - outputs
        return difference.sub_(difference.mean(dim=-1, keepdim=True))

    def summed_error(self, total: Tensor) -> Tensor:
        return total - total.mean(dim=-1, keepdim=True)

    def ignored_class_mean(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 1 / outputs.shape[-1] - outputs.mean(dim=-1)

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return features, targets - 1 / targets.shape[-1]


@LOSSES.register("projected_mse")
class ProjectedMSE(SquaredLoss):
    """L = (1/n) ‖P₁⊥(Y − Ŷ)‖², centred over samples: Eq. 1 of arXiv:2509.21519 times 2/n.

    It does not depend on an offset per class, so losses and accuracies use Ŷ + mean over the training rows of (Y − Ŷ).
    """

    takes_stacks = True

    def offset(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return row_mean(self.differences(outputs, labels))

    def differences(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return one_hot(labels, outputs.shape[-1], outputs.dtype) - outputs

    def summed_error(self, total: Tensor) -> Tensor:
        # The offset takes the mean over the rows away.
        return torch.zeros_like(total)

    def ridge_problem(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return features - row_mean(features).unsqueeze(-2), targets - row_mean(targets).unsqueeze(-2)


@LOSSES.register("cross_entropy")
class CrossEntropy(Loss):
    """L = −(1/n) Σ_i log softmax(o_i)[y_i]."""

    takes_stacks = True

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(labels.shape)


@LOSSES.register("cross_entropy_float64")
class CrossEntropyInFloat64(CrossEntropy):
    """Cross-entropy whose softmax and logarithm are in float64, whatever the precision of the network.

    In float32 the loss of a row and its gradient are 0 once the output at the label is some 17 above the others; in
    float64 they are 0 at some 37. The gradient that reaches the outputs has the precision of the outputs again, which
    can hold numbers that small.

    Source: Prieto et al., "Grokking at the edge of numerical stability", arXiv:2501.04697.
    """

    takes_stacks = True
    needs_float64 = True

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().rows(outputs.double(), labels)


class RunByRun(Loss):
    """A loss that is not written for the leading axis of a stack, computed for one run after the other.

    Args:
        loss: the loss of one run.
    """

    takes_stacks = True

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([self.loss.rows(*run) for run in zip(outputs, labels, strict=True)])

    def offset(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        return _for_each_run(self.loss.offset, outputs, labels)

    def summed_error(self, total: Tensor) -> Tensor | None:
        return _for_each_run(self.loss.summed_error, total)

    def ignored_class_mean(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        return _for_each_run(self.loss.ignored_class_mean, outputs, labels)


def _for_each_run(function: Callable[..., Tensor | None], *values: Tensor) -> Tensor | None:
    results = [function(*run) for run in zip(*values, strict=True)]
    present = [result for result in results if result is not None]
    return torch.stack(present) if len(present) == len(results) else None


@LOSSES.register("stablemax")
class StableMax(Loss):
    """L = −(1/n) Σ_i log(s(o_iy)/Σ_c s(o_ic)) with s(x) = x + 1 for x ≥ 0 and 1/(1 − x) for x < 0.

    Cross-entropy with s instead of exp. Since s grows linearly, the loss of a row is still above zero in float32 where
    that of cross-entropy is rounded to zero, so that the row still drives the training.

    Source: Prieto et al., "Grokking at the edge of numerical stability", arXiv:2501.04697.
    """

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # The branch that is not taken has a finite gradient, too: an infinite one times zero would be NaN.
        positive, negative = torch.log1p(outputs.clamp_min(0)), -torch.log1p((-outputs).clamp_min(0))
        logarithms = torch.where(outputs >= 0, positive, negative)
        return functional.cross_entropy(logarithms, labels, reduction="none")


def build_loss(name: str) -> Loss:
    """The loss called ``name``; an unknown name is an `InputError` that lists all names."""
    loss: Loss = LOSSES.build(name, "loss", {})
    return loss
