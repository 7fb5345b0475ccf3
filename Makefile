# `make demo` and `make test` are all that most people need; each makes its own .venv first.

.DEFAULT_GOAL := help
.PHONY: demo test lint format bench clean help

# The first Python from 3.11 on that can make a virtual environment; or `make PYTHON=python3.12`.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  $$name -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$name && break; done)
# The newest tested torch. On Linux PyPI's build brings several GB of CUDA; without a GPU take
# `make TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'`.
TORCH ?= torch==2.13.0

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# Small tensors only: more threads than one would wait for each other.
test: export OMP_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1

demo: $(INSTALLED)  ## play Space Invaders offline; writes demo.mp4 and demo.png
	$(BIN)/objrl demo

test: lint  ## everything that CI runs: lint, types, tests
	$(BIN)/pytest

lint: $(INSTALLED)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made again whenever pyproject.toml changes.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/pip || test -n "$(PYTHON)" || \
	  { echo "objrl needs Python 3.11 or newer, with venv: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev]'
	@touch $@

bench: $(INSTALLED)  ## measure speed and memory, some ten minutes; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks

clean:  ## remove what tools and the demo wrote; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10
