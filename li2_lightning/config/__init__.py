"""The typed config of a run, and the folder with its presets."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The folder ``configs``: a wheel installs it inside this package; in a checkout it lies beside this package."""
