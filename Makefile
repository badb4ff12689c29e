# Everything a reader or a contributor does with this book. Needs only make, bash and Python ≥ 3.11:
# node comes from PyPI into the same environment.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv book test check lint lab notebooks results gpu-check clean render unit

NOTEBOOKS := $(wildcard book/*.ipynb)
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(BIN)/.installed node_modules/.installed ## make .venv with the pinned packages (minutes, once)

book: venv ## render the book from its executed notebooks
	@$(MAKE) --no-print-directory render
	@echo; echo "The book:  _build/html/index.html  (open it in a browser; it needs no network)"
	@echo "To search it as well, serve it:  python3 -m http.server --directory _build/html  → http://localhost:8000"

test: venv ## lint, unit tests, every notebook re-executed, the book rendered and read by a browser
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m pytest -p tests.notebook_times --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=120 -n 2 --dist loadfile -q $(NOTEBOOKS)
	@$(MAKE) --no-print-directory render
	python -m pytest tests -m browser -q

check: venv ## the quick loop: ruff and the unit tests
	ruff check
	@$(MAKE) --no-print-directory unit

lint: venv ## ruff, types, spelling (code, prose and notebooks)
	ruff check
	ruff format --check
	mypy
	codespell
	@echo "codespell in the notebooks, without their pictures"
	@grep -H -v '"image/png":\|"data": "iVBOR' $(NOTEBOOKS) | codespell -

lab: venv ## open JupyterLab in book/
	cd book && jupyter lab

# Timings would change the files at every run, so they are not recorded.
notebooks: venv ## re-execute every notebook in place
	jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(NOTEBOOKS)
	jupyter nbconvert --to notebook --inplace --coalesce-streams $(NOTEBOOKS)  # what one cell prints, in one box

results: venv ## recompute data/results/ (the many-seed runs; hours)
	dapedu reproduce --all

gpu-check: venv ## on a machine with CUDA: the GPU tests, and data/results/throughput_gpu.json (minutes)
	python -m pytest tests -m gpu -q
	python -m dapedu.experiments.gpu

clean: ## remove what was rendered and cached (not .venv)
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
	find dapedu tests book -name __pycache__ -prune -exec rm -rf {} +

unit:
	OMP_NUM_THREADS=1 python -m pytest tests -m "not browser and not gpu" -q -n 2 --dist loadfile

# From scratch each time, which takes seconds: Sphinx warns about a page only when it reads it anew, so a
# second run would pass on the first one's mistake, and pages of removed chapters would linger.
render:
	@rm -rf _build
	@jupyter-book build book --config _config.yml --path-output . -W -n --keep-going --quiet >/dev/null

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: this book needs Python 3.11 or newer (make PYTHON=/path/to/python3 …)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "This book needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1) (make PYTHON=python3.12 …)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# pip's log and warnings name hosts and paths and run to hundreds of lines: keep a pulse of it, and its errors.
$(BIN)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned Python packages (about 1.6 GB without a GPU build of torch; some minutes) …"
	@python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[book,data,test,train]' \
	  2> >(grep -v ^WARNING >&2) \
	  | awk '/^Collecting/ && ++n % 25 == 0 {print "  " n " packages found"; fflush()} \
	         /^Installing collected/ {print "  all found, installing"; fflush()}'
	@touch $@

node_modules/.installed: package-lock.json package.json .npmrc | $(BIN)/.installed
	@echo "Installing MathJax, the widget manager and the test browser …"
	@npm ci --silent --no-progress || { echo "npm ci failed: see the message of  .venv/bin/npm ci"; exit 1; }
	@touch $@
