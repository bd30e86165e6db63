# Everything runs from .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-faults test-slurm nightly fuzz lint format docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "difftumor needs Python 3.11 or newer; choose one with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[train,test,lint,docs]'
	@touch $@

install: $(INSTALLED) ## Make .venv and install difftumor in place, with all that training, tests and checks need

demo: $(INSTALLED) ## All stages on a phantom, then runs/demo/report.html [CT= ORGANS= ORGAN= LABEL= ACCEPT_HU=1 FRESH=1]
	$(BIN)/python -m stages.demo $(if $(CT),--ct '$(CT)') $(if $(ORGANS),--organs '$(ORGANS)') \
	  $(if $(ORGAN),--organ '$(ORGAN)') $(if $(LABEL),--organ-label '$(LABEL)') $(if $(ACCEPT_HU),--accept-hu) $(if $(FRESH),--fresh)

PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

test: $(INSTALLED) ## Run the tests that are not slow
	$(PYTEST) -m 'not slow and not nightly and not slurm'

test-all: $(INSTALLED) ## Run all tests but the nightly ones and those on SLURM
	$(PYTEST) -m 'not nightly and not slurm'

test-faults: $(INSTALLED) ## Run all that does harm: kills, damage, full disks, signals, hostile files (docs/reliability.md)
	$(PYTEST) -m 'not nightly and not slurm' tests/faults $$($(BIN)/python -m tests.faults --elsewhere)

test-slurm: $(INSTALLED) ## Run the tests on SLURM: two nodes on this machine [root: installs SLURM with apt; else skips without it]
	@export PATH="$$PATH:/usr/sbin"; \
	if ! command -v slurmctld >/dev/null && command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
	  apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurmctld slurmd slurm-client munge || \
	    echo "apt could not install SLURM: its tests are skipped."; \
	fi
	$(PYTEST) -m 'slurm and not nightly'

nightly: $(INSTALLED) fuzz ## Run what takes minutes a test: stage 1 on two processes and on one; on SLURM, limits, a disturbed transfer; and fuzz
	$(PYTEST) -m nightly

fuzz: $(INSTALLED) ## Try thousands of inputs of the readers of files, 5000 for each
	$(PYTEST) tests/faults/test_fuzzing.py --hypothesis-profile=fuzz

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Write the API reference to build/api/index.html
	$(BIN)/python -m pdoc --docformat google --output-directory build/api difftumor

clean: ## Remove caches and builds; keeps .venv, runs and checkpoints
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
