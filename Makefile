# Each target sets up what it needs. `make` alone says what there is.
SHELL := /bin/bash
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE # TensorFlow imports in 5 s with compiled files, in 12 s without
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNIT := -n 2 --dist worksteal tests/unit
WHOLE := -n 2 --dist loadfile tests/flows tests/e2e # the tests of one file share servers
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make pins" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help setup run test up check bench clean pins unit

help: ## say what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 14

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  f"homeostat needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[^ ]+' requirements/dev.txt)"

$(STAMP): requirements/dev.txt pyproject.toml hatch_build.py $(wildcard homeostat/serving/protos/*.proto) | $(BIN)/uv
	@echo "installing the pinned packages into $(VENV) (about 3 GB; seconds when cached)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## make the virtual environment and install the pinned packages

run: $(STAMP) ## live one model's life on real data (PROJECT=digits KEEP=1)
	@$(BIN)/python -m deployments.life $(if $(PROJECT),$(PROJECT),digits) $(if $(KEEP),--keep)

up: $(STAMP) ## run Prefect, MLflow, model server, gateway and worker until Ctrl-C
	@$(BIN)/python -m deployments.stack

check: $(STAMP) ## format, lint, types, walls
	@$(BIN)/ruff format --check --quiet . || { echo "mend it with: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet . && echo "ruff: clean"
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

unit: $(STAMP) ## unit tests alone
	@$(BIN)/pytest -q $(UNIT)

test: $(STAMP) ## every test: unit tests, then flows and servers
	@echo "tests/unit" && $(BIN)/pytest -q $(UNIT)
	@echo "tests/flows tests/e2e" && $(BIN)/pytest -q $(WHOLE)

bench: $(STAMP) ## benchmarks, as ratios, side by side
	@$(BIN)/python -m benchmarks

pins: | $(BIN)/uv ## compile requirements/*.txt anew from pyproject.toml
	@$(COMPILE) pyproject.toml --extra serve --extra grpc --extra otel --extra train --extra monitor --extra flows --extra gateway --extra postgres --group dev --output-file requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra serve --output-file requirements/serve.txt
	@$(COMPILE) pyproject.toml --constraint requirements/dev.txt --extra serve --extra grpc --extra otel --extra postgres --output-file requirements/server.txt
	@$(COMPILE) --group build --constraint requirements/dev.txt --output-file requirements/build.txt

clean: ## remove what the commands made: state, caches, virtual environment
	rm -rf $(VENV) var dist homeostat/serving/protos/*.binpb .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find mlruns -mindepth 1 ! -name README.md -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
