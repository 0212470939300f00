# `make` or `make help` lists what can be made.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
IMAGE ?= rml-trainer
# CUDA=126: packages and image with a torch of that CUDA, for older NVIDIA drivers.
# WHEELS=DIR: install from the packages in that folder alone, without the network.
CUDA ?=
WHEELS ?=
TORCH_INDEX := $(if $(CUDA),--extra-index-url https://download.pytorch.org/whl/cu$(CUDA))
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check \
  $(if $(WHEELS),--no-index --find-links $(WHEELS),$(TORCH_INDEX))
DEMO := demo
DEMO_STUDY := --num-trials 6 --num-epochs 8 --image-size 96 --batch-size 8

.PHONY: help demo test test-fast fuzz lint format install install-dev wheels image carry clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/installed ## Synthetic ultrasound images, a study of six trials, predictions and a picture
	@test -d $(DEMO)/data || $(PY) -m trainer.prepare demo $(DEMO)/data
	cd $(DEMO) && ../$(PY) ../rml_optimization.py --data data $(DEMO_STUDY)
	cd $(DEMO) && PYTHONPATH=.. ../$(PY) -m trainer --config=best_model/config_test.json
	cd $(DEMO) && PYTHONPATH=.. ../$(PY) -m trainer.review predictions/output_1.h5
	@echo
	@echo "Look at $(DEMO)/predictions/output_1.png: input, prediction and truth, worst first."
	@echo "Next, your own images (see README.md, Your own images):"
	@echo "  $(PY) rml_optimization.py --data FOLDER --num-trials 20"

test: $(VENV)/installed-dev ## The whole suite: format, lint, types, every test
	$(MAKE) lint
	$(PY) -m pytest

test-fast: $(VENV)/installed-dev ## Unit tests alone, under three minutes
	$(PY) -m pytest -m "not slow and not docker"

fuzz: $(VENV)/installed-dev ## 10,000 broken configurations and network files
	RML_FUZZ=10000 $(PY) -m pytest -q --timeout 3600 tests/test_fuzz.py tests/test_keras_files.py

lint: $(VENV)/installed-dev ## Format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/installed-dev ## Rewrites the code in the one format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

install: $(VENV)/installed ## A virtual environment .venv with what a user needs
install-dev: $(VENV)/installed-dev ## The same, with tests and lint

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is not: install it, then: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv: on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python requirements.lock
	@test "$$(df -Pk . | awk 'NR==2 {print $$4}')" -gt 8000000 \
	  || { echo "8 GB of free disk are needed for the packages" >&2; exit 2; }
	@echo $(if $(WHEELS),"Installs the packages in $(WHEELS).",\
	  "Downloads the Python packages once: about 3 GB on Linux (6 GB on the disk, torch brings CUDA), 0.5 GB on macOS.")
	@test -z "$(WHEELS)" || ls $(WHEELS)/*.whl >/dev/null 2>&1 \
	  || { echo "$(WHEELS) has no packages: make carry makes them, on a machine with internet" >&2; exit 2; }
	$(PIP_INSTALL) -r requirements.lock \
	  $(if $(WHEELS),|| { echo "Packages fit one Python and system: make carry is to run under $$($(PY) -V) on $$(uname -sm)" >&2; exit 2; })
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

wheels: ## Packages of the image into wheels/, for a build without the network (on Linux)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --only-binary :all: \
	  --python-version 3.11 -d wheels -r trainer/requirements.txt -c requirements.lock $(TORCH_INDEX)

image: ## The container image rml-trainer, from wheels/ alone where it has packages; CUDA=126: for older drivers
	@command -v docker >/dev/null || { echo "docker is not installed: https://docs.docker.com/engine/install/" >&2; exit 2; }
	@if [ -n "$(CUDA)" ] && ls wheels/*.whl >/dev/null 2>&1 && ! ls wheels/torch-*+cu$(CUDA)-*.whl >/dev/null 2>&1; then \
	  echo "wheels/ has no torch of CUDA $(CUDA): remove it, then (for a build without the network) make wheels CUDA=$(CUDA)" >&2; exit 2; fi
	docker build --tag $(IMAGE) --build-arg SOURCE="$$($(PYTHON) -m launchers.image)" \
	  --build-arg PIP_ARGS="$$(ls wheels/*.whl >/dev/null 2>&1 && echo --no-index || echo $(TORCH_INDEX))" .

carry: $(VENV)/installed ## carry/ for a machine without internet: packages, image, fetched weights
	$(PY) -m pip download --quiet --disable-pip-version-check --only-binary :all: \
	  -d carry/wheels -r requirements.lock $(TORCH_INDEX)
	@if docker info >/dev/null 2>&1; then $(MAKE) image PYTHON=$(PY) && docker save --output carry/$(IMAGE).tar $(IMAGE); \
	else echo "No Docker engine answers here: carry/ has no image. Trials will run as processes."; fi
	@weights="$${RML_WEIGHTS:-$${XDG_CACHE_HOME:-$$HOME/.cache}/rml-optimization/weights}"; \
	if [ -d "$$weights" ]; then mkdir -p carry/weights && cp -R "$$weights"/. carry/weights/; \
	else echo "No encoder weights were fetched: carry/ has none. They start from random."; fi
	@du -sh carry/*
	@echo "Copy this folder with carry/ to the other machine; README.md, Without internet, says what to type there."

clean: ## Removes .venv, wheels/, carry/ and demo/ (never runs/ or best_model/)
	rm -rf $(VENV) wheels carry $(DEMO) .pytest_cache .mypy_cache .ruff_cache
