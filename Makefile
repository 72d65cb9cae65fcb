# The checks of this project. `make check` is what a change has to pass.
PYTHON ?= python

.PHONY: check lint types test format

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

# One file's tests stay in one process: they share what is slow to make.
test:
	$(PYTHON) -m pytest -n auto --dist loadfile

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
