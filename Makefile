# `make demo` and `make test` create what they need on a fresh machine, from the pins in constraints.txt, and reinstall only
# when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Threads of one test process; pytest-xdist runs one process per core.
export OMP_NUM_THREADS_TEST ?= 1

.PHONY: demo test mutants lint overhead clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/diffusional demo

test: $(READY)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TEST) $(BIN)/python -m pytest -q -n auto

mutants: $(READY)
	$(BIN)/python tools/mutants.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

overhead: $(READY)
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
