# clinstack: `make` alone lists the targets.
#   make demo ARGS=--all-tasks       ARGS reaches demo, test, test-all, sbom and audit-dependencies
#   make test PYTHON=python3.12      the Python that .venv is made with

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all lint format docs sbom audit-dependencies clean clean-all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The demo needs no development tools; where they are installed already, that installation serves.
demo: $(if $(wildcard $(VENV)/.installed),$(VENV)/.installed,$(VENV)/.installed-demo) ## the two-step pipeline on the embedded model and a synthetic cohort
	$(BIN)/clinstack demo $(ARGS)

test: $(VENV)/.installed ## the quick tests, a process for each core, at most four
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-all: $(VENV)/.installed ## all tests, minutes long ones too
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## let ruff mend layout and imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## the documentation, into site/
	$(BIN)/mkdocs build --strict

sbom: $(VENV)/.installed ## what clinstack needs to run and the models that come with it: sbom.cdx.json (CycloneDX)
	$(BIN)/python scripts/sbom.py $(ARGS)

audit-dependencies: $(VENV)/.installed ## known vulnerabilities of the pinned versions; asks pypi.org
	@$(BIN)/python scripts/audit_dependencies.py $(ARGS)

clean: ## remove build products, caches and runs/demo
	rm -rf build dist site sbom.cdx.json runs/demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## the same, and .venv
	rm -rf $(VENV)

# One stamp for each set of packages. It goes first and comes back last: an installation that breaks off leaves
# none, and the next `make` tries again. A .venv whose pip does not answer is a broken one and is made anew.
define install
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null 2>&1 || \
	    { echo "make: there is no $(PYTHON) here; name a Python of 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: clinstack needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.11 ..." >&2; exit 2; }; \
	  $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(1)'
	@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,.[dev])

$(VENV)/.installed-demo: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	$(call install,.[docs])
