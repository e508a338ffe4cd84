# Every target sets up .venv first; nothing else is needed on a fresh machine but python3 (>= 3.11), git and make.
PYTHON ?= python3
PAPER ?= sparsellm
ITEM ?= table2
SCALE ?= embedded
CLUSTER ?= local
OVERRIDES ?=
MODEL ?=
RECORD ?=
OUT ?=
# names of files: neither make nor a shell reads anything into them
override RECORD := $(value RECORD)
override OUT := $(value OUT)
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m harness
STUDY = study=$(PAPER)_$(ITEM) scale=$(SCALE) cluster=$(CLUSTER) $(OVERRIDES)
export RECORD OUT
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup test test-kills test-inputs test-published check reproduce reproduce-% plan status retry tables compare publish prefetch allocation embedded bench docs

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-20s %s\n", $$1, $$2}'

setup: $(READY) ## the virtual environment .venv, from pinned versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

reproduce-%: $(READY) ## run what a table or figure lacks and print it: make reproduce-table2 [PAPER=sparsellm] [SCALE=embedded|proxy|real|paper]
	@$(RUN) study=$(PAPER)_$* scale=$(SCALE) cluster=$(CLUSTER) $(OVERRIDES)

reproduce: $(READY) ## the same for any study: PAPER=… ITEM=table2|figure1|… SCALE=… CLUSTER=local|joblib|slurm|ray
	@$(RUN) $(STUDY)

plan: $(READY) ## the points of a study: done, to do, skipped and why, with time and memory
	@$(RUN) plan $(STUDY)

status: $(READY) ## how far a study is, from its files
	@$(RUN) status $(STUDY)

retry: $(READY) ## run the failed and lost points of a study again
	@$(RUN) retry $(STUDY)

tables: $(READY) ## table and figure of a study from its records alone
	@$(RUN) tables $(STUDY)

compare: $(READY) ## every cell beside the reported number, with verdict and reason
	@$(RUN) compare $(STUDY)

publish: $(READY) ## copy records, table and figure of a study to results/published
	@$(RUN) publish $(STUDY)

prefetch: $(READY) ## download models and texts of a study, or MODEL=<name of conf/model>, once, so that runs work offline
	@$(RUN) prefetch $(if $(MODEL),model=$(MODEL) $(OVERRIDES),$(STUDY))

allocation: $(READY) ## what RECORD=<record or allocation.json> asks of every matrix; OUT=<folder> keeps table and figure
	@$(RUN) allocation $(if $(RECORD),"$$RECORD") $(if $(OUT),"$$OUT")

embedded: $(READY) ## make the embedded language, texts, tasks and models again
	@$(VENV)/bin/python -m harness.embedded

docs: $(READY) ## docs/methods.md and docs/files.md, from docstrings
	@$(VENV)/bin/python -m harness.cli.methods > docs/methods.md && $(VENV)/bin/python -m harness.cli.files > docs/files.md

bench: $(READY) ## the performance tables
	@$(VENV)/bin/python -m benchmarks.stages

test: $(READY) ## run the tests, with coverage of harness/
	@$(VENV)/bin/python -m pytest

test-kills: $(READY) ## kill a small study fifty times and compare its table (make test does so five times)
	@HARNESS_KILLS=50 $(VENV)/bin/python -m pytest -n 0 --no-cov -s tests/safety/test_kills.py

test-inputs: $(READY) ## type 2,500 odd command lines; each is one sentence or a clean run (make test types 60)
	@HARNESS_INPUTS=2500 $(VENV)/bin/python -m pytest -n 0 --no-cov tests/safety/test_inputs.py

test-published: $(READY) ## make every published table and figure from its records and compare (make test does so for two)
	@HARNESS_PUBLISHED=all $(VENV)/bin/python -m pytest -n 0 --no-cov tests/report/test_published.py

check: $(READY) ## lint, types, import rules
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports
