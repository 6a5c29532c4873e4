# `make demo` and `make test` work on a fresh machine with Python >= 3.11; both make .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

.PHONY: demo train-demo test test-slow bench lint typecheck clean

demo: $(DEMO_STAMP)
	$(BIN)/fate-gym eval --config demo
	$(BIN)/fate-gym leaderboard build runs/demo --out runs/demo-site

# glibc would hand each large tensor back to the kernel and fetch it again: several times slower for small batches.
train-demo: export MALLOC_MMAP_THRESHOLD_ = 4294967296
train-demo: export MALLOC_TRIM_THRESHOLD_ = 17179869184
train-demo: export MALLOC_TOP_PAD_ = 268435456
train-demo: $(STAMP)
	$(BIN)/fate-gym train --config fate-tiny --out runs/fate-tiny

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not bench" -n auto --dist loadscope --cov --cov-report=term

test-slow: $(STAMP) lint typecheck
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal
	$(BIN)/python -m pytest -m bench

bench: $(STAMP)
	$(BIN)/python -m pytest -m bench -s

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Checkers do not follow the mapping of folders to packages, so what is checked is what is installed.
typecheck: $(STAMP)
	rm -rf build/typecheck
	$(BIN)/pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml fate_gym

$(DEMO_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

# torch first and by version: the newest build, which another package would ask for, brings gigabytes of CUDA.
$(STAMP): $(DEMO_STAMP)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
