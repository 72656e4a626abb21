PYTHON ?= python3
CONFIG ?= configs/digits.py
WORKDIR ?= runs/digits

# For `make matrix`: names or paths of Pythons.
PYTHONS ?= python3.11 python3.12 python3.13

# For `make quick`: the tests that neither start a process nor train.
QUICK := architecture docs config/resolve cli/launch data/batching data/sources data/splits optim/regularizers optim/rules \
	optim/schedules run/console run/metrics_log run/progress run/windows run/workdir runtime/machine \
	runtime/xla_flags step/losses step/metrics step/state tuning/curve tuning/floors tuning/page

.PHONY: train test quick matrix lock

train: .venv/installed
	.venv/bin/python -m scripts.train --config=$(CONFIG) --workdir=$(WORKDIR)

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -m linseed -m linseed.api -m linseed.ranges -m linseed.__main__
	.venv/bin/python -m pytest --numprocesses=auto --dist=worksteal

quick: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest $(foreach name,$(QUICK),tests/$(dir $(name))test_$(notdir $(name)).py)

# The whole suite of what is committed, on each of PYTHONS, in a clone and with an environment of its own.
matrix:
	@for python in $(PYTHONS); do \
		tree=runs/matrix/$$(basename $$python); \
		rm -rf $$tree && git clone --quiet . $$tree && $(MAKE) --no-print-directory -C $$tree PYTHON=$$python test \
			|| failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "failed on$$failed"; exit 1; }

lock:
	uv pip compile setup.cfg --extra test --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements.lock

# Installs exactly what requirements.lock pins, by hash. Some systems split venv off python3: virtualenv then does it.
.venv/installed: requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv || ($(PYTHON) -m pip install --target .venv-tools virtualenv && \
		PYTHONPATH=.venv-tools $(PYTHON) -m virtualenv .venv)
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	mkdir -p .venv/types/linseed
	for name in linseed/*.py linseed/py.typed trainer models configs scripts; do \
		ln -sfn $(CURDIR)/$$name .venv/types/linseed/$$(basename $$name); done
	touch $@
