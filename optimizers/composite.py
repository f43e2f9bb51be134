"""Several optimizers that look like one: one child for each role of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch.optim import Optimizer

from li2_lightning.errors import InputError
from optimizers.closures import ClosureOptimizer
from optimizers.modes import Modes


class CompositeOptimizer(Modes, ClosureOptimizer):
    """One optimizer for each role, joined: a step steps them all.

    Schedulers, gradient clipping, checkpoints and hooks see an ordinary optimizer. ``param_groups`` holds the
    children's own group dicts, each with its ``"role"``; they stay the same objects after `load_state_dict`, so a
    reference to one stays valid. It has ``train()`` and ``eval()`` where a child has (`optimizers.modes`).

    Args:
        children: role -> optimizer; no parameter in two of them.
        names: role -> what the optimizer is called in messages and checkpoints (default: its class name).
        notes: role -> a remark that `describe` prints behind that role.
    """

    def __init__(
        self,
        children: Mapping[str, Optimizer],
        names: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.children = dict(children)
        self.names = {role: type(child).__name__ for role, child in children.items()} | dict(names or {})
        self.notes = dict(notes or {})
        if not self.children:
            raise InputError("There is nothing to train: no role has a trainable parameter.")
        for role, child in self.children.items():
            for group in child.param_groups:
                group["role"] = role
        super().__init__([group for child in self.children.values() for group in child.param_groups], {})
        self._join_state()

    def parts(self) -> list[Optimizer]:
        """The children."""
        return list(self.children.values())

    def _join_state(self) -> None:
        self.state: Any = JointState(self.children)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the child of ``param_group["role"]``, whose defaults fill in what it leaves open."""
        role = param_group.get("role")
        if role not in self.children:
            raise InputError(f"A parameter group needs a 'role', one of {', '.join(self.children)}, not {role!r}.")
        child = self.children[role]
        is_new = all(param_group is not group for group in child.param_groups)
        # The base class refuses a parameter that any child has already, so it comes first.
        super().add_param_group(param_group)
        if is_new:
            try:
                child.add_param_group(param_group)
            except Exception:
                self.param_groups.pop()
                raise

    def update(self) -> None:
        """Step every child on the same gradients."""
        for child in self.children.values():
            child.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors: which optimizer has which role, and each one's own state."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state: dict[str, Any] = {
            "names": dict(self.names),
            "children": {role: child.state_dict() for role, child in self.children.items()},
        }
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, into the same group dicts.

        Raises:
            InputError: the checkpoint has other roles, optimizers or group sizes (nothing is changed).
        """
        state_dict = state_dict.copy()  # hooks may change it, as in torch
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if "children" not in state_dict or state_dict.get("names") != self.names:
            raise InputError(
                f"The checkpoint holds the optimizers {_listed(state_dict.get('names', {}))} and this run "
                f"has {_listed(self.names)}; resume with the optimizers it was made with."
            )
        saved = state_dict["children"]
        for role, child in self.children.items():
            # The state of a wrapper may have another form; the wrapper checks it.
            there, here = _sizes(saved[role].get("param_groups", child.param_groups)), _sizes(child.param_groups)
            if there != here:
                raise InputError(
                    f"The checkpoint's {role} optimizer has parameter groups of sizes {there} and this run's "
                    f"{here}; resume with the network it was made with."
                )
        for role, child in self.children.items():
            held = list(child.param_groups)
            child.load_state_dict(saved[role])
            # torch puts new dicts in place of the old ones; references to the old ones must stay valid.
            for live, restored in zip(held, child.param_groups, strict=True):
                live.update(restored)
            child.param_groups[:] = held
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    # Groups are shared between this object and its children; copying all in one keeps them shared.
    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("defaults", "param_groups", "children", "names", "notes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._join_state()


class JointState(MutableMapping[Any, Any]):
    """The children's ``state`` as one mapping that writes through."""

    def __init__(self, children: Mapping[str, Optimizer]) -> None:
        self._children = children
        self._owners: dict[Any, Optimizer] = {}

    def _owner(self, key: Any) -> MutableMapping[Any, Any]:
        if key not in self._owners:
            for child in self._children.values():
                if key in child.state or any(key is p for group in child.param_groups for p in group["params"]):
                    self._owners[key] = child
                    break
        # A child that loads a state gets another mapping, so the child is remembered and not its state.
        return self._owners[key].state

    def __getitem__(self, key: Any) -> Any:
        return self._owner(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._owner(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._owner(key)[key]

    def __iter__(self) -> Iterator[Any]:
        for child in self._children.values():
            yield from child.state

    def __len__(self) -> int:
        return sum(len(child.state) for child in self._children.values())


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _listed(names: Mapping[str, str]) -> str:
    return ", ".join(f"{role}: {name}" for role, name in names.items()) or "of another kind"
