# make up     start Tandem on this machine and show one answer
# make test   all tests
# make check  formatting, types, import rules, generated code
# The virtual environment is .venv; it is brought up to date only when pyproject.toml, .ci/venv, the C++ sources or this
# folder's place change.

PYTHON ?=
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=
export PYTHON TORCH_VERSION TORCH_INDEX

KEY := $(shell (cat pyproject.toml .ci/venv kernels/native/*.cpp kernels/native/*.h; pwd -P; echo "$$TORCH_VERSION") | cksum | tr ' ' -)
READY := .venv/.ready-$(KEY)
BIN := .venv/bin

.PHONY: up down test check stubs venv clean
.DEFAULT_GOAL := up

up: $(READY)
	$(BIN)/python -m tandem.cli.main up

down: $(READY)
	$(BIN)/python -m tandem.cli.main down

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

stubs: $(READY)
	$(BIN)/python protos/generate.py

venv: $(READY)

$(READY):
	.ci/venv
	rm -f .venv/.ready-*
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
