"""Hooks of mkdocs (mkdocs.yml): the API reference, the demo, links that leave docs/, and anchors as on GitHub."""

from __future__ import annotations

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
    """Add a page for each package, and the demo as `play/`."""
    for path in (ROOT / DEMO).iterdir():
        files.append(File.generated(config, f"play/{path.name}", content=path.read_text(encoding="utf-8")))
    for name, modules in packages().items():
        text = f"# {name}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the demo in the site, and name any other file outside docs/ instead of linking it."""

    def name(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[2]))
        if target.startswith(DEMO):
            return f"[{match[1]}](play/{posixpath.basename(target)})"
        return match[0] if target.startswith("docs/") else f"{match[1]} (`{target}` in the repository)"

    return LINK.sub(name, markdown)


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
