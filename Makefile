# make build        .venv with everything to run; leaves .venv/bin/headwater
# make demo         a simulated fleet with a live view (DEMO_SECONDS=20: ends by itself)
# make test         everything that CI runs: check, the Rust tests, the Python tests
# make check        formatting, lints, types, the native module's stub, the import contract
# make bench        the table of docs/performance.md (YARDSTICK=DIR: beside a server that only acknowledges; ARGS="--rows 1,3")
# make flamegraph   docs/flamegraph.svg, where the CPU of the whole pipeline goes (needs perf and YARDSTICK=DIR)
# make chaos        the full counts of kills and power cuts
# make wheel        dist/*.whl
#
# A step runs again only when what it depends on has changed. PYTHON picks the interpreter, NAB=DIR the folder
# with the NAB series for the test on real input.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --require-hashes

# One interpreter for every cargo call, else pyo3 is built again at each change between them.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

.DELETE_ON_ERROR:
.PHONY: build demo test ready check bench flamegraph chaos test-scale wheel lock tools clean

build: $(VENV)/.native

demo: build
	@$(BIN)/headwater demo

test: ready
	$(BIN)/python -m pytest

# All of `test` before pytest, for .ci/run, which ends as pytest does.
ready: build tools $(VENV)/.dev check
	cargo test --workspace --locked --quiet

check: build $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest headwater._native --mypy-config-file pyproject.toml \
		--allowlist tests/stubtest-allowlist.txt
	$(BIN)/lint-imports
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

bench: build tools $(VENV)/.dev
	$(BIN)/python -m benches $(ARGS)

flamegraph: build $(VENV)/.dev
	$(BIN)/python -m benches.flamegraph $(ARGS)

chaos: build tools $(VENV)/.dev
	$(BIN)/python -m pytest -m chaos --timeout 3600

test-scale:
	@echo "make test-scale: Kafka, Flink and TimescaleDB cannot be chosen yet (log.kind, engine.kind and store.kind" >&2
	@echo "know only \"embedded\"), so there is nothing to test at scale; make test covers all that exists." >&2
	@exit 2

wheel: $(VENV)/.build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock:
	requirements/lock.sh

clean:
	rm -rf $(VENV) target dist build headwater/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find headwater tests benches -name __pycache__ -type d -prune -exec rm -rf {} +

# The steps of build: the environment, what Headwater needs, what builds it, the native module.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1), Headwater needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot create a virtual environment (no ensurepip); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@command -v cargo >/dev/null || \
		{ echo "make: no cargo on the PATH; Headwater's native module needs a Rust toolchain, 1.88 or newer (rustup)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: requirements/runtime.txt $(VENV)/.created
	$(INSTALL) -r $<
	@touch $@

$(VENV)/.build: requirements/build.txt $(VENV)/.runtime
	$(INSTALL) -r $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.build
	$(INSTALL) -r $<
	@touch $@

$(VENV)/.native: $(RUST) pyproject.toml $(VENV)/.build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# What tests and benches need beside Python. A test whose program is missing is reported as skipped, with the reason.
tools:
	@.ci/tools
