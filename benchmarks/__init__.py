"""Ratios of times and memory, measured side by side in one run; `make bench` measures all."""
