# make setup       build .venv with the pinned dependencies
# make benchmark   the main job on the embedded synthetic archive -> reports/demo/
# make test        the tests (RAYECG_SLOW=1 adds the slow ones)
# make check       lint, format, types

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rayecg-installed

.PHONY: setup benchmark test check format clean

setup: $(STAMP)

# torch first, by its exact version: a plain `torch` may bring gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt rayecg_ray_cli.pth
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else "expected Python 3.11 to 3.13, came %d.%d (make PYTHON=python3.12 ...)" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@cp rayecg_ray_cli.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $(STAMP)

benchmark: setup
	$(BIN)/python jobs/benchmark.py

# Two files of tests at a time, each with one thread: much of a test is waiting for a Ray to start.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache reports/demo
