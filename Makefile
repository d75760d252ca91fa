# Everything sets itself up: each target installs what it needs into .venv first.
# Settings: PYTHON (any Python from 3.11 on), WORKERS (parallel test processes), PYTEST_ARGS, BENCH_ARGS, FULL.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint test-gpu test-containers bench-served bench-quality bench-fidelity bench-experiments bench-speed
.PHONY: bench-calibration bench-serving lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Install fiberwalk with everything for building and developing into .venv

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fiberwalk needs Python 3.11 or newer, and '$(PYTHON)' is not; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[build,bench,dev]'
	@# The peers' libraries ask for torchvision and use none of it; one built for another torch breaks their import.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

demo: $(INSTALLED) ## Build two models from real data, serve them and ask (DEMO_EXIT=1 stops the server at the end)
	$(BIN)/python -m fiberwalk demo

lint: $(INSTALLED) ## Style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Small tensors on many threads are slower than on one, and the processes would fight for the cores.
test: export OMP_NUM_THREADS = 1
# The tests start hundreds of processes, which would compile all sources anew where Python may not keep what it compiled.
test: export PYTHONDONTWRITEBYTECODE =
test: lint ## Lint, and all tests but those of the containers
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-gpu: $(INSTALLED) ## What needs a CUDA device, on one
	$(BIN)/pytest -o addopts=--import-mode=importlib tests/gpu $(PYTEST_ARGS)

test-containers: $(INSTALLED) ## Build the images, bring docker-compose.yml up and test it on a Docker engine
	BIN=$(BIN) docker/test.sh

bench-served: $(INSTALLED) ## Build, serve and score many data sets (hours; BENCH_ARGS='--sets uci_yacht --splits 1')
	$(BIN)/python -m benchmarks.served $(BENCH_ARGS)

bench-quality: $(INSTALLED) ## Test NLL of the posterior beside every peer (half an hour; FULL=1: all sets and splits, many hours)
	$(BIN)/python -m benchmarks.quality $(if $(FULL),--full) $(BENCH_ARGS)

bench-calibration: $(INSTALLED) ## Coverage, widths, OOD flags and the monitor beside conformal peers (half an hour; FULL=1: all sets and splits)
	$(BIN)/python -m benchmarks.calibration $(if $(FULL),--full) $(BENCH_ARGS)

bench-fidelity: $(INSTALLED) ## Distance of every method's posterior from Hamiltonian Monte Carlo's (half an hour)
	$(BIN)/python -m benchmarks.fidelity $(BENCH_ARGS)

bench-speed: $(INSTALLED) ## Time of a build beside that of the MAP network, and of sampling beside a plain loop (a quarter of an hour)
	$(BIN)/python -m benchmarks.speed $(BENCH_ARGS)

bench-serving: $(INSTALLED) ## What 32 samples cost, in process, over HTTP and beside other servers, and a soak (an hour)
	$(BIN)/python -m benchmarks.serving $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.serving.curves
	$(BIN)/python -m benchmarks.serving.http
	$(BIN)/python -m benchmarks.serving.wire
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[peers]'
	$(BIN)/python -m benchmarks.serving.peers
	$(BIN)/python -m benchmarks.serving.soak
	$(BIN)/python -m benchmarks.serving.page

bench-experiments: $(INSTALLED) ## The paper's experiments and ablations, with docs/experiments.md (half an hour; BENCH_ARGS=snelson)
	$(BIN)/python -m benchmarks.experiments $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.experiments.page

lock: ## Write docker/*.lock anew: the exact versions that the images install
	PYTHON=$(PYTHON) docker/lock.sh

clean: ## Remove .venv, caches and build output (models and data stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
