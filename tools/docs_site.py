"""Hooks of mkdocs (mkdocs.yml): API reference, demo, notebooks, links that leave docs/, and anchors as on GitHub."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PARTS = ("li2_lightning", "optimizers", "callbacks")
DEMO = "li2_lightning/resources/play"
# [text](target) and ![text](target), up to the anchor.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference to the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = lambda text, separator: slug(text)
    assert config.nav is not None
    config.nav.append({"API": [{name: f"api/{name}.md"} for name in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each package and for each notebook, and the demo as `play/`."""
    for path in (ROOT / DEMO).iterdir():
        files.append(File.generated(config, f"play/{path.name}", content=path.read_text(encoding="utf-8")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=notebook_page(notebook)))
    for name, modules in packages().items():
        text = f"# {name}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the demo and the pages of notebooks, and name any other file outside docs/ instead of linking it."""

    def name(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[2]))
        if target.startswith(DEMO):
            return f"[{match[1]}](play/{posixpath.basename(target)})"
        return match[0] if target.startswith("docs/") else f"{match[1]} (`{target}` in the repository)"

    if not page.file.src_uri.startswith("notebooks/"):
        markdown = markdown.replace(".ipynb)", ".md)")
    return LINK.sub(name, markdown)


def notebook_page(notebook: File) -> str:
    """The cells of a notebook as Markdown, with a link to the notebook below its title."""
    cells = json.loads(notebook.content_string)["cells"]
    code = {"markdown": "{}", "code": "```python\n{}\n```"}
    title, *parts = [code[cell["cell_type"]].format("".join(cell["source"])) for cell in cells]
    heading, _, rest = title.partition("\n")
    name = posixpath.basename(notebook.src_uri)
    return (
        "\n\n".join([heading, f"This page is the notebook [{name}]({name}) without its outputs.", rest, *parts]) + "\n"
    )


def packages() -> dict[str, list[str]]:
    """The modules of every package, by the name of the package."""
    found: dict[str, list[str]] = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if not parts[-1].startswith("_"):
                found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return dict(sorted(found.items())) | {"train": ["train"]}


def slug(text: str) -> str:
    """The anchor of a heading, as GitHub makes it, so that links hold here and there."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]*>", "", text).lower()).replace(" ", "-")
