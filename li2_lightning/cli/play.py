"""A small network that trains in the browser while its settings are moved.

    li2 play

The page is `li2_lightning/resources/play/`. It needs no network connection, and its numbers are those of this library.
"""

from __future__ import annotations

import webbrowser
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.resources import as_file, files


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 play``."""
    parser.parse_args(arguments)
    with as_file(files("li2_lightning") / "resources" / "play" / "index.html") as page:
        opened = webbrowser.open(page.as_uri())
        print(page.as_uri() if opened else f"Open {page.as_uri()} in a browser; none was found here.")
