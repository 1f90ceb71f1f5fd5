# `make demo` and `make test` create what they need on a fresh machine, from the pins in constraints.txt, and reinstall only
# when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Threads of one test process; pytest-xdist runs one process per core.
export OMP_NUM_THREADS_TEST ?= 1
# Compiled bytecode is kept, also where the environment forbids it: tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test fast docs readme results mutants mutants-changed random-mutants digest lint overhead clean
.DEFAULT_GOAL := demo

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)  ## train three models on real digits, and show their bounds
	$(BIN)/diffusional demo

test: $(READY)  ## run all tests, doctests included
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TEST) $(BIN)/python -m pytest -q -n auto

fast: $(READY)  ## run the quick tests of every package, in less than a minute
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TEST) $(BIN)/python -m pytest -q -n auto -m "not slow" $$(grep -v '^#' tests/fast.txt)

# Notebooks run while the pages are built; DIFFUSIONAL_DOCS_RUN=0 leaves that out. Warnings are errors.
docs: $(READY)  ## build the manual in build/docs, and run its notebooks
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

readme: $(READY)  ## run the README's code, and write its output into the README
	$(BIN)/python tools/readme.py

results: $(READY)  ## write the tables and figures of docs/results from the JSON of the benchmarks
	$(BIN)/python tools/results.py

# Plant the known faults of tools/faults/, one at a time; every one must turn a test red.
mutants: $(READY)  ## plant known faults, each of which must turn a test red
	$(BIN)/python tools/mutants.py

# Without `main` to compare with, as in a clone of main itself, the commit draws NUMBER of them.
NUMBER ?= 120
mutants-changed: $(READY)  ## plant the faults that your changes concern, and others up to NUMBER=, once all tests have passed
	$(BIN)/python tools/mutants.py --tested --changed --number $(NUMBER)

# Draw N mutants of the mathematical files blindly and list those that no test notices, e.g. `make random-mutants N=20 SEED=3
# ONLY=models/`. SEED repeats a draw.
N ?= 60
SEED ?= 0
ONLY ?=
random-mutants: $(READY)  ## change the mathematics blindly (N=, SEED=, ONLY=), and list what no test notices
	$(BIN)/python tools/random_mutants.py -n $(N) --seed $(SEED) --only '$(ONLY)'

# What did a change alter? `make digest OUT=before.json` before it, `make digest AGAINST=before.json` after it.
digest: $(READY)  ## record what numbers come out (OUT=), or compare with a record (AGAINST=)
	$(BIN)/python tools/digest.py $(if $(OUT),--out $(OUT)) $(if $(AGAINST),--against $(AGAINST))

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python tools/vocabulary.py

overhead: $(READY)  ## measure what the bound adds to a forward pass
	$(BIN)/python benchmarks/overhead.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
