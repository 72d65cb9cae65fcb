# The checks of this project. `make check` is what a change has to pass before a commit; .ci/run has
# the slow tests and the site as well.
PYTHON ?= python

.PHONY: check check-all lint types test slow docs release format

check: lint types test

check-all: check slow docs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

# One file's tests stay in one process: they share what is slow to make.
test:
	$(PYTHON) -m pytest -m "not slow" -n auto --dist loadfile

slow:
	$(PYTHON) -m pytest -m slow -n auto --dist loadfile

# The pages of docs/ and the API reference as a site, in build/site.
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# Builds the source archive and the wheel, and tries the wheel in an environment of its own.
release:
	PYTHON=$(PYTHON) bash .ci/release

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
