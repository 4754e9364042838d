# make sample   installs into .venv and animates the bundled picture with the bundled motion
# make quick    the tests that compile nothing, in a minute on two idle cores
# make test     installs the test extra and runs the test suite
# make slow     the tests with full-size models (needs 16 GB of memory and patience)
# make lint     ruff
# make types    basedpyright, the package's types
# make docs     builds the documentation into site/; a warning is an error
# make wheel    builds dist/animate_jax-*.whl

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: sample quick test slow lint types docs wheel
.DELETE_ON_ERROR:

sample: .venv/installed
	$(BIN)/python sample.py

quick: .venv/tested
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not compiles"

test: .venv/tested
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder  # libtpu is there for its compiler, and looks for TPUs

slow: .venv/tested
	$(BIN)/python -m pytest -q -m slow

lint: .venv/tested
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: .venv/tested
	$(BIN)/basedpyright

docs: .venv/tested
	$(BIN)/python -m mkdocs build --quiet --strict

wheel: .venv/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# The CPU build of torch, pinned: an open range would pull gigabytes of CUDA libraries.
.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
