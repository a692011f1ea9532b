# A thin layer: tools/setup_env.py makes the environment, tools/prepare_data.py fetches the data.
PYTHON ?= python3
VENV = .venv
DEMO_ARGS =
BENCHMARK_ARGS =
GPU_ARGS =
TEST_ARGS = -n 2 --dist worksteal

# `=`, not `?=`: only the command line chooses the environment that packages are added to.
override VENV := $(patsubst ~/%,$(HOME)/%,$(VENV))
PY = "$(VENV)/bin/python"

# The environment must see only its own packages, not those of the user's shell or home.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH
export PYTHONNOUSERSITE = 1

.PHONY: help setup demo benchmarks test test-gpu lint clean

help: ## this text
	@echo "make TARGET [NAME=value ...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'
	@echo "Values:"
	@echo "  PYTHON=python3     makes the environment; 3.10 or newer"
	@echo "  VENV=.venv         another environment, e.g. one with your own Detectron2: its packages"
	@echo "                     stay as they are, what is missing is added"
	@echo "  DEMO_ARGS=         for tools/run_demo.py"
	@echo "  BENCHMARK_ARGS=    for python -m benchmarks"
	@echo "  GPU_ARGS=          for python -m benchmarks.gpu, such as the names of some checks"
	@echo "  TEST_ARGS='-n 2 --dist worksteal'  for pytest"
	@echo "pip's own variables pass through, e.g. PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_PROXY or"
	@echo "PIP_CACHE_DIR: a mirror nearby, or an index with builds of torch without CUDA (0.2 GB"
	@echo "instead of 3 to download, and then SETUP_DISK_GB=3 space is enough instead of 9)."

setup: ## .venv with all libraries and Detectron2, the data, the pretrained backbone
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "error: atss_d2 needs Python 3.10 or newer, but PYTHON=$(PYTHON) says:" \
	    "`$(PYTHON) --version 2>&1`; name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)"
	@$(PY) tools/prepare_data.py

demo: setup ## set up, train ATSS on real photographs, evaluate; pictures in output/demo
	$(PY) tools/run_demo.py $(DEMO_ARGS)

benchmarks: setup ## set up, measure against what others use; see docs/performance.md
	$(PY) -m benchmarks $(BENCHMARK_ARGS)

test: setup lint ## set up, linter, tests
	$(PY) -m pytest $(TEST_ARGS)

test-gpu: setup ## what only a GPU can show, in ten minutes; the table goes to docs/performance.md
	$(PY) -m benchmarks.gpu --document docs/performance.md $(GPU_ARGS)

lint: setup ## linter and formatting, nothing is changed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## remove build products and caches; .venv, datasets and output stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find ablations atss_d2 benchmarks configs reproduction tests tools -name __pycache__ -prune -exec rm -rf {} +
