"""report.html: whole in one file, quiet on the network, and drawn in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from li2_lightning.analysis.html_report import MOST_ROWS
from li2_lightning.runs.load import find_runs, load_run
from li2_lightning.runs.snapshots import snapshots
from tests.conftest import li2_command

main = li2_command("report")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to draw the report")
HOSTILE = "</script><img src=x onerror=document.title='taken'><b>bold</b>"


def figures(html: str) -> dict[str, Any]:
    """What the page hands to Plotly."""
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    return dict(json.loads(data))


def without_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The page as Chromium has it once its scripts have run, and what Chromium said; no name can be resolved."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
               "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
               "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return shown.stdout, shown.stderr


@pytest.fixture
def hostile_run(own_sweep: Path) -> Path:
    """A run whose name, settings, columns and caveats are HTML."""
    directory = next(run.directory for run in find_runs([own_sweep]))
    config = (directory / "config.yaml").read_text()
    config = config.replace("name: small", f"name: {json.dumps(HOSTILE)}")
    (directory / "config.yaml").write_text(config.replace("scheduler:\n", f"scheduler:\n  x: {json.dumps(HOSTILE)}\n"))
    metrics = (directory / "metrics.csv").read_text()
    (directory / "metrics.csv").write_text(metrics.replace("energy/mean", HOSTILE))
    event = {"from": 1, "to": 2, "step": 7, "first_step": 3, "lag": 4, "evidence": {HOSTILE: 0.5}, "caveat": HOSTILE}
    (directory / "stages.json").write_text(json.dumps({"schema_version": 1, "stalled": True, "events": [event]}))
    return directory


def test_a_run_has_everything_on_its_page(own_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    event = {"from": 1, "to": 2, "step": 7, "first_step": 3, "lag": 4, "evidence": {"gradient/independence": 0.873},
             "caveat": "why not"}  # fmt: skip
    (directory / "stages.json").write_text(json.dumps({"schema_version": 1, "stalled": False, "events": [event]}))
    assert main([str(directory)]) == 0
    path = directory / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    html = path.read_text(encoding="utf-8")
    run = load_run(directory)
    drawn = figures(html)
    curves = {trace["name"] for figure in drawn.values() for trace in figure["data"]}
    assert curves == {name for name in run.metrics if run.metrics[name].notna().any()}, "every column that has a value"
    for figure in drawn.values():
        assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [7], "the transition is a line in each"
    page = without_scripts(html)
    assert "<h2>Curves</h2>" in page
    assert "<h2>Missing features</h2>" not in page
    assert "<h2>Progress measures</h2>" not in page
    for text in (
        "gradient/independence 0.873",
        "why not",
        "II independent",
        "It has not memorized the training rows: ",
    ):
        assert text in page
    for key, value in run.settings.items():
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            assert key.rpartition(".")[2] in page
            assert str(value) in page
    assert run.summary is not None
    assert all(version in page for version in run.summary["versions"].values())
    assert 'src="data:image/png;base64,' in page, "the features"


def film(html: str) -> list[dict[str, Any]]:
    """The frames that the page hands to its slider."""
    (data,) = re.findall(r'<script type="application/json" id="film">(.*?)</script>', html, re.DOTALL)
    return list(json.loads(data))


def test_the_slider_has_a_frame_for_each_snapshot(own_sweep: Path) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    assert main([str(directory)]) == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    frames = film(page)
    assert [frame["step"] for frame in frames] == list(snapshots(directory))
    assert len({frame["src"] for frame in frames}) == len(frames), "the pictures move"
    assert f'type="range" min="0" max="{len(frames) - 1}"' in page


@pytest.mark.parametrize("what", ["the snapshots", "the Cayley table"])
def test_without_what_a_film_needs_a_page_has_no_slider(own_sweep: Path, what: str) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    if what == "the snapshots":
        for path in snapshots(directory).values():
            path.unlink()
    else:
        config = (directory / "config.yaml").read_text()
        (directory / "config.yaml").write_text(
            config.replace("name: cyclic", "name: cayley_table").replace("path: null", "path: gone.csv")
        )
    assert main([str(directory)]) == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert film(page) == []
    assert "film-slider" not in without_scripts(page)


@needs_chromium
@pytest.mark.slow
def test_the_slider_shows_the_frame_of_its_step(own_sweep: Path, tmp_path: Path) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    assert main([str(directory)]) == 0
    text = (directory / "report.html").read_text(encoding="utf-8")
    moved = """<script>const s = document.getElementById("film-slider"); s.value = 2;
               s.dispatchEvent(new Event("input"));</script></body>"""
    # The policy of the page would refuse a third script.
    text = re.sub(r"<meta http-equiv=.*?>", "", text).replace("</body>", moved)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    dom, _ = browse(tmp_path / "page.html", tmp_path / "profile")
    frame = film(text)[2]
    assert f'<output id="film-step">{frame["step"]}</output>' in dom
    (shown,) = re.findall(r'<img id="film-frame"[^>]*src="([^"]*)"', dom)
    assert shown == frame["src"] != film(text)[-1]["src"]


def test_nothing_is_fetched(own_sweep: Path) -> None:
    for run in find_runs([own_sweep])[1:]:
        shutil.rmtree(run.directory)
    assert main([str(own_sweep), "--each"]) == 0
    pages = sorted(own_sweep.rglob("report.html"))
    assert len(pages) == 2, "the sweep and its run"
    for path in pages:
        html = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 8e6
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        assert re.fullmatch(
            r"default-src 'none'; script-src( 'sha256-[\w+/=]+'){2}; style-src 'unsafe-inline'; img-src data: blob:",
            policy,
        )
        page = without_scripts(html)
        assert not re.findall(r"<(?:link|iframe|object|embed|base)\b|@import|url\(|https?:", page)
        sources = re.findall(r"\bsrc=[\"']?([^\"'\s>]{0,20})", page)
        assert all(source.startswith("data:") for source in sources)


def test_a_long_run_stays_small_and_says_so(own_sweep: Path) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    header, *rows = (directory / "metrics.csv").read_text().splitlines()
    step = header.split(",").index("step")
    cells = rows[-1].split(",")
    lines = [",".join([*cells[:step], str(number), *cells[step + 1 :]]) for number in range(20_001)]
    (directory / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")
    assert main([str(directory)]) == 0
    assert (directory / "report.html").stat().st_size < 8e6
    assert f"more than {MOST_ROWS} rows are thinned" in (directory / "report.html").read_text()


def test_a_sweep_links_its_runs(own_sweep: Path) -> None:
    runs = find_runs([own_sweep])
    (runs[0].directory / "report.png").touch()
    (runs[1].directory / "report.html").touch()
    assert main([str(own_sweep)]) == 0
    html = (own_sweep / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]*)"', without_scripts(html))
    assert len(links) == 4
    assert all((own_sweep / link).exists() for link in links)
    assert sorted(Path(link).name for link in links if "report" in link) == ["report.html", "report.png"]
    assert list(figures(html)) == ["curves"], "they do not differ in their training fraction"


def test_the_phase_diagram_of_a_sweep_over_fractions(own_sweep: Path) -> None:
    fractions = (0.3, 0.3, 0.5, 0.5)
    for run, fraction in zip(find_runs([own_sweep]), fractions, strict=True):
        text = re.sub(r"train_fraction: .*", f"train_fraction: {fraction}", (run.directory / "config.yaml").read_text())
        (run.directory / "config.yaml").write_text(re.sub(r"\n  lr: .*", "\n  lr: 0.1", text))
    assert main([str(own_sweep)]) == 0
    drawn = figures((own_sweep / "report.html").read_text(encoding="utf-8"))
    assert list(drawn) == ["curves", "phase-0"]
    median, points = drawn["phase-0"]["data"]
    runs = find_runs([own_sweep])
    last = [float(run.metrics["test/accuracy"].iloc[-1]) for run in runs]
    assert median["y"] == pytest.approx([(last[0] + last[1]) / 2, (last[2] + last[3]) / 2])
    assert points["y"] == pytest.approx(last)
    assert {(own_sweep / link).resolve() for link in points["customdata"]} == {run.directory.resolve() for run in runs}
    predicted = runs[0].task.predicted_fraction
    assert [shape["x0"] for shape in drawn["phase-0"]["layout"]["shapes"]] == [predicted]


def test_an_unfinished_run_has_a_page(own_sweep: Path) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    (directory / "summary.json").unlink()
    assert main([str(directory)]) == 0
    assert "It has not come to its end: row 12 of 12." in (directory / "report.html").read_text()


def test_hostile_names_stay_text(hostile_run: Path) -> None:
    assert main([str(hostile_run)]) == 0
    html = (hostile_run / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "<b>bold" not in html
    assert html.count("</script>") == 4
    assert "&lt;img src=x onerror" in html


@needs_chromium
def test_charts_are_drawn_and_nothing_is_asked_of_the_network(hostile_run: Path, tmp_path: Path) -> None:
    assert main([str(hostile_run)]) == 0
    page = hostile_run / "report.html"
    dom, said = browse(page, tmp_path / "profile")
    drawn = figures(page.read_text(encoding="utf-8"))
    assert len(re.findall(r'class="[^"]*js-plotly-plot', dom)) == len(drawn)
    # In the plot and once more in the legend.
    assert dom.count('class="js-line"') == 2 * sum(len(figure["data"]) for figure in drawn.values())
    # Chromium reports what the page's policy kept it from fetching, and every error of a script.
    assert "CONSOLE" not in said, said
    title = re.findall(r"<title>(.*?)</title>", dom, re.DOTALL)[0]
    assert title == HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert "<b>bold" not in dom


@needs_chromium
@pytest.mark.slow
def test_the_browser_would_tell_of_a_request(own_sweep: Path, tmp_path: Path) -> None:
    """The control of the test before."""
    directory = next(run.directory for run in find_runs([own_sweep]))
    assert main([str(directory)]) == 0
    page = directory / "report.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<h1>", "<img src='http://example.invalid/x.png'><script>1</script><h1>", 1))
    _, said = browse(page, tmp_path / "profile")
    assert said.count("CONSOLE") >= 2, "the image and the script"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{here}/x"], "{here}/x is no directory; give a run or a folder that holds runs."),
        (["{here}"], "{here} holds no runs; give a run directory or a folder above some."),
        (["{sweep}", "-o", "{here}/a.pdf"], "Unknown suffix of {here}/a.pdf: '.pdf'; known are .html."),
        (
            ["{sweep}", "{sweep}/latest"],
            "Several directories have no place of their own for the report; say -o FILE.html.",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"sweep": small_sweep, "here": tmp_path}
    assert main([word.format(**places) for word in arguments]) == 2
    assert capsys.readouterr().err == f"error: {message.format(**places)}\n"


def test_a_run_without_rows(own_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    (directory / "metrics.csv").unlink()
    assert main([str(directory)]) == 2
    assert "has no rows yet" in capsys.readouterr().err


def test_without_the_extra(
    small_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main([str(small_sweep), "-o", str(tmp_path / "a.html")]) == 2
    error = capsys.readouterr().err
    assert error.endswith("install it with pip install 'li2-lightning[report]'.\n")
    assert not list(tmp_path.glob("*.html"))


def test_missing_features_and_progress_measures_are_sections_of_runs_that_have_them(tiny_run: Any) -> None:
    options = [f"callbacks.{name}.enabled=true" for name in ("missing", "circuits", "spectra")]
    run = load_run(tiny_run(*options, "callbacks.missing.table_every_n_steps=1", "max_steps=3").directory)
    assert main([str(run.directory)]) == 0
    html = (run.directory / "report.html").read_text(encoding="utf-8")
    page = without_scripts(html)
    assert "<h2>Missing features</h2>" in page
    assert "<h2>Progress measures</h2>" in page
    assert page.count("Labels: k: frequency.") == 2
    drawn = figures(html)
    maps = {
        f["layout"]["title"]["text"]: trace for f in drawn.values() for trace in f["data"] if trace["type"] == "heatmap"
    }
    assert {"Share of the target that the outputs explain", "Share of the residual R", "Share of the logits"} < {*maps}
    for trace in maps.values():
        assert trace["y"] == ["k = 1", "k = 2", "k = 3"]
    curves = {trace["name"] for name, f in drawn.items() for trace in f["data"] if "name" in trace}
    shares = {name for name in run.metrics if name.startswith("circuits/logit_share/")}
    assert len(shares) == 3
    assert curves | shares == {name for name in run.metrics if run.metrics[name].notna().any()}


@pytest.mark.parametrize("name", ["blocks.npz", "last.npz", "row-000012.npz"])
def test_a_damaged_file_of_features_is_one_sentence(
    name: str, own_sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = next(run.directory for run in find_runs([own_sweep]))
    (directory / "features").mkdir(exist_ok=True)
    for content in (b"", b"PK\x03\x04 cut off"):
        (directory / "features" / name).write_bytes(content)
        assert main([str(directory)]) == 2
        assert re.search(rf"{name} cannot be read: .*; remove it to", capsys.readouterr().err)


def test_a_folder_that_is_read_only_is_named_before_the_work(
    small_sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    run = next(run.directory for run in find_runs([small_sweep]))
    assert main([str(run)]) == 2
    message = f"{run / 'report.html'} cannot be written: the folder {run} is read-only; name another with -o."
    assert capsys.readouterr().err == f"error: {message}\n"
