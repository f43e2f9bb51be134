"""Each private name and each message of a library that `li2_lightning._compat` leans on is there; else one sentence."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from torch import Tensor

from li2_lightning import _compat
from li2_lightning.networks.activations import find_activation
from li2_lightning.networks.kernel import feature_blocks

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def changed(library: str, what: str) -> str:
    return f"{library} has changed: {what}; adapt li2_lightning/_compat.py"


# -- torch ------------------------------------------------------------------------------------------------------------


def test_torch_counts_the_writes_to_a_tensor() -> None:
    tensor = torch.zeros(3)
    counts = [_compat.write_count(tensor)]
    for write in (lambda: tensor.add_(1), lambda: tensor[0].fill_(2), lambda: tensor + 1):
        write()
        counts.append(_compat.write_count(tensor))
    assert [count - counts[0] for count in counts] == [0, 1, 2, 2], changed("torch", "Tensor._version counts otherwise")


def test_what_is_kept_with_a_tensor_is_made_again_after_a_write_and_dies_with_it() -> None:
    def kept() -> weakref.ref[Tensor]:
        tensor, made = torch.zeros(3), []

        def make() -> Tensor:
            made.append(tensor.sum())
            return tensor + 1

        first = _compat.kept_with(tensor, "sum", make)
        assert _compat.kept_with(tensor, "sum", make) is first
        _compat.kept_with(tensor, "another purpose", make)
        assert len(made) == 2
        tensor.add_(1)
        assert _compat.kept_with(tensor, "sum", make).tolist() == [2, 2, 2]
        assert len(made) == 3
        return weakref.ref(_compat.kept_with(tensor, "sum", make))

    result = kept()
    gc.collect()
    assert result() is None, changed("torch", "WeakTensorKeyDictionary keeps its tensors alive")


@pytest.mark.parametrize("operands", [1, 2])
def test_the_blocks_of_an_index_do_not_keep_it_alive(operands: int) -> None:
    index = torch.randint(5, (7, operands))
    list(feature_blocks(torch.randn(5, 4), index, find_activation("square")))
    lives = weakref.ref(index)
    del index
    gc.collect()
    assert lives() is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_torch_has_onednns_product_with_these_arguments() -> None:
    product = _compat.onednn_product()
    assert product is not None, changed("torch", "torch.ops.mkldnn._linear_pointwise is gone")
    x, weight = torch.randn(4, 3), torch.randn(5, 3)
    found = product(x, weight, None, "none", [], "")
    torch.testing.assert_close(found, x @ weight.T, msg=lambda text: changed("torch", f"its product differs: {text}"))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_torch_keeps_the_hooks_of_a_gradient(register: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert not _compat.has_gradient_hooks(parameter)
    handle = getattr(parameter, register)(lambda _: None)
    assert _compat.has_gradient_hooks(parameter), changed("torch", f"{register} keeps its hooks elsewhere")
    handle.remove()
    assert not _compat.has_gradient_hooks(parameter)


def test_torch_refuses_a_step_that_overflows_in_these_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2).add_(torch.ones(2), alpha=-1e300)
    assert _compat.is_step_overflow(caught.value), changed("torch", f"of an overflow it says {str(caught.value)!r}")
    assert not _compat.is_step_overflow(RuntimeError("shapes cannot be multiplied"))


def test_torch_tells_of_a_full_memory_in_these_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert _compat.is_memory_full(caught.value), changed("torch", f"of a full memory it says {str(caught.value)!r}")
    assert _compat.is_memory_full(torch.OutOfMemoryError("CUDA out of memory."))
    assert not _compat.is_memory_full(RuntimeError("shapes cannot be multiplied"))


# -- Lightning --------------------------------------------------------------------------------------------------------


def test_lightning_gives_a_checkpoint_without_a_file(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_steps": 0,
                               "default_root_dir": tmp_path, "enable_progress_bar": False}  # fmt: skip
    trainer = lightning.Trainer(**options)
    trainer.strategy.connect(lightning.LightningModule())
    held = _compat.dump_checkpoint(trainer, weights_only=False)
    entries = {"state_dict", "global_step", "callbacks", "optimizer_states", "lr_schedulers", "loops"}
    assert entries <= set(held), changed("Lightning", f"a checkpoint lacks {entries - set(held)}")
    small = set(_compat.dump_checkpoint(trainer, weights_only=True))
    gone = {"callbacks", "optimizer_states", "lr_schedulers"}
    assert small == set(held) - gone, changed("Lightning", f"weights alone come with {small}")
    assert list(tmp_path.iterdir()) == []


def test_lightning_keeps_the_rank_on_its_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    assert hasattr(rank_zero_only, "rank"), changed("Lightning", "rank_zero_only.rank is gone")
    for rank in (0, 1, 7):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        assert _compat.is_first_rank() == (rank == 0)


def test_lightning_warns_of_half_precision_on_a_cpu_in_these_words() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lightning.Trainer(accelerator="cpu", precision="16-mixed", logger=False, enable_checkpointing=False)
    told = [str(warning.message) for warning in caught]
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=_compat.HALF_ON_CPU)
        lightning.Trainer(accelerator="cpu", precision="16-mixed", logger=False, enable_checkpointing=False)
    assert len(left) < len(told), changed("Lightning", f"of 16-mixed on a CPU it says {told}")


def test_lightning_warns_of_a_gpu_that_is_not_used_in_these_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    with pytest.warns(match=_compat.UNUSED_GPU):
        lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def test_torch_deprecates_a_class_that_lightning_makes_in_these_words() -> None:
    from lightning.pytorch.utilities._pytree import _tree_flatten

    told = []
    for filters in ([], [_compat.LEAF_SPEC]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for message in filters:
                warnings.filterwarnings("ignore", message=message, category=FutureWarning)
            _tree_flatten(torch.zeros(1))
        told.append(len(caught))
    assert told == [1, 0], changed("Lightning or torch", "LEAF_SPEC matches no warning any more and may go")


# -- Hydra and OmegaConf ----------------------------------------------------------------------------------------------


def composing(*overrides: str) -> Exception:
    """What Hydra raises for these overrides of our configs."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"), pytest.raises(Exception) as caught:  # noqa: PT011
        compose("config", [*overrides])
    return caught.value


def test_hydra_applies_overrides_to_a_composed_config() -> None:
    config = OmegaConf.create({"a": {"b": 1}, "c": 2})
    parsed = OverridesParser.create().parse_overrides(["a.b=3", "++d=[4]", "~c"])
    _compat.apply_overrides(config, parsed)
    assert config == {"a": {"b": 3}, "d": [4]}, changed("Hydra", "_apply_overrides_to_config does something else")


@pytest.mark.parametrize(
    ("override", "pattern", "groups"),
    [
        ("network.widht=3", _compat.UNKNOWN_OVERRIDE, ("network.widht",)),
        ("seed=1,2", _compat.SEVERAL_VALUES, ("seed=1,2",)),
        ("task=nothing", _compat.UNKNOWN_CHOICE, ("task", "nothing")),
    ],
)
def test_hydra_says_what_is_wrong_with_an_override_in_these_words(override: str, pattern: Any, groups: Any) -> None:
    text = str(composing(override))
    match = pattern.search(text)
    assert match is not None, changed("Hydra", f"of {override} it says {text!r}")
    assert match.groups() == groups
    if pattern is _compat.UNKNOWN_CHOICE:
        known = {path.stem for path in (CONFIGS / "task").glob("*.yaml")}
        assert set(_compat.KNOWN_CHOICE.findall(text)) == known, changed("Hydra", f"it lists choices as {text!r}")


def test_hydra_passes_on_omegaconfs_error_about_a_value_and_a_key() -> None:
    value, key = composing("seed=[1]"), composing("network.widht=3")
    assert _compat.is_refused_value(value), changed("Hydra", f"of a value that does not fit it says {value}")
    assert not _compat.is_refused_value(key)
    assert key.__cause__ is not None, changed("Hydra", "the error about a key has no cause")
    assert _compat.is_unknown_key(key.__cause__), changed("OmegaConf", f"of an unknown key it says {key.__cause__}")
    assert value.__cause__ is not None, changed("Hydra", "the error about a value has no cause")
    assert not _compat.is_unknown_key(value.__cause__)


@pytest.mark.parametrize("override", ["seed=[1", "seed", "a=b=[c"])
def test_hydra_names_the_override_that_its_grammar_cannot_read(override: str) -> None:
    found = _compat.unreadable_override(composing(override))
    assert found == override, changed("Hydra", "OverrideParseException.override is something else")
    assert _compat.unreadable_override(ValueError(override)) is None


@pytest.mark.parametrize(("group", "choice"), [("task", "cyclic"), ("optimizer", "muon"), ("trainer", "default")])
def test_hydra_lists_the_files_of_a_config_group(group: str, choice: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        groups = _compat.config_groups()
    assert choice in groups[group], changed("Hydra", "GlobalHydra lists its groups otherwise")
    assert "hydra" not in groups


def test_hydra_keeps_the_error_of_a_failed_job() -> None:
    error = ValueError("failed")
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    assert _compat.job_error(result) is error, changed("Hydra", "JobReturn keeps the error elsewhere")


def test_joblibs_workers_end_when_they_are_told_to() -> None:
    externals = pytest.importorskip("joblib.externals.loky")
    executor = externals.get_reusable_executor(max_workers=1)
    _compat.end_joblib_workers()
    assert executor._flags.shutdown, changed("joblib", "get_reusable_executor gives another executor")


def test_nothing_is_ended_where_joblib_was_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "joblib.externals.loky", raising=False)
    _compat.end_joblib_workers()
    assert "joblib.externals.loky" not in sys.modules


# -- W&B --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an offline run of three rows, made by a process of its own."""
    folder = tmp_path_factory.mktemp("wandb")
    script = (
        "import wandb\n"
        f"run = wandb.init(mode='offline', dir={str(folder)!r}, id='abc', settings=wandb.Settings(silent=True))\n"
        "for step in range(3): run.log({'x': step}, step=step)\n"
        "run.finish()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    (found,) = (folder / "wandb").glob("*run-*")
    return found


@pytest.mark.slow
def test_wandb_names_and_inspects_the_folder_of_a_segment(segment: Path) -> None:
    match = _compat.WANDB_SEGMENT.fullmatch(segment.name)
    assert match is not None, changed("W&B", f"it calls a folder {segment.name}")
    assert match[2] == "abc"
    told = _compat.inspect_segment(segment)
    assert told is not None, changed("W&B", "`wandb leet inspect --summary --json` cannot read a segment")
    assert (told["step"], told["exit_code"]) == (2, 0), changed("W&B", f"a segment is inspected as {told}")


@pytest.mark.slow
def test_wandb_has_nothing_to_tell_of_a_folder_without_a_run(tmp_path: Path) -> None:
    assert _compat.inspect_segment(tmp_path) is None


def test_wandb_marks_what_it_has_sent_by_this_ending() -> None:
    from wandb.cli import clean

    text = Path(str(clean.__file__)).read_text(encoding="utf-8")
    assert _compat.SYNCED in text, changed("W&B", "it marks sent segments otherwise")


def test_wandb_reads_the_environment_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("one", "two"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        _compat.read_wandb_environment()
        found = _compat.wandb_environment().project
        assert found == project, changed("W&B", f"after a change of WANDB_PROJECT its settings hold {found!r}")
    assert _compat.wandb_environment().silent


@pytest.mark.parametrize(("setting", "value"), [("run_tags", ("a" * 65,)), ("project", "a/b"), ("run_tags", ("",))])
def test_wandb_refuses_a_setting_with_a_reason_that_reads_as_part_of_a_sentence(setting: str, value: Any) -> None:
    with pytest.raises((wandb.errors.Error, ValueError)) as caught:
        wandb.Settings.model_validate({setting: value})
    reason = _compat.wandb_reason(caught.value)
    assert reason, changed("W&B", f"of {setting} it says {caught.value}")
    assert not any(word in reason for word in ("\n", "[type=", "Value error", "validation error", "pydantic"))


def test_wandb_tells_of_a_failed_upload_through_its_fallback_logger() -> None:
    # As a run does first: it makes W&B silent, whatever an earlier test has made of it.
    _compat.read_wandb_environment()
    messages = _compat.WandbMessages()
    wandb.termwarn("something else")
    assert not messages.upload_failed
    wandb.termwarn("Fatal error while uploading data. Some run data will not be synced.")
    assert messages.upload_failed, changed("W&B", "termsetup takes no fallback logger in silent mode")
    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    assert b"error while uploading" in core.read_bytes(), changed("W&B", "a failed upload has other words")


# -- and nowhere else -------------------------------------------------------------------------------------------------


# Names of Python itself; a key of Hydra's configs; and what the launcher of ranks still asks torch for.
ALLOWED = {"_exit", "_getframe", "_target_", "_get_default_store"}


def private_names(path: Path) -> set[str]:
    """The private names in a file that do not belong to its own objects."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            continue
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("li2_lightning"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        else:
            names = [node.attr] if isinstance(node, ast.Attribute) else []
        found |= {name for name in names if name.startswith("_") and not name.startswith("__")}
    return found - ALLOWED


def test_no_other_file_uses_a_private_name_of_a_library() -> None:
    folders = ("li2_lightning", "callbacks", "hydra_plugins")
    sources = [ROOT / "train.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    own = ROOT / "li2_lightning" / "_compat.py"
    assert private_names(own) >= {"_checkpoint_connector", "_return_value"}
    assert {str(path): names for path in sources if path != own and (names := private_names(path))} == {}
