# `make` alone shows what there is. Needs Python 3.11 or later with pip and venv, make, and a C compiler.

PYTHON ?= python3 python3.13 python3.12 python3.11
VENV   := .venv
BIN    := $(VENV)/bin
RUN    ?=
BENCH  ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Compiling the tests, the packages and the router anew at each start costs a third of the time that tests take.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run check test bench bench-tools docs lock clean format

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- the environment ------------------------------------------------------------------------------------------------

# Stamps instead of directories: make compares their times with the lock files, and an environment that is up to date
# costs nothing. Packages come with hashes; the project itself is linked, so that edits take effect at once.
$(VENV)/.created:
	@for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; $$python -m venv $(VENV) && touch $@; exit; \
		fi; \
	done; \
	echo "error: none of these is Python 3.11 or later: $(PYTHON)" >&2; \
	echo "hint: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/python -m pip install --require-hashes -r requirements-dev.lock
	@touch $@

# --- use ------------------------------------------------------------------------------------------------------------

run: $(VENV)/.run ## Start a router and an agent here and ask a first question; RUN="--port 11500" passes flags on
	@$(BIN)/herd up $(RUN)

# --- work -----------------------------------------------------------------------------------------------------------

# Pyright and the tests run beside each other, for neither keeps two cores busy; what pyright says comes last, whole.
check: $(VENV)/.dev ## What must be clean before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@echo '$(BIN)/pyright & $(BIN)/python -m pytest -m "not slow and not engine"'; \
	said=$$(mktemp); $(BIN)/pyright >"$$said" 2>&1 & pyright=$$!; \
	trap 'kill $$pyright 2>/dev/null; rm -f "$$said"' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/python -m pytest -m "not slow and not engine"; tests=$$?; \
	wait $$pyright; types=$$?; \
	cat "$$said"; \
	[ $$types -eq 0 ] || echo "error: pyright failed, see above" >&2; \
	[ $$tests -eq 0 ] || echo "error: tests failed, see above" >&2; \
	[ $$types -eq 0 ] && [ $$tests -eq 0 ]

# A file stays on one worker, so that each engine that its tests share is started once.
test: check ## Everything that CI runs: also long simulations, more examples, and real engines from PyPI
	$(BIN)/python -m pytest -m "slow or engine or hypothesis" --hypothesis-profile thorough --dist loadfile

bench: $(VENV)/.dev ## Measure the router beside direct access, nginx and ollama-herd, and then its parts
	@command -v nginx >/dev/null || \
		echo "hint: there is no nginx here, so ratios to it are left out; make bench-tools installs it on Debian" >&2
	$(BIN)/python -m bench.router --peer $(BENCH)
	$(BIN)/python -m bench.store
	$(BIN)/python -m bench.upstream
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.decide
	$(BIN)/python -m bench.wire

bench-tools: ## Install the nginx that `make bench` compares with; Debian and its relatives, as root
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends nginx-light

format: $(VENV)/.dev ## Put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## Write the pages that are made from the code
	$(BIN)/python -m docs.generate

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --no-header --no-emit-index-url \
	--generate-hashes --no-annotate --quiet

lock: $(VENV)/.dev ## Choose the newest allowed versions of all packages
	$(LOCK) --upgrade -o requirements.lock
	$(LOCK) --upgrade --group dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove what can be made again
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
