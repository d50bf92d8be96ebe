# Needs Python 3.11 or newer, pip and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
# An installation links the files there are: it is made again when one is added or removed.
FOLDERS := $(shell find schema outbox applier cli -type d -not -name __pycache__)
# The whole suite runs on this version; the promise tests, but for random walks and removed guards, on every one.
POSTGRES := 18
# A server for each of as many workers as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal
# Where bench-full writes its tables.
FRAGMENT ?= build/peers.md
OTHERS := 16 $(if $(wildcard /usr/lib/postgresql/15/bin/initdb),15)

.PHONY: demo test lint bench bench-full soak clean

demo: .venv/installed  ## The ordering problem happens, and then it does not.
	$(BIN)/inturn demo

test: lint  ## Lint, types, all tests.
	INTURN_TEST_PG=$(POSTGRES) $(PYTEST) -m "not soak"
	for version in $(OTHERS); do \
		INTURN_TEST_PG=$$version $(PYTEST) tests/promises -m "not soak" -k "not model and not chaos and not two_databases and not guards" || exit 1; \
	done
	@echo "All tests ran on PostgreSQL $(POSTGRES), the promise tests also on: $(OTHERS)"
	$(if $(filter 15,$(OTHERS)),,@echo "Not on Debian's 15: apt-get install postgresql-15")

lint: .venv/installed-dev
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check
	$(BIN)/mypy -p inturn.schema -p inturn.outbox -p inturn.applier -p inturn.cli
	MYPYPATH=tests $(BIN)/mypy --explicit-package-bases tests

bench: .venv/installed-dev  ## Speed, as ratios against pgbench's plain INSERT in the same run.
	PYTHONPATH=tests $(BIN)/python -m bench

bench-full: .venv/installed-dev  ## An hour: how the storage holds, with plots, and speed beside the peers; writes tables into build/.
	-$(MAKE) .venv/installed-bench  # a peer that cannot be had is reported as not measured
	mkdir -p $(dir $(FRAGMENT))
	PYTHONPATH=tests $(BIN)/python -m bench.heart --markdown $(dir $(FRAGMENT))heart.md --plots $(dir $(FRAGMENT))plots
	PYTHONPATH=tests $(BIN)/python -m bench.peers --markdown $(FRAGMENT)

soak: .venv/installed-dev  ## The long runs.
	$(BIN)/python -m pytest -m soak --timeout 1800

clean:
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
