"""How an optimizer is found by name, and what a user reads when it is not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

import optimizers
from li2_lightning import plugins
from optimizers import OPTIMIZERS, OptimizerError, find, names, register
from optimizers.registry import build


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    monkeypatch.setattr(OPTIMIZERS, "_broken", {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points as installed packages would announce them; append to it."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])
    return points


def entry_point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "li2_lightning.optimizers")


def make(name: str, *shapes: tuple[int, ...], shared: dict[str, float] | None = None, **given: object) -> Optimizer:
    params = [Parameter(torch.zeros(shape)) for shape in shapes or [(2, 3)]]
    return build(name, params, given, shared=shared, role="hidden")


def refused(name: str, *shapes: tuple[int, ...], shared: dict[str, float] | None = None, **given: object) -> str:
    """The message with which ``name`` is refused: one line that ends like a sentence."""
    with pytest.raises(OptimizerError) as caught:
        make(name, *shapes, shared=shared, **given)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert caught.value.exit_code == 2
    return message


# -- where names come from -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_torchs_own_update_everything_in_one_pass(name: str) -> None:
    assert make(name).param_groups[0]["fused"] is True


def test_one_pass_is_left_out_where_torch_has_none_or_something_else_is_asked_for() -> None:
    assert not make("adam", foreach=True).param_groups[0]["fused"]
    assert not make("adam", differentiable=True).param_groups[0]["fused"]
    assert make("adam", fused=False).param_groups[0]["fused"] is False
    assert "fused" not in make("rmsprop").param_groups[0]
    weights = Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    assert not build("adam", [weights], {}, role="hidden").param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_pass_makes_the_same_updates(name: str) -> None:
    found = []
    for fused in (None, False):
        weights = [
            Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)),
            Parameter(torch.ones(5).double()),
        ]
        given = {"lr": 0.01, "weight_decay": 0.1} | ({} if fused is None else {"fused": fused})
        optimizer = build(name, weights, given, role="hidden")
        for step in range(20):
            for parameter in weights:
                parameter.grad = torch.cos(3 * parameter.detach() + step)
            optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in weights]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_torch_optimizers_by_lower_case_name() -> None:
    assert find("adam") is torch.optim.Adam
    assert find("rmsprop") is torch.optim.RMSprop
    assert {"adam", "adamw", "sgd", "muon"} <= set(names())
    assert names() == sorted(set(names()))
    assert not {"optimizer", "lr_scheduler", "swa_utils"} & set(names())


def test_a_registered_name_comes_before_torch() -> None:
    assert find("muon") is optimizers.Muon
    assert find("torch.optim:Muon") is torch.optim.Muon


def test_a_registered_name_comes_before_an_entry_point_and_that_before_torch(
    announce: list[EntryPoint],
) -> None:
    announce += [entry_point("muon", "torch.optim:SGD"), entry_point("adam", "torch.optim:SGD")]
    assert find("muon") is optimizers.Muon
    assert find("adam") is torch.optim.SGD


def test_an_entry_point_is_found_and_listed(folder: Path, announce: list[EntryPoint]) -> None:
    (folder / "a_package.py").write_text("from torch.optim import SGD as Mine\n")
    announce.append(entry_point("mine", "a_package:Mine"))
    assert "mine" in names()
    assert isinstance(make("mine", lr=0.5), torch.optim.SGD)


def test_an_import_path_is_found(folder: Path) -> None:
    (folder / "my_module.py").write_text("import torch\nclass Mine(torch.optim.SGD): ...\n")
    optimizer = make("my_module:Mine", lr=0.1)
    assert type(optimizer).__name__ == "Mine"
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_file_dropped_into_the_folder_is_found_and_torch_is_enough(tmp_path: Path) -> None:
    shutil.copytree(optimizers.__path__[0], tmp_path / "optimizers")
    (tmp_path / "optimizers" / "dropped_in.py").write_text(
        "import torch\nfrom optimizers import register\nregister('dropped')(torch.optim.SGD)\n"
    )
    program = (
        "import sys, optimizers; assert 'dropped' in optimizers.names(); optimizers.find('dropped'); "
        "print(*sorted(name for name in sys.modules if name.startswith(('lightning', 'omegaconf', 'li2_lightning'))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(optimizers.__path__[0]).parent)}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["li2_lightning", "li2_lightning.errors", "li2_lightning.plugins"]


def test_the_ten_lines_of_the_docstring_work(folder: Path) -> None:
    lines = str(optimizers.__doc__).split("\n")
    code = [line for line in lines if line.startswith("    ") or not line]
    (folder / "ten_lines.py").write_text("\n".join(line[4:] for line in code))
    OPTIMIZERS.import_plugin("ten_lines")
    W = Parameter(torch.zeros(2, 2))
    optimizer = build("sign_descent", [W], {"lr": 0.5}, role="hidden")
    W.grad = torch.tensor([[3.0, -0.1], [0.0, 1.0]])
    optimizer.step()
    assert W.tolist() == [[-0.5, 0.5], [0.0, -0.5]]


# -- what cannot be found ------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    message = refused("admw")
    assert "Unknown optimizer 'admw'" in message
    assert "adam, adamax, adamw" in message
    assert message.endswith("Did you mean 'adamw'?")
    assert refused("SGD").endswith("Did you mean 'sgd'?")


@pytest.mark.parametrize("name", [5, None, 1.5, "", ["adam"], {"a": 1}], ids=repr)
def test_a_name_that_is_no_name(name: object) -> None:
    with pytest.raises(OptimizerError, match="Unknown optimizer"):
        find(name)  # type: ignore[arg-type]


def test_a_name_taken_twice_names_both() -> None:
    @register("twice")
    def first(params: object) -> None: ...

    with pytest.raises(OptimizerError, match=r"'twice': .*first and .*second; rename"):

        @register("twice")
        def second(params: object) -> None: ...

    assert find("twice") is first


def test_two_packages_with_one_name(announce: list[EntryPoint]) -> None:
    announce += [entry_point("same", "torch.optim:SGD"), entry_point("same", "torch.optim:Adam")]
    for point, package in zip(announce, ("first-package", "second-package"), strict=True):
        vars(point)["dist"] = SimpleNamespace(name=package)
    message = refused("same")
    assert "torch.optim:Adam of the package second-package" in message
    assert "torch.optim:SGD of the package first-package" in message


def test_two_packages_that_announce_the_same_class_are_named(announce: list[EntryPoint]) -> None:
    announce += [entry_point("same", "torch.optim:SGD"), entry_point("same", "torch.optim:SGD")]
    for point, package in zip(announce, ("first-package", "second-package"), strict=True):
        vars(point)["dist"] = SimpleNamespace(name=package)
    assert "first-package and torch.optim:SGD of the package second-package" in refused("same")


def test_one_package_listed_twice_is_one(announce: list[EntryPoint]) -> None:
    announce += [entry_point("same", "torch.optim:SGD")] * 2
    assert find("same") is torch.optim.SGD


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('out of\\nluck')", "RuntimeError: out of luck"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
    ],
)
def test_a_plugin_that_fails_on_import(source: str, words: str, folder: Path, announce: list[EntryPoint]) -> None:
    (folder / "fails.py").write_text(source + "\n")
    announce.append(entry_point("announced", "fails:Mine"))
    for name in ("fails:Mine", "announced"):
        message = refused(name)
        assert f"{name!r} could not be imported" in message
        assert words in message


@pytest.mark.parametrize(
    ("source", "words"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("raise SystemExit(3)", "SystemExit: 3")],
)
def test_a_broken_file_in_the_folder_stops_every_run_with_one_sentence(folder: Path, source: str, words: str) -> None:
    (folder / "broken.py").write_text(source)
    OPTIMIZERS.import_plugin("broken")
    assert refused("adam") == (f"The plug-in broken could not be imported: {words}; repair it or remove the file.")


def test_the_cause_of_an_error_is_kept(folder: Path) -> None:
    (folder / "fails.py").write_text("1 / 0\n")
    with pytest.raises(OptimizerError) as caught:
        find("fails:Mine")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_paths_that_lead_nowhere() -> None:
    assert "No module named 'no_such_module'" in refused("no_such_module:Mine")
    assert refused("torch.optim:Adm") == (
        "The optimizer 'torch.optim:Adm' could not be imported: "
        "module torch.optim has no attribute 'Adm'. Did you mean 'Adam'?"
    )
    assert "is a float, not a class or function" in refused("math:pi")
    assert "could not be imported" in refused(":Mine")
    assert "could not be imported" in refused("math:")


# -- hyperparameters -----------------------------------------------------------------------------------------


def test_an_unknown_hyperparameter_shows_the_signature() -> None:
    message = refused("sgd", momentun=0.9)
    assert message.startswith(
        "The optimizer 'sgd' has no option 'momentun' (from optimizer.hidden.momentun); it takes lr=0.001, momentum=0"
    )
    assert message.endswith("Did you mean 'momentum'?")
    assert "params" not in message


def test_a_required_hyperparameter(folder: Path) -> None:
    (folder / "needs.py").write_text("import torch\ndef mine(params, lr):\n    return torch.optim.SGD(params, lr)\n")
    assert "The optimizer 'needs:mine' needs optimizer.hidden.lr; it takes lr." in refused("needs:mine")
    assert make("needs:mine", shared={"lr": 0.5}).param_groups[0]["lr"] == 0.5
    assert make("needs:mine", lr="5e-1").param_groups[0]["lr"] == 0.5


def test_shared_values_fill_in_where_they_are_taken() -> None:
    shared = {"lr": 0.5, "weight_decay": 0.25}
    group = make("adam", shared=shared).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    group = make("adam", shared=shared, lr=0.1, weight_decay=None).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.25)
    assert make("rprop", shared=shared).param_groups[0]["lr"] == 0.5
    unset = make("adam", shared={"lr": None, "weight_decay": None}).param_groups[0]
    assert (unset["lr"], unset["weight_decay"]) == (0.001, 0)


def test_open_keywords_take_anything(folder: Path) -> None:
    (folder / "opened.py").write_text(
        "import torch\ndef mine(params, **rest):\n    return torch.optim.SGD(params, **rest)\n"
    )
    group = make("opened:mine", shared={"lr": 0.5}, momentum="9e-1").param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)
    assert "unexpected keyword argument 'momentun'" in refused("opened:mine", momentun=0.9)


def test_values_as_yaml_gives_them() -> None:
    group = make("adam", lr="1e-3", betas=[0.9, "98e-2"], weight_decay="1e-4", amsgrad=True).param_groups[0]
    assert group["lr"] == 1e-3
    assert group["betas"] == (0.9, 0.98)
    assert group["weight_decay"] == 1e-4
    assert make("muon", steps="6").param_groups[0]["steps"] == 6
    assert make("muon", scale="rms").param_groups[0]["scale"] == "rms"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        (
            "adam",
            {"lr": -1},
            "optimizer.hidden: adam cannot be built with lr=-1: ValueError: Invalid learning rate",
        ),
        ("adam", {"lr": "fast"}, "optimizer.hidden.lr='fast' must be a number, like 0.001"),
        ("adam", {"lr": float("nan")}, "optimizer.hidden.lr=nan must be a finite number"),
        ("adam", {"lr": "inf"}, "optimizer.hidden.lr=inf must be a finite number"),
        ("adam", {"lr": True}, "optimizer.hidden.lr=True must be a finite number"),
        ("adam", {"lr": [0.1]}, "TypeError"),
        ("adam", {"betas": 0.9}, "optimizer.hidden.betas=0.9 must be a list of 2 values, like [0.9, 0.999]"),
        ("adam", {"betas": [0.9, 0.99, 0.999]}, "must be a list of 2 values"),
        ("adam", {"betas": [0.9, 1.5]}, "Invalid beta parameter"),
        ("adam", {"amsgrad": "yes"}, "optimizer.hidden.amsgrad='yes' must be true or false"),
        ("sgd", {"nesterov": True}, "Nesterov momentum requires a momentum"),
        ("adam", {"foreach": True, "fused": True}, "cannot be `True` together"),
        ("muon", {"scale": "spectrall"}, "Unknown scale of Muon 'spectrall'"),
    ],
)
def test_a_value_that_is_refused_names_role_and_value(name: str, given: dict[str, object], words: str) -> None:
    assert words in refused(name, **given)


# -- what it builds ------------------------------------------------------------------------------------------


def test_muon_on_a_vector_says_what_to_do() -> None:
    message = refused("muon", (3, 2), (7,))
    assert message.startswith("optimizer.hidden: muon cannot be built with its defaults: Muon orthogonalizes matrices")
    assert "shape (7,); give its role another optimizer, for example adam" in message


def test_what_is_no_optimizer() -> None:
    assert "gave a list, not a torch.optim.optimizer.Optimizer" in refused("builtins:list")
    assert "cannot be built with its defaults: TypeError" in refused("math:sqrt")


def test_an_optimizer_that_needs_a_closure() -> None:
    assert "lbfgs evaluates the loss several times a step" in refused("lbfgs")


def test_an_optimizer_for_sparse_gradients() -> None:
    assert "sparse gradients only" in refused("sparseadam")


def test_an_optimizer_that_leaves_parameters_out(folder: Path) -> None:
    (folder / "picky.py").write_text("import torch\ndef mine(params):\n    return torch.optim.SGD(params[:1])\n")
    assert "was given 2 parameters and trains 1" in refused("picky:mine", (2, 2), (3, 3))
