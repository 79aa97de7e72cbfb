# Everything a person does here. `make up` and `make test` need nothing but Python 3.11 and this folder.

# The distribution's first: it is built with profile-guided optimization, which pyenv's is not unless told to, and a
# busy mesh takes a fifth less CPU with it (docs/performance.md).
PYTHON  ?= $(or $(shell for python in /usr/bin/python3.11 python3.11; do \
             $$python -c 'import ensurepip, venv' 2>/dev/null && echo $$python && break; done),python3.11)
VENV    := .venv
BIN     := $(VENV)/bin
LOCK    := deploy/requirements.lock
STAMP   := $(VENV)/.lock-sha256
PYSRC   := libs services tests protos/generate.py bazel deploy

.PHONY: setup up down test test-vllm test-faults check format bench soak scale proto lock bazel vllm clean

setup: $(STAMP)  ## the environment, exactly as locked

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "headrace: $(PYTHON) with venv is needed (Debian: apt install python3.11 python3.11-venv)"; exit 1; }
	@echo "headrace: installing the locked environment into $(VENV) (about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@sha256sum $(LOCK) | cut -d' ' -f1 > $@

up: setup  ## the whole mesh with a real model, in the foreground; arguments in ARGS="--executors 2"
	@$(BIN)/headrace up $(ARGS)

down:  ## stops what `make up ARGS=--detach` started
	@$(BIN)/headrace down

test: setup  ## unit, rpc and system tests; one suite: ARGS=tests/unit
	@$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests.suites)

test-vllm: vllm  ## the vLLM engine, for real: installs 3.5 GB first; six minutes
	@$(BIN)/python -m pytest tests/vllm $(ARGS)

test-faults: setup  ## placement under random kills, invariants checked after each; ARGS="--faults 50 --seed 1"
	@$(BIN)/python -m tests.system.placement_faults $(ARGS)

check: setup  ## style, types, layers, protos
	@$(BIN)/ruff check $(PYSRC)
	@$(BIN)/ruff format --check $(PYSRC)
	@$(BIN)/mypy libs services
	@$(BIN)/lint-imports
	@cd protos && ../$(BIN)/buf lint
	@if git rev-parse -q --verify main >/dev/null; then \
	  cd protos && ../$(BIN)/buf breaking --against "../.git#branch=main,subdir=protos"; fi

format: setup  ## rewrites the sources in the house's style
	@$(BIN)/ruff check --fix -q $(PYSRC); $(BIN)/ruff format -q $(PYSRC)

bench: setup  ## measures the lanes and prints a table; arguments in ARGS="--rounds 5"
	@$(BIN)/python -m tests.bench.lanes $(ARGS)

soak: setup  ## two hours of mixed requests at half load; shorter: ARGS="--minutes 30"
	@$(BIN)/python -m tests.bench.soak $(ARGS)

scale: setup  ## what a token costs with how many executors, requests in flight, tenants, instances
	@$(BIN)/python -m tests.bench.scale $(ARGS)

vllm: setup  ## an environment with vLLM for executors with HEADRACE_ENGINE=vllm; prints its interpreter
	@$(BIN)/python -m services.executor.vllm.environment

proto: setup  ## generates the Python stubs beside their protos
	@$(BIN)/python protos/generate.py

lock: setup  ## resolves pyproject.toml anew; versions and hashes only, no addresses
	@$(BIN)/uv pip compile -q --group dev --generate-hashes --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_36 pyproject.toml -o $(LOCK)

bazel: setup  ## builds and unit-tests with Debian's Bazel, offline
	@bazel test //...

clean:  ## removes everything that git does not know
	git clean -fdxq -e .headrace
