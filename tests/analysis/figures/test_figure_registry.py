"""Pictures by name, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES, figure_names, find_figure
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from tests.conftest import li2_command

main = li2_command("figures")


MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF", ".svg": b"<?xml"}


def test_the_quick_preset_is_drawn_like_the_published_one() -> None:
    assert find_figure("fig03_weight_decay_quick") is find_figure("fig03_weight_decay")
    with pytest.raises(
        InputError, match=r"Unknown figure 'fig03_weigth_decay'; known are .*Did you mean 'fig03_weight_decay'"
    ):
        find_figure("fig03_weigth_decay")


def test_a_quick_entry_of_its_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIGURES, "_entries", dict(FIGURES._entries))

    @FIGURES.register("fig03_weight_decay_quick")
    def draw(runs: list[Run]) -> Figure:
        return Figure()

    assert find_figure("fig03_weight_decay_quick") is draw


def test_a_figure_of_ones_own_by_import_path(
    small_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_figures.py").write_text(
        "from matplotlib.figure import Figure\ndef draw(runs):\n    return Figure((len(runs), 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["my_figures:draw", str(small_sweep), "-o", str(tmp_path / "a.png")]) == 0
    width = int.from_bytes((tmp_path / "a.png").read_bytes()[16:20], "big")
    assert width == 4 * 120


def test_every_format_and_the_same_bytes_again(small_sweep: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("1.png", "1.pdf", "1.svg", "2.png", "2.svg")]
    outputs = [word for path in paths for word in ("-o", str(path))]
    assert main(["fig10_real_quick", str(small_sweep), *outputs]) == 0
    for path in paths:
        assert path.read_bytes().startswith(MAGIC[path.suffix])
        assert path.read_bytes() == (tmp_path / f"1{path.suffix}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig3", "{sweep}", "-o", "{here}/a.png"], "Unknown figure 'fig3'"),
        (["fig03_weight_decay", "{sweep}", "-o", "{here}/a.gif"], "Unknown suffix of {here}/a.gif: '.gif'"),
        (["fig03_weight_decay", "{here}/x", "-o", "{here}/a.png"], "{here}/x is no directory"),
        (["fig03_weight_decay", "{here}", "-o", "{here}/a.png"], "{here} holds no runs"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"sweep": small_sweep, "here": tmp_path}
    assert main([word.format(**places) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(**places)}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(name in shown for name in figure_names())
