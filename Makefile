# `make demo` and `make test` do all their own set-up, in .venv; `make setup` does that part alone.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test test-long lint format docs pictures notebooks audit clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       BYOL on real digits, and by how much it beats doing nothing (minutes)"
	@echo "make test       the tests (minutes)"
	@echo "make test-long  the longer checks as well"
	@echo "make lint       format, lint, types and layers"
	@echo "make docs       the documentation site, in docs/_build/html"
	@echo "make pictures   the README's and the site's pictures, by a new demo (minutes)"
	@echo "make notebooks  the examples as notebooks, in docs/notebooks"
	@echo "make audit      known vulnerabilities of the pinned dependencies, where a network allows it"
	@echo "make setup      the environment alone"

setup: $(STAMP)

# uv installs the pinned versions in seconds; where it cannot (an index that only pip knows), pip does it in minutes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "byol needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing pinned versions into .venv (about 6 GB, most of it PyTorch) ..."
	@$(BIN)/python -m pip install --quiet "uv==$(UV_VERSION)" && \
		$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev,tiff]' || \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,tiff]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/byol demo $(ARGS)

# Two at a time, each on one core: more would need more memory than a laptop has.
TWO := -n 2 --dist loadfile

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

test-long: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m 'not gpu'

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# A warning is an error, and a link that leads nowhere is a warning.
docs: $(STAMP)
	@$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html && echo docs/_build/html/index.html

pictures: $(STAMP)
	@$(BIN)/python docs/make_pictures.py

NOTEBOOKS := few_labels own_loop own_lightning

notebooks: $(STAMP) $(NOTEBOOKS:%=docs/notebooks/%.ipynb)

docs/notebooks/%.ipynb: examples/%.py
	@mkdir -p $(@D)
	@$(BIN)/jupytext --quiet --to ipynb --output $@ $<

audit: $(STAMP)
	@$(PYTHON) .ci/audit $(BIN)/uv constraints.txt

clean:
	rm -rf .venv
