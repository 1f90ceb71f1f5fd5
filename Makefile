# `make demo` and `make test` create what they need on a fresh machine, from the pins in constraints.txt, and reinstall only
# when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Threads of one test process; pytest-xdist runs one process per core.
export OMP_NUM_THREADS_TEST ?= 1

.PHONY: demo test mutants random-mutants digest lint overhead clean
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

# Plant the known faults of tools/faults.py, one at a time; every one must turn a test red.
mutants: $(READY)
	$(BIN)/python tools/mutants.py

# Draw N mutants of the mathematical files blindly and list those that no test notices, e.g. `make random-mutants N=20 SEED=3
# ONLY=models/`. SEED repeats a draw.
N ?= 60
SEED ?= 0
ONLY ?=
random-mutants: $(READY)
	$(BIN)/python tools/random_mutants.py -n $(N) --seed $(SEED) --only '$(ONLY)'

# What did a change alter? `make digest OUT=before.json` before it, `make digest AGAINST=before.json` after it.
digest: $(READY)
	$(BIN)/python tools/digest.py $(if $(OUT),--out $(OUT)) $(if $(AGAINST),--against $(AGAINST))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

overhead: $(READY)
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
