"""``li2 doctor``: every fact has its line, also where the environment is broken, and no key is printed."""

from __future__ import annotations

import configparser
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import wandb

import callbacks
import optimizers
from li2_lightning.cli import doctor
from li2_lightning.cli.main import main
from tests.cli.conftest import ROOT

KEY = "0123456789abcdef" * 2 + "deadbeef"


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines of ``li2 doctor`` by their labels."""
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert KEY not in captured.out
    return {line[:24].rstrip(): line[24:] for line in captured.out.splitlines()}


def test_a_healthy_environment(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = report(capsys)
    assert lines["torch"] == version("torch")
    assert lines["train.py"] == str(ROOT / "train.py")
    assert lines["configs"] == str(ROOT / "configs")
    assert lines["devices"].startswith("cpu")
    assert lines["W&B credentials"] == "not present; wandb login adds them"
    assert lines["W&B mode"] == "offline, WANDB_MODE not set"
    assert lines["product of matrices"].startswith(("oneDNN", "torch's own, because"))
    assert lines["free disk"].endswith(f" GB for {workplace / 'outputs'}")
    assert lines["plug-ins"] == "all can be imported"
    assert not any("cannot be told" in value for value in lines.values())


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_credentials_are_seen_and_never_printed(
    place: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        host = urlsplit(str(wandb.setup().settings.base_url)).hostname
        (tmp_path / "netrc").write_text(f"machine {host} login user password {KEY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    lines = report(capsys)
    assert lines["W&B credentials"] == "present"
    assert lines["W&B mode"] == "online, WANDB_MODE not set"


def test_a_key_that_wandb_refuses_is_not_printed_either() -> None:
    def refused() -> str:
        raise ValueError(f"api_key\n  Value error, too long [type=value_error, input_value='{KEY}', input_type=str]")

    assert doctor._or_why_not(refused) == "cannot be told: ValueError: api_key Value error, too long"


def test_the_mode_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert doctor._or_why_not(doctor._wandb_mode) == "disabled, WANDB_MODE disabled"


@pytest.mark.parametrize(
    ("package", "text", "reason"),
    [
        (optimizers, "raise RuntimeError('the plug-in is unwell')", "RuntimeError: the plug-in is unwell"),
        (callbacks, "import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        (callbacks, "raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_broken_plug_in_is_named_and_the_other_lines_stay(
    package: object,
    text: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.py").write_text(text)
    spec = package.__spec__
    folders = [*spec.submodule_search_locations, str(tmp_path)]
    monkeypatch.setattr(spec, "submodule_search_locations", folders)
    monkeypatch.setattr(package, "__path__", folders)
    lines = report(capsys)
    assert lines[f"{spec.name}.broken"] == f"cannot be imported: {reason}"
    assert "plug-ins" not in lines
    assert lines["torch"] == version("torch")


def test_a_broken_plug_in_of_an_installed_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = tmp_path / "broken_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[li2_lightning.tasks]\nmine = no_such_package:Task\n")
    monkeypatch.syspath_prepend(tmp_path)
    lines = report(capsys)
    assert lines["no_such_package:Task"] == (
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
    )


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("plotly", "'li2-lightning[report]'"), ("submitit", "'li2-lightning[sweep]'"), ("rich", "'li2-lightning'")],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", absent)
    lines = dict(doctor.findings())
    assert lines[package] == f"not installed; pip install {remedy}"
    assert lines["numpy"] == "1.0"


def test_without_torch_the_other_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = dict(doctor.findings())
    for label in ("processor", "devices", "torch threads"):
        assert lines[label].startswith("cannot be told: ModuleNotFoundError: ")
    assert lines["configs"] == str(ROOT / "configs")


def test_the_packages_are_those_of_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")

    def names(requirements: str) -> list[str]:
        return [line.partition(">")[0] for line in requirements.split("\n") if line]

    assert list(doctor.REQUIRED) == names(setup["options"]["install_requires"])
    extras = {name: names(text) for name, text in setup["options.extras_require"].items() if name != "dev"}
    assert {name: list(packages) for name, packages in doctor.EXTRAS.items()} == extras
