"""The summary of a run on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from li2_lightning.runs.wandb import sync_command
from li2_lightning.theory.stages import COUPLING, INDEPENDENCE, PEAK

COLUMNS = 80
STAGE_NAMES = {1: "I lazy", 2: "II independent", 3: "III interactive"}


def render_summary(summary: dict[str, Any]) -> RenderableType:
    """The summary as text and a table for the terminal."""
    final = summary["final"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("accuracy reached")
    for level in summary["first_step"]["train"]:
        table.add_column(level, justify="right")
    table.add_column("at the end", justify="right")
    table.add_column("loss", justify="right")
    for split, steps in summary["first_step"].items():
        reached = ["never" if step is None else f"step {step}" for step in steps.values()]
        numbers = [f"{final[name]:.4g}" if name in final else "–" for name in (f"{split}/accuracy", f"{split}/loss")]
        table.add_row(split, *reached, *numbers)
    lines: list[RenderableType] = [Text(verdict(summary), style="bold"), table, *_stage_lines(summary["stages"])]
    lines.append(Text(f"{final['step']} steps, {summary['wall_time_s']:.1f} s, {summary['steps_per_second']} steps/s"))
    # A run of an earlier release has no seconds.
    lines += [Text(split_of_time(summary["seconds"]))] if "seconds" in summary else []
    return Group(*lines)


def split_of_time(seconds: dict[str, float]) -> str:
    """The seconds of each part, the longest first; those that do not fit into 80 columns are one sum."""
    parts = sorted(((part, value) for part, value in seconds.items() if value >= 0.05), key=lambda part: -part[1])
    for count in range(len(parts), -1, -1):
        rest = sum(seconds.values()) - sum(value for _, value in parts[:count])
        shown = [*parts[:count], *([("rest", rest)] if rest >= 0.05 else [])]
        line = "Seconds: " + ", ".join(f"{part} {value:.1f}" for part, value in shown)
        if len(line) <= COLUMNS:
            break
    return line


def where_to_look(directory: Path) -> list[str]:
    """The files, and the commands that show and sync the W&B run."""
    lines = [f"Files: {directory}"]
    if (directory / "wandb").is_dir():
        lines.append(f"Look:  wandb leet {directory / 'wandb'}")
    if (command := sync_command(directory)) is not None:
        lines.append(f"Sync:  {command}")
    return lines


def print_summary(summary: dict[str, Any], directory: Path) -> None:
    """Print the summary and `where_to_look` on stdout."""
    console = Console()
    console.print(render_summary(summary))
    for line in where_to_look(directory):
        # A command is copied from the terminal, so it is never broken into lines.
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def describe_transition(entry: dict[str, Any]) -> str:
    """One line for an entry of stages.json, with the numbers that decided the transition."""
    evidence = entry["evidence"]
    peak = f", peak {evidence[PEAK]:.2f}" if entry["from"] == 2 or entry["caveat"] else ""
    decided = f"independence {evidence[INDEPENDENCE]:.2f}{peak}, coupling {evidence[COUPLING]:.2f}"
    caveat = f"; {entry['caveat']}" if entry["caveat"] else ""
    return f"step {entry['step']}: {entry['from'] * 'I'} → {STAGE_NAMES[entry['to']]} ({decided}{caveat})"


def _stage_lines(stages: dict[str, Any] | None) -> list[Text]:
    if stages is None:
        return []
    lines = [Text(describe_transition(entry)) for entry in stages["events"]]
    if stages["stalled"]:
        lines.append(Text("stalled in stage II: G_F lost both alignments, and no stage III follows", style="yellow"))
    elif not lines:
        lines.append(Text("no stage transition: the run ended in stage I"))
    return lines


def verdict(summary: dict[str, Any]) -> str:
    """One sentence: whether the network memorized, kept that and generalized, or why the run diverged."""
    if summary["status"] == "diverged":
        return str(summary["reason"])
    train, test = (summary["first_step"][split]["0.99"] for split in ("train", "test"))
    trained, tested = (summary["final"][f"{split}/accuracy"] for split in ("train", "test"))
    if train is None:
        return f"It has not memorized the training rows: training accuracy {trained:.2f} at the end."
    if trained < 0.5:
        return f"It memorized at step {train} and lost that again: training accuracy {trained:.2f} at the end."
    if test is None:
        return f"It memorized at step {train} and has not generalized: test accuracy {tested:.2f} at the end."
    return f"It memorized at step {train} and generalized at step {test}."
