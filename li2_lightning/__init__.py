"""Watch features emerge while a two-layer network learns group arithmetic (the Li2 theory of grokking)."""

__version__ = "0.1.0"
