# Every target sets up .venv by itself, from a bare python3 (3.11 or newer), and does so only once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test servers stress matrix load bench lint types check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/ready  ## kill real workers and count the charges (about a minute)
	$(BIN)/python -m qx_cache_celery.demo $(ARGS)

test: .venv/ready  ## run the tests on an embedded server and real workers
	$(BIN)/python -m pytest -m "not servers" -n 2 --dist loadfile --cov --cov-report=term $(ARGS)

servers: .venv/ready  ## run them on PostgreSQL, Redis 7.0, TLS, Sentinel and Cluster, and fail those over
	$(BIN)/python -m pytest -m servers -n 2 --dist loadfile $(ARGS)

stress: .venv/ready  ## kill processes that count under one lock, for 30 seconds or ARGS="--seconds N"
	$(BIN)/python tests/stress.py $(ARGS)

matrix: .venv/ready  ## kill workers at every point of a run, plain and guarded; resumable (tests/chaos/matrix.md)
	$(BIN)/python tests/chaos/matrix.py $(ARGS)

load: .venv/ready  ## 1,000 tasks under faults, each accounted for; or ARGS="--outage 40", ARGS="--broker rabbitmq"
	$(BIN)/python tests/chaos/load.py $(ARGS)

bench: .venv/ready  ## measure beside the peers, and write benchmarks/results.* (eleven minutes)
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m pip install --quiet --no-deps 'redlock-ng>=2.0.4'  # pins redis-py below 6
	$(BIN)/python -m benchmarks $(ARGS)

lint: .venv/ready  ## style, and the arrows between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/ready  ## mypy --strict
	$(BIN)/mypy

check: lint types test servers stress demo  ## all of them

clean:  ## remove what the targets made
	rm -rf .venv build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "this Python has no ensurepip; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[demo,hiredis]' --group test --group types
	@touch $@
