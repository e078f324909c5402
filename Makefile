# Everything runs from a clean checkout: each target makes the virtual environment it needs, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# pip would compile every file of every package, for a minute and a half; Python does so for those that are imported
PIP := $(BIN)/python -m pip install --quiet --no-compile
# one thread for each of two processes; and compiled files are kept, for hundreds of processes are started
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.PHONY: audit test coverage lint docs bench venv figures dist clean

audit: $(VENV)/.core  ## the main job on the embedded default: a table and report.html
	$(BIN)/poise audit --model builtin:digits --data builtin:digits

test: $(VENV)/.all  ## every test, on two processes
	$(THREADS) $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 25

coverage: $(VENV)/.all  ## every test once more, measured; the table in CONTRIBUTING.md
	rm -f .coverage .coverage.*
	$(THREADS) $(BIN)/coverage run -m pytest -q -n 2 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/python tools/coverage_table.py --json results/coverage.json
	$(BIN)/python tools/render.py

lint: $(VENV)/.all  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.all  ## the documentation as a site, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.bench  ## speed as ratios to a limit measured in the same run, and the same attack of other libraries
	$(BIN)/python benchmarks/speed.py --check
	$(BIN)/python benchmarks/query_speed.py
	$(BIN)/python benchmarks/defenses.py
	$(BIN)/python benchmarks/aaa.py
	$(BIN)/python benchmarks/targets.py
	$(BIN)/python benchmarks/training_speed.py --check
	$(BIN)/python benchmarks/certify.py --part cost
	PYTHONPATH=$(VENV)/bench $(BIN)/python benchmarks/square_peers.py
	PYTHONPATH=$(VENV)/bench $(BIN)/python benchmarks/peers.py --json results/peers.json
	$(BIN)/python benchmarks/scaling.py --check --json results/scaling.json
	$(BIN)/python benchmarks/guard.py
	$(BIN)/python benchmarks/startup.py --json results/startup.json
	$(BIN)/python benchmarks/metrics_scale.py --json results/metrics_scale.json
	$(BIN)/python tools/speed_figures.py
	$(BIN)/python tools/render.py

dist: $(BIN)/python  ## sdist and wheel in dist/, installed into empty environments and run there
	$(BIN)/python tools/check_dist.py --out dist

venv: $(VENV)/.all  ## only the virtual environment

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable '.[vision,peers,onnx,serve,train,explain,ray,docs,dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/bench torchattacks==3.5.1
	touch $@ $(VENV)/.core

# torchattacks lies in a folder of its own and without its pins, which contradict the documentation's; multiprocess and
# dill are what ART's AutoAttack imports
$(VENV)/.bench: $(VENV)/.all
	$(PIP) --no-deps --upgrade --target $(VENV)/bench multiprocess dill
	touch $@

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) build dist site src/*.egg-info

figures: $(VENV)/.all  ## every figure in README and docs, from results/
	$(BIN)/python tools/render.py
