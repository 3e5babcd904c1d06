# fewer: `make demo` shows what it does, `make test` says whether it is right. Both need git, make, Python >= 3.11 and pip.
#
#   make demo     install, then draw the frontier of the bundled model: report.html
#   make test     lint, types, every test, the docs
#   make lint | docs | bench | mutate | lines | clean
#
# PYTHON=python3.12 picks an interpreter, TORCH='torch==2.12.0' another torch, JOBS=8 the number of processes;
# PYTEST='-k wanda -m "not slow"' and MUTATE='--only select --budget-minutes 10' are handed on.

VENV    := .venv
PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check -qq
TORCH   ?= torch==2.13.0
JOBS    ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
PYTEST  ?=
MUTATE  ?=
FLOORS  := src/fewer/core src/fewer/layout src/fewer/kernels
# One thread in each process: the processes are the parallelism, and sums come out the same everywhere.
# What was compiled once is not compiled again by the many processes that tests start.
ONE     := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
QUIET   := NO_MKDOCS_2_WARNING=1

.PHONY: demo test lint docs bench mutate lines clean install install-test
.DEFAULT_GOAL := demo

# Two budgets and a third of the text: minutes. The whole is the same command without these choices.
demo: $(VENV)/.installed
	$(VENV)/bin/fewer frontier bundled --axes weights --budgets 50%,2:4 --calibration 8 --test 8 --length 256 --report report.html
	@echo "All budgets on three times the text, which takes about five times as long: $(VENV)/bin/fewer frontier bundled --report report.html"

test: lint
	@echo "== tests, $(JOBS) processes"
	@$(ONE) $(PY) -m pytest -n $(JOBS) --dist worksteal --durations 10 $(PYTEST)
	@$(MAKE) --no-print-directory docs

lint: $(VENV)/.installed-test
	@echo "== style and types"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet . || { echo "make it so: $(PY) -m ruff format ."; exit 1; }
	@$(PY) -m mypy $(FLOORS)

docs: $(VENV)/.installed-test
	@echo "== docs: site/index.html"
	@$(ONE) $(QUIET) $(PY) -m mkdocs build --strict --quiet

bench: $(VENV)/.installed-test
	$(PY) -m bench.kernels.cpu

mutate: $(VENV)/.installed-test
	$(ONE) $(PY) tests/mutate.py --jobs $(JOBS) $(MUTATE)

lines:
	@python3 -m tools.lines

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis report.html report.png report.svg
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

# The stamps are newer than pyproject.toml when there is nothing to install.
$(VENV)/.installed: pyproject.toml | $(PY)
	@echo "== installing fewer into $(VENV): a minute or a few, most of it torch"
	@$(PY) -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)" || echo "no $(TORCH) here: taking what pyproject.toml allows"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	@echo "== installing what the tests need"
	@$(PIP) install --editable ".[test]"
	@touch $@

# An interpreter counts if it runs, is new enough and can make environments.
$(PY):
	@for py in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  "$$py" -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || continue; \
	  echo "== $(VENV) with $$("$$py" --version)"; \
	  exec "$$py" -m venv $(VENV); \
	done; \
	echo "fewer needs Python 3.11 or newer with venv (Debian: apt install python3-venv)." \
	     "Found: $$(python3 --version 2>&1). Name one: make demo PYTHON=/path/to/python3.12" >&2; exit 1
