"""The features of a run as a film.

    li2 animate RUN -o FILE [-o FILE] [--fps N]

Shows the irreps of all nodes, the accuracy and the stage, and the weights of a few nodes, with one frame for each
snapshot of the run. Snapshots are spaced evenly on a logarithmic scale of the step, so time runs faster and faster.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from li2_lightning.analysis.motion import Film
from li2_lightning.cli.commands import add_outputs, check_outputs, optional_module
from li2_lightning.errors import InputError
from li2_lightning.files import replacing
from li2_lightning.runs.load import load_run

SUFFIXES = (".mp4", ".gif")
HOLD_S = 2.5
"""Seconds for which the last frame stays."""


def save_film(frames: Sequence[Image.Image], path: Path, fps: int) -> Path:
    """Write the frames as MP4 (H.264) or as a GIF that repeats, by the suffix, and return ``path``.

    Raises:
        InputError: the extra ``report`` is not installed, and the film is an MP4.
    """
    held = [*frames, *[frames[-1]] * round(HOLD_S * fps)]
    with replacing(path) as temporary:
        if path.suffix == ".mp4":
            ffmpeg = optional_module("imageio_ffmpeg", "An MP4")
            writer = ffmpeg.write_frames(temporary, frames[0].size, fps=fps, quality=7, output_params=["-f", "mp4"])
            writer.send(None)
            for frame in held:
                writer.send(np.asarray(frame).tobytes())
            writer.close()
        else:
            # One palette for all frames, from the last: it has every colour, and a pixel that stays costs nothing.
            palette = frames[-1].quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
            small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
            shown = [*[1000 // fps] * (len(small) - 1), round(1000 * HOLD_S)]
            small[0].save(
                temporary, "GIF", save_all=True, append_images=small[1:], duration=shown, loop=0, optimize=True
            )
    return path


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 animate``."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--fps", metavar="N", type=int, default=8, help="frames a second (default 8)")
    add_outputs(parser, SUFFIXES)
    given = parser.parse_args(arguments)

    check_outputs(given.output, SUFFIXES)
    if not 1 <= given.fps <= 60:
        raise InputError(f"--fps {given.fps} does not fit; it is an integer from 1 to 60.")
    frames = list(Film(load_run(given.run)).frames())
    for path in given.output:
        print(save_film(frames, path, given.fps))
