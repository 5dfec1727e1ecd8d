# Everything a user or CI runs. `make install` is keyed by pyproject.toml: it does nothing while that is unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(shell sha256sum pyproject.toml | cut -c1-16)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help install demo demo-async test lint bench bench-paper bench-async bench-large apt clean

help:
	@echo "make demo     install, then a server and 5 clients on digits, one of them killed on the way"
	@echo "make demo-async  the same with 6 clients of very different speeds: at their own pace, then in rounds"
	@echo "make test     install, then ruff, mypy and the whole test suite"
	@echo "make bench    install, then the benchmarks; results in benchmarks/results/*.json"
	@echo "make bench-paper  LightSecAgg beside SecAgg and SecAgg+ in the paper's setting; docs/paper.md"
	@echo "make bench-async  asynchronous runs: time to an accuracy, accuracy, overhead; docs/async*.png; 15 minutes"
	@echo "make bench-large  a round of 1,000 clients and 100,000 parameters in one process: minutes, and 2 GB"
	@echo "make install  only make .venv with the package and everything it can use"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV) || { echo "make install: python3 lacks venv: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	$(BIN)/python -c 'import lightsecagg.kernels.compiled'  # numba keeps what it compiles: no first round waits
	@touch $@

demo: install
	$(BIN)/lightsecagg demo

demo-async: install
	$(BIN)/lightsecagg demo-async

# Debian's packages are asked for here only: the broker of the MQTT tests and benchmarks, and what tests/network makes hosts with.
apt:
	@PATH="$$PATH:/usr/sbin:/sbin"; { command -v mosquitto && command -v tc; } >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends mosquitto iproute2; }

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: apt lint
	$(BIN)/python -m pytest -n auto --dist worksteal

bench: apt install
	$(BIN)/python -m benchmarks.rounds
	$(BIN)/python -m benchmarks.carriers
	$(BIN)/python -m benchmarks.crowd
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.overlap
	$(BIN)/python -m benchmarks.memory

bench-paper: install
	$(BIN)/python -m benchmarks.paper

bench-async: install
	$(BIN)/python -m benchmarks.asynchronous

bench-large: install
	$(BIN)/python -m benchmarks.large

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
