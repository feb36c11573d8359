# Spendgate's front door. `make help` lists what there is; everything sets itself up.
#
# The environment lives in .venv and is made from the hashed lock files alone. .venv/.spendgate
# says which lock it was made from (and where: a moved checkout is installed again), so a
# second run starts at once. An environment made for the checks also serves the demo.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/sh

PYTHON ?= python3
PORT ?= 8000
JOBS ?= 2
# Files or options for pytest, say ARGS='tests/store -k reap'.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
# Taken as they are, whatever the caller's shell has set for another project.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH CONDA_PREFIX UV_PYTHON UV_PROJECT_ENVIRONMENT

# ------------------------------------------------------------------- set-up

# What an environment made from lock $(1) is labelled with.
label = { cat $(1) pyproject.toml | cksum; pwd -P; }

# Makes .venv hold lock $(1) and the project itself, unless it holds one of the locks $(2).
# The tests start hundreds of processes: they are spared compiling.
define ready
@set -eu; \
for lock in $(2); do \
  if [ -f $(VENV)/.spendgate ] && $(BIN)/python -c '' 2>/dev/null \
     && [ "$$($(call label,"$$lock"))" = "$$(cat $(VENV)/.spendgate)" ]; then exit 0; fi; \
done; \
say() { printf '\033[1m==> %s\033[0m\n' "$$*"; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "Spendgate needs Python 3.11 or newer, and '$(PYTHON)' is not that." >&2; \
  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
rm -f $(VENV)/.spendgate; \
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
  say "Creating $(VENV)"; rm -rf $(VENV); \
  $(PYTHON) -m venv $(VENV) || { \
    echo "Python's venv module is not complete here (Debian, Ubuntu: apt install python3-venv)." >&2; \
    exit 1; }; \
fi; \
cache="$${UV_CACHE_DIR:-$${XDG_CACHE_HOME:-$${HOME:-/nonexistent}/.cache}}"; \
if ! mkdir -p "$$cache" 2>/dev/null || [ ! -w "$$cache" ]; then export UV_NO_CACHE=1; fi; \
awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' $(1) >$(VENV)/uv.lock; \
wanted="$$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' $(1))"; \
if ! $(BIN)/python -m uv --version 2>/dev/null | grep -q "^uv $$wanted\b"; then \
  say "Installing uv $$wanted"; \
  $(RUN) pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement $(VENV)/uv.lock; \
fi; \
say "Installing the packages of $(1)"; \
$(RUN) uv pip sync --quiet $(if $(findstring dev,$(1)),--compile-bytecode) --python $(BIN)/python --require-hashes $(1); \
say "Installing Spendgate"; \
$(RUN) uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
$(call label,$(1)) >$(VENV)/.spendgate
endef

.PHONY: setup setup-dev
setup: ## Set up what running needs (done by itself when needed)
	$(call ready,requirements.lock,requirements-dev.lock requirements.lock)

setup-dev: ## Set up what the checks need (done by itself when needed)
	$(call ready,requirements-dev.lock,requirements-dev.lock)

# ------------------------------------------------------------- the dashboard

# node_modules/.installed says which lock its packages are of, node_modules/.built which sources
# dist/ was built from: both steps cost nothing when nothing has changed.
UI := frontend
ui_sources = find $(UI)/src $(UI)/public $(UI)/index.html $(UI)/*.json $(UI)/*.ts \
  -type f ! -name 'schema.d.ts' ! -name 'openapi.json' ! -name '*.test.*'

.PHONY: dashboard-packages
dashboard-packages:
	@set -eu; \
	node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || { \
	  echo "The dashboard is built with Node 20 or newer, and there is none here." >&2; exit 1; }; \
	wanted="$$(cat $(UI)/package-lock.json $(UI)/.npmrc | cksum)"; \
	[ "$$wanted" != "$$(cat $(UI)/node_modules/.installed 2>/dev/null)" ] || exit 0; \
	printf '\033[1m==> %s\033[0m\n' "Installing the dashboard's packages"; \
	cd $(UI) && npm ci --no-audit --no-fund --loglevel=error; \
	echo "$$wanted" >node_modules/.installed

.PHONY: dashboard
dashboard: dashboard-packages ## Build the dashboard (done by itself when needed)
	@set -eu; \
	wanted="$$($(ui_sources) | LC_ALL=C sort | xargs cksum | cksum)"; \
	if [ -f $(UI)/dist/index.html ] \
	   && [ "$$wanted" = "$$(cat $(UI)/node_modules/.built 2>/dev/null)" ]; then exit 0; fi; \
	printf '\033[1m==> %s\033[0m\n' 'Building the dashboard'; \
	rm -f $(UI)/node_modules/.built; \
	(cd $(UI) && node_modules/.bin/vite build --logLevel warn); \
	echo "$$wanted" >$(UI)/node_modules/.built

.PHONY: types
types: setup-dev dashboard-packages ## Make the dashboard's types from the server's own description
	@$(BIN)/python $(UI)/scripts/openapi.py $(UI)/openapi.json
	@cd $(UI) && node_modules/.bin/openapi-typescript openapi.json --output src/api/schema.d.ts \
	  >/dev/null

.PHONY: test-dashboard
test-dashboard: types
	$(say) 'dashboard: types and unit tests'
	@cd $(UI) && node_modules/.bin/tsc --noEmit && node_modules/.bin/vitest run --silent

# ---------------------------------------------------------------- the product

.PHONY: demo
demo: setup dashboard ## Run it here: embedded PostgreSQL, simulated provider, sample data (PORT=8000)
	@exec $(BIN)/python -m app.cli demo --port "$(PORT)"

# ------------------------------------------------------------------- checks

say = @printf '\033[1m==> %s\033[0m\n'

.PHONY: lint
lint: setup-dev ## Style, types and layers, without the tests
	$(say) 'ruff: style'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(say) 'mypy: types'
	@$(RUN) mypy --strict app
	$(say) 'import-linter: layers'
	@$(BIN)/lint-imports

.PHONY: format
format: setup-dev ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: test-core
test-core: setup-dev
	$(say) 'core: its own tests cover every line and branch of it'
	@mkdir -p .coverage && rm -f .coverage/*
	@$(RUN) pytest tests/core --quiet -p no:cacheprovider \
	  --cov=app/core --cov-branch --cov-report=term-missing --cov-fail-under=100

# The order is the order of cost: what fails soonest comes first.
.PHONY: test
test: lint test-core test-dashboard dashboard ## Every check, then every test (ARGS='-k reap' picks tests)
	$(say) 'pytest: $(if $(ARGS),$(ARGS),every test but those just run and those in a browser), $(JOBS) at a time'
	@$(PYTEST) $(if $(ARGS),$(ARGS),--ignore=tests/browser --ignore=tests/core)
	$(if $(ARGS),,$(say) 'pytest: in a browser')
	$(if $(ARGS),,@$(PYTEST) tests/browser)

# A browser's driver keeps an event loop running in its process, in which no other can be run: so
# what is tested in a browser is tested in processes of its own.
PYTEST = $(RUN) pytest --numprocesses=$(JOBS) --dist=worksteal

.PHONY: screenshots
screenshots: setup-dev dashboard ## Pictures of every page, in screenshots/
	@exec $(RUN) tests.browser.screenshots $(ARGS)

.PHONY: bench
bench: setup-dev ## Throughput, latency and sessions, side by side with bare ones (ARGS=--quick)
	@exec $(RUN) tests.benchmarks $(ARGS)

.PHONY: soak
soak: setup-dev ## Load with crashes for as long as you like, books checked throughout
	@HYPOTHESIS_PROFILE=soak $(RUN) pytest tests/ledger -k machine -q
	@exec $(RUN) tests.benchmarks.soak $(ARGS)

# -------------------------------------------------------------- housekeeping

.PHONY: lock
lock: setup-dev ## Resolve both lock files again from pyproject.toml
	$(say) 'requirements.lock'
	@$(RUN) uv pip compile $(LOCKING) --group build --output-file requirements.lock >/dev/null
	$(say) 'requirements-dev.lock'
	@$(RUN) uv pip compile $(LOCKING) --group build --group dev --constraints requirements.lock \
	  --output-file requirements-dev.lock >/dev/null
	@! grep -n '://' requirements.lock requirements-dev.lock
LOCKING = pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: ## Remove all that was set up or built here (never your data)
	@rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache \
	  .import_linter_cache dist $(UI)/dist $(UI)/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@echo 'Spendgate: an AI gateway that never overspends'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile \
	  | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo 'Start here:  make demo'
