# Everything from a fresh clone: `make demo` and `make test`. Second runs reuse the environment and the weights.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ENCODERS := yamnet minilm efficientnet-lite0
JUDGE := aisfx
SPEECH := dnsmos resemblyzer distillmos nsnet2 gtcrn

export OMP_NUM_THREADS ?= 1
export ONEDNN_MAX_CPU_ISA ?= AVX512_CORE_BF16

.PHONY: help demo test test-slow lint format bench env weights clean distclean

help:
	@echo "make demo       separate real recordings and write sounds and a report"
	@echo "make test       everything needed, the checks and the tests"
	@echo "make test-slow  the long tests"
	@echo "make lint       style, layers and types"
	@echo "make bench      our code against named peers"
	@echo "make clean      remove outputs and caches; make distclean also the environment"

demo: env
	@$(BIN)/auralign models download $(ENCODERS) > /dev/null
	@$(BIN)/python examples/demo.py

# The tests come last, so that the last lines are theirs.
test: lint weights
	@$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-slow: env weights
	@$(BIN)/python -m pytest -q -m slow

lint: env
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

format: env
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: env
	@for area in $$($(BIN)/auralign bench); do echo "== $$area" >&2; $(BIN)/auralign bench $$area || exit $$?; done

weights: env
	@$(BIN)/auralign models download $(ENCODERS) $(JUDGE) $(SPEECH) > /dev/null

env: $(READY)

# torch comes first and pinned: its CPU build is what an exact request finds, a looser one brings gigabytes.
# tinysoundfont names a sound-card library that rendering to arrays does not need, hence --no-deps.
$(READY): pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or newer, or set PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("make: %s is Python %d.%d; auralign needs 3.11 or newer: make PYTHON=python3.11" % ("$(PYTHON)", v[0], v[1]))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: no environment can be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "making the environment in $(VENV) (once, some minutes) …" >&2
	@$(PIP) install torch==2.13.0
	@$(PIP) install -e '.[dev,video,data]'
	@$(PIP) install --no-deps tinysoundfont==0.3.7
	@touch $@

clean:
	rm -rf build dist demo-out out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true

distclean: clean
	rm -rf $(VENV)
