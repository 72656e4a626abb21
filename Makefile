PYTHON ?= python3
CONFIG ?= configs/digits.py
WORKDIR ?= runs/digits

.PHONY: train test

train: .venv/installed
	.venv/bin/python -m scripts.train --config=$(CONFIG) --workdir=$(WORKDIR)

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest --numprocesses=auto --dist=loadfile

# Installs exactly what requirements.lock pins, by hash. Some systems split venv off python3: virtualenv then does it.
.venv/installed: requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv || ($(PYTHON) -m pip install --target .venv-tools virtualenv && \
		PYTHONPATH=.venv-tools $(PYTHON) -m virtualenv .venv)
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
