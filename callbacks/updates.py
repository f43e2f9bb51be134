"""Norms of the weights, and the size and direction of their updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from callbacks.diagnostic import Diagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.cadence import is_marked
from li2_lightning.log import say
from li2_lightning.measurement.parts import columns_of_runs
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.base import Network
from li2_lightning.runs.checkpoints import read_window
from li2_lightning.runs.metrics_csv import correct_row
from li2_lightning.theory.updates import WINDOW, eigengap


@CALLBACKS.register("updates")
class Updates(Diagnostic):
    """Norms of the weights, and the last single update X_{t−1} → X_t; row 0 has no update.

    ==================================  ==============================================================
    weights/hidden_norm, output_norm    ‖W‖, ‖V‖ (Frobenius, over every matrix of the role)
    optimizer/<role>_lr                 learning rate of the next update; where the optimizer of a role has several
                                        parameter groups, of the first group
    optimizer/<role>_lr/<i>             learning rate of its further groups, i = 1, 2, …
    update/hidden, update/output        ‖X_t − X_{t−1}‖/‖X_{t−1}‖
    update/…_cosine_distance            1 − cos(X_t, X_{t−1})
    update/eigengap                     2nd over 3rd eigenvalue of the Gram matrix of the last 20 updates
                                        of the hidden role; empty before row 20
    ==================================  ==============================================================

    X is W for ``hidden`` and V for ``output``; several hidden matrices count as one vector. With rows further apart
    than one step, the window has the single updates that led to the last 20 rows.

    Every checkpoint of a run's state holds the Gram matrix. The updates themselves are many times larger than the
    weights, so only the newest of these checkpoints has them (`window_dict`). A run that continues from any other
    checkpoint has an empty ``update/eigengap`` until there are 20 updates again.

    Args:
        every_n_steps: cadence of the columns; updates are recorded at every row.
    """

    takes_stacks = True

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self.track = _Track()
        # In a stack the track of all runs, and the place of this run in it.
        self.joint: tuple[_Track, int] | None = None

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Li2Module, optimizer: Any) -> None:
        # With rows further apart than one step only this hook sees the weights one update before a row, including a V
        # that was just solved as a ridge readout.
        step = trainer.global_step
        if is_marked(pl_module.evaluate_every_n_steps, step + 1) or pl_module.is_last_update:
            self._remember(pl_module.network, step)

    def _remember(self, network: Network, step: int) -> None:
        track = self._shared
        if track.step != step:
            track.remember(_vectors(track.network or network), step)

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        self.log_row(module, state, self.separate().follow(state))

    def log_row(self, module: Li2Module, state: StepState, columns: Mapping[str, Any]) -> None:
        """Add the columns of a row that is due, and the learning rates of the next update."""
        if self.cadence.due(state.step, state.is_last):
            state.log_all({**columns, **_learning_rates(module.optimizer)})

    @classmethod
    def on_stack_state(
        cls, callbacks: Sequence[Updates], modules: Sequence[Li2Module], whole: StepState, states: Sequence[StepState]
    ) -> None:
        joint = callbacks[0].joint
        if joint is None:
            columns: Sequence[Mapping[str, Any]] = [
                callback.track.follow(state) for callback, state in zip(callbacks, states, strict=True)
            ]
        else:
            columns = columns_of_runs(joint[0].follow(whole), len(states))
        for callback, module, state, own in zip(callbacks, modules, states, columns, strict=True):
            callback.log_row(module, state, own)

    @classmethod
    def join(cls, callbacks: Sequence[Updates], network: Network) -> None:
        """Let the callbacks of the runs of a stack follow their updates together from now on.

        Args:
            network: that of the stack.
        """
        tracks = [callback.separate() for callback in callbacks]
        joint = _Track.joined(tracks, network) if all(track.fits(tracks[0]) for track in tracks) else None
        for place, callback in enumerate(callbacks):
            callback.joint = None if joint is None else (joint, place)

    def separate(self) -> _Track:
        """The track of this run by itself, which it keeps from now on."""
        if self.joint is not None:
            track, place = self.joint
            self.track, self.joint = track.of_run(place), None
        return self.track

    @property
    def _shared(self) -> _Track:
        """The track that this run is part of."""
        return self.track if self.joint is None else self.joint[0]

    def _own(self, values: Tensor) -> Tensor:
        """This run's part of a tensor of the track; in a stack a copy."""
        return values if self.joint is None else values[self.joint[1]].clone()

    def state_dict(self) -> dict[str, Any]:
        track = self._shared
        return {**super().state_dict(), "gram": self._own(track.gram), "count": track.count}

    def window_dict(self) -> dict[str, Any]:
        """The updates that the next row needs, and the Gram matrix, by which they are matched with a checkpoint."""
        track = self._shared
        updates = None if track.window is None else self._own(track.window)[_needed(track.count)]
        return {"updates": updates, "gram": self._own(track.gram)}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning calls `load_state_dict` after this hook.
        assert trainer.ckpt_path is not None
        found = read_window(Path(trainer.ckpt_path), checkpoint["global_step"], self.state_key)
        state = checkpoint["callbacks"].get(self.state_key)
        if found is None or found["updates"] is None or state is None or not torch.equal(found["gram"], state["gram"]):
            return
        updates, places = found["updates"], _needed(state["count"])
        # Earlier releases kept all 20.
        if len(updates) == len(places):
            self.track.window = updates.new_zeros(WINDOW, updates.shape[-1])
            self.track.window[places] = updates

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        track = self.track
        track.gram, track.count = state_dict["gram"], state_dict["count"]
        if track.window is None and track.count > 0:
            track.gram, track.count = torch.zeros_like(track.gram), 0
            say(
                f"update/eigengap is empty for {WINDOW} rows; the last {WINDOW} updates are kept for the newest "
                "row-….ckpt only, and this run continues from another checkpoint."
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Li2Module) -> None:
        # A resumed run has measured this row before; the next update starts at its weights.
        if pl_module.last_row == trainer.global_step:
            self._remember(pl_module.network, trainer.global_step)
            # A run with a longer max_steps has another schedule, so the next learning rate may differ from the row's.
            correct_row(trainer, pl_module.last_row, _learning_rates(pl_module.optimizer))


class _Track:
    """The weights of the last row and the last 20 updates of the hidden role, of one run or of all runs of a stack.

    Attributes:
        before: role → all weights of the role as one vector (…, P), and its norm (…).
        step: the updates before these weights; −1 where there are none.
        window: the last updates, …×20×P, the oldest of which is overwritten by the next; None before the first.
        gram: their Gram matrix, …×20×20.
        count: the updates so far.
        network: that of the stack; None for a single run.
    """

    def __init__(self) -> None:
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        self.step = -1
        self.window: Tensor | None = None
        self.gram = torch.zeros(WINDOW, WINDOW, dtype=torch.float64)
        self.count = 0
        self.network: Network | None = None

    def fits(self, other: _Track) -> bool:
        """Whether the runs of both have made equally many steps and updates."""
        return (self.step, self.count, self.before.keys()) == (other.step, other.count, other.before.keys())

    @classmethod
    def joined(cls, tracks: Sequence[_Track], network: Network) -> _Track:
        """The track of a stack."""
        joint, first = cls(), tracks[0]
        joint.step, joint.count, joint.network = first.step, first.count, network
        joint.gram = torch.stack([track.gram for track in tracks])
        windows = [track.window for track in tracks if track.window is not None]
        joint.window = torch.stack(windows) if windows else None
        for role in first.before:
            vectors, norms = zip(*(track.before[role] for track in tracks), strict=True)
            joint.before[role] = torch.stack(vectors), torch.stack(norms)
        return joint

    def of_run(self, place: int) -> _Track:
        """A copy of the part of one run."""
        track = _Track()
        track.step, track.count = self.step, self.count
        track.gram = self.gram[place].clone()
        track.window = None if self.window is None else self.window[place].clone()
        track.before = {
            role: (vector[place].clone(), norm[place].clone()) for role, (vector, norm) in self.before.items()
        }
        return track

    def follow(self, state: StepState) -> dict[str, Tensor]:
        """The columns of a row, after which its weights are the last ones."""
        after = _vectors(state.network)
        columns = {f"weights/{role}_norm": norm for role, (_, norm) in after.items()}
        if self.step == state.step - 1 >= 0:
            for role, (vector, norm) in after.items():
                before, norm_before = self.before[role]
                change = vector - before
                size = torch.linalg.vector_norm(change, dim=-1)
                columns[f"update/{role}"] = size / norm_before
                columns[f"update/{role}_cosine_distance"] = _cosine_distance(norm_before, norm, size)
                if role == "hidden":
                    columns["update/eigengap"] = self._eigengap(change, state.accumulation_dtype)
        self.remember(after, state.step)
        return columns

    def remember(self, vectors: dict[str, tuple[Tensor, Tensor]], step: int) -> None:
        """Keep the present weights; the next update starts at them."""
        for role, (vector, norm) in vectors.items():
            if role in self.before:
                self.before[role] = self.before[role][0].copy_(vector), norm
            else:
                self.before[role] = vector.clone(), norm
        self.step = step

    def _eigengap(self, change: Tensor, dtype: torch.dtype) -> Tensor:
        """Replace the oldest update by the newest, in the window and in the Gram matrix, and return the eigengap."""
        if self.window is None:
            self.window = change.new_zeros(*change.shape[:-1], WINDOW, change.shape[-1])
        self.window, self.gram = self.window.to(change.device), self.gram.to(change.device, dtype)
        slot = self.count % WINDOW
        self.window[..., slot, :] = change
        products = (self.window @ change.unsqueeze(-1)).squeeze(-1).to(dtype)
        self.gram[..., slot, :], self.gram[..., slot] = products, products
        self.count += 1
        return eigengap(self.gram) if self.count >= WINDOW else change.new_full(change.shape[:-1], torch.nan)


def _needed(count: int) -> list[int]:
    """The places in the window, after ``count`` updates, that the next update does not overwrite."""
    return [place for place in range(min(count, WINDOW)) if place != count % WINDOW]


def _learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """One column for each parameter group with a learning rate."""
    columns: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for group in optimizer.param_groups:
        index, role = seen[group["role"]], group["role"]
        seen[role] += 1
        if (lr := group.get("lr")) is not None:
            columns[f"optimizer/{role}_lr/{index}" if index else f"optimizer/{role}_lr"] = float(lr)
    return columns


def _vectors(network: Network) -> dict[str, tuple[Tensor, Tensor]]:
    """Role (hidden, output) → all its matrices as one real vector (…, P), and the norm of that vector."""
    vectors = {}
    roles = network.roles()
    runs = network.V.shape[:-2]
    for role in ("hidden", "output"):
        flat = [_flat(parameter).reshape(*runs, -1) for _, parameter in roles[role]]
        vector = flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)
        vectors[role] = vector, torch.linalg.vector_norm(vector, dim=-1)
    return vectors


def _flat(parameter: Tensor) -> Tensor:
    detached = parameter.detach()
    return torch.view_as_real(detached) if detached.is_complex() else detached


def _cosine_distance(before: Tensor, after: Tensor, change: Tensor) -> Tensor:
    """1 − cos as (‖a−b‖² − (‖a‖−‖b‖)²)/(2‖a‖‖b‖), from norms: 1 minus a float32 cosine is rounding noise below 1e-7."""
    return (change.square() - (before - after).square()).clamp_min(0) / (2 * before * after)
