"""docs/: its links lead somewhere, its commands can be parsed, its pictures are all shown, and the site builds."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import train
from li2_lightning.cli.hydra_errors import prepare
from li2_lightning.cli.main import main
from li2_lightning.config.checks import read_config
from li2_lightning.config.identity import config_hash
from tests.cli.conftest import ROOT
from tests.cli.test_configs import composed
from tests.cli.test_readme import commands, fenced

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """tools/docs_site.py."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(text: str) -> str:
    """Without fenced blocks and code, where brackets are no links and # is no heading."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_every_link_leads_somewhere(page: Path, hooks: ModuleType) -> None:
    for target, anchor in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(hooks.slug, headings), f"{target}#{anchor}"


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Exit codes", "exit-codes"),
        ("I want to add a …", "i-want-to-add-a-"),
        ("`li2: command` (why)", "li2-command-why"),
    ],
)
def test_an_anchor_is_that_of_github(heading: str, anchor: str, hooks: ModuleType) -> None:
    assert hooks.slug(heading) == anchor


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_every_row_of_a_table_is_below_a_head(page: Path) -> None:
    """A blank line within a table would show the rest as text."""
    lines = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL).split("\n")
    for above, line, below in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("|") and not above.startswith("|"):
            assert re.fullmatch(r"\|[-|: ]+\|", below), line


# What README says, too, runs in tests/cli/test_readme.py.
SAID = {tuple(words) for words in commands((ROOT / "README.md").read_text(encoding="utf-8"))}
COMMANDS = {tuple(words): page for page in PAGES for words in commands(page.read_text(encoding="utf-8"))}
# The presets of the experiments are composed in tests/cli/test_configs.py, too.
TRAIN = [
    pytest.param(words[2:], id=" ".join(words[2:]), marks=[] if page.parent.name == "start" else pytest.mark.slow)
    for words, page in COMMANDS.items()
    if words[:2] == ("li2", "train") and words not in SAID
]
OTHERS = [words[1:] for words in COMMANDS if words[0] == "li2" and words[1] != "train" and words not in SAID]


@pytest.fixture(scope="module")
def with_plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my_module.py, which the pages tell to write."""
    folder = tmp_path_factory.mktemp("plug_in")
    (block,) = fenced((DOCS / "start" / "4-write-an-optimizer.md").read_text(encoding="utf-8"), "python")
    (folder / "my_module.py").write_text(block)
    (folder / "table.csv").write_text("0,1\n1,0\n")
    return folder


@pytest.mark.parametrize("arguments", TRAIN)
def test_every_run_of_the_docs_composes(
    arguments: tuple[str, ...], with_plug_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep the first run."""
    monkeypatch.chdir(with_plug_in)
    monkeypatch.syspath_prepend(str(with_plug_in))
    flags = [word for word in prepare(list(arguments)) if word.startswith("--")]
    assert set(flags) <= {"--multirun", "--help"}
    read = OverridesParser.create().parse_overrides([w for w in prepare(list(arguments)) if not w.startswith("--")])
    swept = [override.is_sweep_override() for override in read]
    assert not any(swept) or "--multirun" in flags
    first = [
        f"{override.input_line.partition('=')[0]}={next(override.sweep_string_iterator())}" if sweeps
        else override.input_line
        for override, sweeps in zip(read, swept, strict=True)
    ]  # fmt: skip
    assert read_config(composed(*(word for word in first if word))).max_steps > 0


def test_every_lever_of_the_page_of_tasks_is_one() -> None:
    """Each changes the run, and is read as it stands."""
    (table,) = re.findall(r"## Levers\n.*", (DOCS / "tasks.md").read_text(encoding="utf-8"), re.DOTALL)
    levers = re.findall(r"`([\w.]+=[^`]+)`", table)
    assert len(levers) > 10
    known = config_hash(read_config({}))
    for lever in levers:
        assert config_hash(read_config(OmegaConf.from_dotlist(lever.split()))) != known, lever


def test_the_page_of_columns_names_every_column_and_no_other(tmp_path: Path) -> None:
    """Of runs with every callback: with an extra layer, and without, where the tangent kernel has a closed form.

    There are 21 updates for `update/eigengap`, and fewer nodes than blocks, so that some blocks are missing.
    """
    lines = (DOCS / "columns.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    # Two names on the page are no columns by themselves: an abbreviation, and parameter groups beyond the first.
    names = {name for cell in cells for name in re.findall(r"`([^`…]+)`", cell)} - {"optimizer/<role>_lr/1"}
    columns: set[str] = set()
    for layers in (0, 1):
        result = train.run(
            composed(*prepare(["callbacks=full", "callbacks.depth.enabled=true", "callbacks.report.enabled=false",
                               "callbacks.pictures.enabled=false", "task.order=11", "network.width=4", "max_steps=21",
                               f"network.hidden_layers={layers}", f"output_dir={tmp_path}", "logger.mode=disabled"]))
        )  # fmt: skip
        (header, *_) = (result.directory / "metrics.csv").read_text(encoding="utf-8").splitlines()
        columns |= set(header.split(",")) - {"step"}
    forms = {
        name: re.compile(re.escape(name).replace("<l>", r"\d+").replace("<role>", r"\w+").replace("<block>", r"k=\d+"))
        for name in names
    }
    assert {column for column in columns if not any(form.fullmatch(column) for form in forms.values())} == set()
    assert {name for name, form in forms.items() if not any(form.fullmatch(column) for column in columns)} == set()


class Parsed(BaseException):
    """The arguments were read; the command is not to begin."""


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_every_other_command_of_the_docs_is_one(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *words: object) -> None:
        parse(self, *words)  # type: ignore[call-overload]
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        main(list(arguments))


def test_every_command_of_the_docs_is_one_of_those_that_are_tested() -> None:
    assert len(TRAIN) > 20
    assert len(OTHERS) > 10
    for words, page in COMMANDS.items():
        assert words[0] in ("li2", "make", "source", "wandb", "LI2_SWEEPS=.", "pip", "python"), (page, words)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in COMMANDS:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_is_python(page: Path) -> None:
    for block in fenced(page.read_text(encoding="utf-8"), "python"):
        compile(block, str(page), "exec")


def test_the_five_pages_for_newcomers_lead_from_one_to_the_next() -> None:
    pages = sorted((DOCS / "start").glob("*.md"))
    assert [page.name[0] for page in pages] == ["1", "2", "3", "4", "5"]
    for page, following in itertools.pairwise(pages):
        assert page.read_text(encoding="utf-8").rstrip().endswith(f"]({following.name}).")


def test_the_gallery_shows_every_picture() -> None:
    shown = set(re.findall(r"\]\((pictures/[^)]+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8")))
    assert shown == {str(path.relative_to(DOCS)) for path in (DOCS / "pictures").iterdir()}


def test_the_film_at_the_top_is_small() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")[1].endswith("](docs/features.gif)")
    assert (DOCS / "features.gif").stat().st_size < 3e6


def build(folder: Path, **settings: object) -> None:
    """Build the site in-process; mkdocs aborts at a warning."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build_site(config)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(hooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a search index over all pages and the whole API, and nothing that is fetched from elsewhere."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build(tmp_path)
    index = json.loads((tmp_path / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = {str(page.relative_to(DOCS).with_suffix(".html")) for page in PAGES}
    notebooks = {f"notebooks/{path.stem}.html" for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert len(notebooks) == 2
    assert pages | notebooks | {f"api/{package}.html" for package in hooks.packages()} <= found
    assert "predicted_maxima" in (tmp_path / "api" / "li2_lightning.theory.html").read_text(encoding="utf-8")
    assert "(best E*)" in (tmp_path / "columns.html").read_text(encoding="utf-8"), "no emphasis"
    assert 'href="play/index.html"' in (tmp_path / "play.html").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "play").iterdir()} == {"index.html", "page.js", "trainer.js"}
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]*src=\"?https?:|<link[^>]*stylesheet[^>]*href=\"?https?:", text)


@pytest.mark.slow
def test_a_page_with_a_broken_link_fails_the_build(
    hooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.exceptions import Abort

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[gone](gone.md)")
    with pytest.raises(Abort, match="warnings in strict mode"):
        build(tmp_path / "site", docs_dir=str(docs), nav=[{"Home": "index.md"}])
