# gradpath: every target sets up .venv by itself and is quick the second time.
#
#   make demo       train the flight policy, evaluate it in unseen worlds, write runs/demo/report.html
#   make test       the suite without slow and GPU tests      make test-slow   the slow ones
#   make lint       ruff and mypy                             make format      let ruff rewrite the sources
#   make bench      every benchmark                           make docs        the documentation, in site/
#   make clean      remove .venv and everything built; runs/ is kept
#
# Variables: PYTHON (3.10 or newer), RUN (folder of the demo), DEMO_ARGS ("--speed 6 --iterations 400"),
# PYTEST_ARGS, TORCH_INDEX (a package index for torch; on Linux without an NVIDIA driver it is PyTorch's
# CPU index, so that no CUDA libraries are fetched; set it empty to use only your own indexes).

PYTHON ?= python3
RUN ?= runs/demo
DEMO_ARGS ?=
PYTEST_ARGS ?=
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname)),$(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu))

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format bench docs clean

help:
	@sed -n 's/^#//p' Makefile

demo: $(VENV)/.base
	$(BIN)/gradpath train flight --run $(RUN) $(DEMO_ARGS)
	$(BIN)/gradpath evaluate $(RUN)
	$(BIN)/gradpath report $(RUN)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu" $(PYTEST_ARGS) || [ $$? -eq 5 ]  # 5: no test is marked slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p gradpath

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.base
	@set -e; for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file; done

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp file per set of extras. torch goes in first and alone: what follows then finds it installed.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'gradpath needs Python 3.10 or newer; name one with "make PYTHON=/path/to/python3.11 ..."' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo 'cannot create .venv; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo "setting up $(VENV) (once; torch is a large download)"
	$(PIP) install -q -c constraints.txt setuptools
	$(PIP) install -q --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[test,lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@
