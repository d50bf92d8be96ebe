# Needs Python 3.11 or newer, pip and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
# An installation links the files that exist, so it is made again when one is added or removed.
FOLDERS := $(shell find schema outbox applier cli -type d -not -name __pycache__)
# Compiled once, not by each of the hundreds of processes of a run.
export PYTHONDONTWRITEBYTECODE :=
# The whole suite runs on this version. The tests that docs/explanation/promises.md names run on every version, except
# for random walks and removed guards. Where a test has several parameters, `make test` tries each value once, and
# `make rest` tries all combinations.
POSTGRES := 18
OTHERS := 16 $(if $(wildcard /usr/lib/postgresql/15/bin/initdb),15)
# Each worker has a server of its own. Tests wait as much as they compute: with two workers a core, a quarter of the
# time was idle.
WORKERS ?= $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN))
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
# Debian's, in transaction mode: callers and appliers of the tests connect through it.
PGBOUNCER := $(wildcard /usr/sbin/pgbouncer)
POOLED = INTURN_TEST_PG=$(POSTGRES) INTURN_TEST_POOLER=transaction $(PYTEST)
# Beside the promises, what depends on the server's version. test_major_upgrade.py has two versions itself.
SERVER := tests/recovery tests/environment/test_standby.py tests/sql/test_metrics.py tests/sql/test_snapshot_holders.py \
	tests/cli/test_cli_metrics.py tests/cli/test_doctor.py tests/cli/test_doctor_settings.py --ignore tests/recovery/test_major_upgrade.py
CORE := tests/promises/p1_commit_order tests/promises/p2_p3_in_turn/test_p2_p3_in_turn.py \
	tests/promises/p4_no_lost_wakeup tests/conformance
# Interpreters beside $(PYTHON). A shim of pyenv does not work for a version that is not selected.
OTHER_PYTHONS ?= $(foreach version,3.12 3.13 3.14,$(firstword \
	$(wildcard $(HOME)/.pyenv/versions/$(version).*/bin/python$(version)) $(wildcard /usr/bin/python$(version))))
# Where bench-full writes its tables.
FRAGMENT ?= build/peers.md

# Runs tests in a virtual environment of their own. Arguments: its folder, the interpreter, more options for pip.
define in_venv
test -x $(1)/bin/python || $(2) -m venv $(1)
$(1)/bin/python -m pip --quiet --disable-pip-version-check install $(3) \
	--config-settings editable_mode=strict --editable '.[embedded,http,metrics,receiver]' \
	hypothesis pytest pytest-randomly pytest-timeout pytest-xdist 'sqlalchemy[asyncio]'
$(1)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not soak and not slow" \
	tests/applier tests/conformance tests/promises

endef

.PHONY: help demo quick lint test rest promises versions pooled pythons lowest soak bench bench-full docs clean
.DEFAULT_GOAL := help

help:  ## Show this list.
	@sed -nE 's/^([a-z-]+):.*  ## (.*)$$/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/installed  ## See the ordering problem happen, and then not happen.
	$(BIN)/inturn demo

quick: .venv/installed-dev  ## Style, and the core of the promises on one server version: a minute, for the loop.
	$(BIN)/ruff check --output-format concise
	$(PYTEST) --quiet $(CORE) -m "not soak and not slow"

lint: .venv/installed-dev  ## Check style and types.
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check
	$(BIN)/mypy -p inturn.schema -p inturn.outbox -p inturn.applier -p inturn.cli
	MYPYPATH=tests $(BIN)/mypy --explicit-package-bases tests

test: lint  ## Lint, types, all tests.
	INTURN_TEST_PG=$(POSTGRES) $(PYTEST) -m "not soak and not rest"
	@echo "All tests ran on PostgreSQL $(POSTGRES). On other versions, and through PgBouncer: make promises"
	$(if $(shell command -v promtool),,@echo "Not with Prometheus: apt-get install prometheus")

rest: .venv/installed-dev  ## The combinations of parameters that `make test` leaves out.
	INTURN_TEST_PG=$(POSTGRES) $(PYTEST) -m "rest and not soak"

# Side by side, for each worker of each run imports and collects the tests, and starts a server.
RUNS = $(OTHERS:%=promises-%) $(if $(PGBOUNCER),promises-pooled)
promises: .venv/installed-dev  ## What the promises name on the other server versions, and its core through PgBouncer.
	@echo "Side by side, printed as each ends: $(RUNS)"
	$(MAKE) --jobs --output-sync=target --no-print-directory $(RUNS) \
		WORKERS=$(shell expr \( $(WORKERS) + $(words $(RUNS)) - 1 \) / $(words $(RUNS)))
	$(if $(filter 15,$(OTHERS)),,@echo "Not on Debian's 15: apt-get install postgresql-15")
	$(if $(PGBOUNCER),,@echo "Not with PgBouncer: apt-get install pgbouncer")

promises-pooled:
	$(POOLED) $(CORE) -m "not soak and not slow and not rest"

promises-%:
	INTURN_TEST_PG=$* $(PYTEST) tests/promises $(SERVER) -m "(promise or server) and not soak and not slow and not rest"

versions: .venv/installed-dev  ## All tests of the promises, of targets and of what depends on the server, on the other versions.
	for version in $(OTHERS); do \
		INTURN_TEST_PG=$$version $(PYTEST) tests/promises tests/conformance $(SERVER) -m "not soak" || exit 1; \
	done

pooled: .venv/installed-dev  ## The same through PgBouncer in transaction mode.
	$(POOLED) tests/promises tests/conformance -m "not soak and not slow"

pythons:  ## The promises and the appliers on every other Python that is found, of pyenv or in /usr/bin.
	$(if $(OTHER_PYTHONS),,@echo "No other Python from 3.12 on is here: pyenv install 3.12 3.13")
	$(foreach python,$(OTHER_PYTHONS),$(call in_venv,build/$(notdir $(python)),$(python)))

lowest: .venv/installed-dev  ## The promises and the appliers with the lowest versions of the dependencies that pyproject.toml allows.
	mkdir -p build
	PYTHONPATH=tests $(BIN)/python -m support.lowest > build/lowest.txt
	$(call in_venv,build/lowest,$(PYTHON),--constraint build/lowest.txt)

soak: .venv/installed-dev  ## The long runs.
	$(BIN)/python -m pytest -m soak --timeout 1800

bench: .venv/installed-dev  ## Speed, as ratios against pgbench's plain INSERT in the same run: some minutes.
	PYTHONPATH=tests $(BIN)/python -m bench

bench-full: .venv/installed-dev  ## An hour and a half, and the peers': how the storage holds, with plots, and speed beside the peers; tables in build/.
	-$(MAKE) .venv/installed-bench  # a peer that cannot be had is reported as not measured
	mkdir -p $(dir $(FRAGMENT))
	PYTHONPATH=tests $(BIN)/python -m bench.heart --markdown $(dir $(FRAGMENT))heart.md --plots $(dir $(FRAGMENT))plots
	PYTHONPATH=tests $(BIN)/python -m bench.peers --markdown $(FRAGMENT)

docs: .venv/installed-dev  ## Build the documentation as a site, in build/site.
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/site
	@echo "Open build/site/index.html"

clean:  ## Remove what was installed and built here.
	rm -rf .venv build dist *.egg-info

.venv/installed: pyproject.toml $(FOLDERS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --config-settings editable_mode=strict --editable '.[embedded,http]'
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --config-settings editable_mode=strict --editable '.[embedded,dev]'
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(PIP) --config-settings editable_mode=strict --editable '.[embedded,dev,bench]'
	touch $@
