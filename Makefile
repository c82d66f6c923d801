# `make demo` and `make test` need Python 3.11 and make, nothing else: they build .venv first.
PYTHON ?= python3.11
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: install demo test test-slow test-faults test-cluster lint types contracts doctor clean

install: $(STAMP)

$(STAMP): $(wildcard requirements/*.txt) setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -r requirements/$(DEVICE).txt -r requirements/dev.txt
	$(PIP) --no-deps -r requirements/torchrec.txt
	$(PIP) --no-deps --editable .
	rm -f $(VENV)/.installed-*
	touch $@

demo: install
	$(BIN)/farewell demo

doctor: install
	$(BIN)/farewell doctor

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

test-faults: install
	$(BIN)/python -m pytest -m faults

# Jobs on a real Slurm, all of whose nodes are this machine; with root on Debian.
SLURM := slurm-wlm munge slurmdbd mariadb-server
test-cluster: install
	dpkg -s $(SLURM) >/dev/null 2>&1 || \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends $(SLURM))
	FAREWELL_TEST_CLUSTER=1 $(BIN)/python -m pytest -m slow tests/cluster

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

contracts: install
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
