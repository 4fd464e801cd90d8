# Every target sets up .venv by itself, from a bare python3 (3.11 or newer), and does so only once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo picture shop test servers docker stress matrix load beats tables rivals figures docs wheel bench lint types check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/ready  ## kill real workers and count the charges (about a minute)
	$(BIN)/python -m qx_cache_celery.demo $(ARGS)

picture: .venv/ready  ## run the demo and write its table to docs/demo.svg
	$(BIN)/python -m qx_cache_celery.demo --picture docs/demo.svg $(ARGS)

shop: .venv/ready  ## run the example application on an embedded server, or ARGS="--port 8001" (examples/shop)
	$(BIN)/python -m pip install --quiet --group example
	cd examples/shop && ../../$(BIN)/python -m shop $(ARGS)

test: .venv/ready  ## run the tests on an embedded server and real workers
	$(BIN)/python -m pytest -m "not servers" -n 2 --dist loadfile --cov --cov-report=term $(ARGS)

servers: .venv/ready  ## run them on PostgreSQL, Redis 7.0, TLS, Sentinel and Cluster, and fail those over
	$(BIN)/python -m pytest -m servers -n 2 --dist loadfile $(ARGS)

docker: .venv/ready  ## run tests/docker: real containers that are killed, frozen, cut off and restarted
	$(BIN)/python -m pip install --quiet --group docker
	$(BIN)/python -m pytest -o addopts="--strict-config --strict-markers -ra" --timeout 300 tests/docker $(ARGS)

stress: .venv/ready  ## kill processes that count under one lock, for 30 seconds or ARGS="--seconds N"
	$(BIN)/python tests/stress.py $(ARGS)

matrix: .venv/ready  ## kill workers at every point of a run, plain and guarded; resumable (tests/chaos/matrix.md)
	$(BIN)/python tests/chaos/matrix.py $(ARGS)

load: .venv/ready  ## 1,000 tasks under faults, each accounted for; or ARGS="--outage 40", ARGS="--broker rabbitmq"
	$(BIN)/python tests/chaos/load.py $(ARGS)

beats: .venv/ready  ## three beats and two workers under faults for 60 s, each tick accounted for; or ARGS="--lose-data"
	$(BIN)/python tests/chaos/beats.py $(ARGS)

tables: .venv/ready  ## write the tables of the docs anew, from what is seen on real workers
	QX_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/workers/test_peers.py

rivals: .venv/ready  ## play the rows of docs/singleton.md under the known helpers, and write docs/peers.json (eight minutes)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/peers \
		celery-singleton==0.3.1 celery-once==3.0.1 celery-heimdall==1.0.1 celery-once-task==1.0.0
	PYTHONPATH=$(CURDIR)/build/peers:$(CURDIR):$(CURDIR)/tests $(BIN)/python tests/rivals/rivals.py

figures: .venv/ready  ## write into the docs what comes from code and measured results
	$(BIN)/python docs/_ext/made.py

docs: .venv/ready  ## build the site into build/docs
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx -E -n -W --keep-going -q -b html docs build/docs

wheel: .venv/ready  ## build the wheel, and run the tests of qx_cache on it, away from the source
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	build/wheel/venv/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[testing,hiredis]" pytest-asyncio pytest-timeout
	mkdir -p build/wheel/tests && cp tests/conftest.py tests/servers.py build/wheel/tests/
	cp tests/test_lock.py tests/test_idempotency.py tests/test_publishing.py tests/test_cache.py build/wheel/tests/
	cd build/wheel && venv/bin/python -m pytest -q -c /dev/null --rootdir . -o asyncio_mode=auto -p no:cacheprovider tests
	cd build/wheel && venv/bin/python -m qx_cache.testing embedded://
	cd build/wheel && venv/bin/python -c "import qx_cache_celery.beat; print(qx_cache_celery.__file__)"

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

check: lint types docs test servers stress demo  ## all of them

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
