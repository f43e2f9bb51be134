# Everything makes .venv first and installs what it needs: `make train` and `make test` work on a fresh machine with
# Python 3.11 to 3.13 and make.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LI2 := $(VENV)/bin/li2
# Tests run in two processes of one thread each, so that they do not fight over two cores.
PYTEST := $(RUN) -m pytest -n 2
# What `make train` and `make figures` pass on to li2 train, for example: make train ARGS="seed=3 max_steps=200"
ARGS ?=

.PHONY: venv versions train test test-slow lint bench verify figures docs clean

venv: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What lint and the tests ran on, for whoever reads their output.
versions: venv
	@$(RUN) -c 'import platform, importlib.metadata as m; print(f"Python {platform.python_version()}", *(f"{n} {m.version(n)}" for n in ("torch", "lightning", "hydra-core", "wandb", "numpy")), sep=", ")'

train: venv
	$(LI2) train $(ARGS)

test: versions
	$(PYTEST) -m "not slow"

test-slow: versions
	$(PYTEST) -m slow

lint: versions
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

verify: venv
	$(LI2) verify

bench: venv
	$(RUN) -m benchmarks

# Every quick preset as its sweep, and its picture; what is finished is not run again. One of them: make figure-NAME.
figures: $(patsubst configs/experiment/%_quick.yaml,figure-%,$(wildcard configs/experiment/*_quick.yaml))

figure-%: venv
	-$(LI2) train -m experiment=$*_quick $(ARGS)  # a sweep may hold settings that diverge; it lists them
	mkdir -p outputs/figures
	$(LI2) figures $*_quick outputs/$*_quick -o outputs/figures/$*.png

# The site, into build/docs; a warning is an error. Search needs a server: python -m http.server -d build/docs
docs: venv
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --site-dir build/docs

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
