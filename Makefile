# Thin targets: each makes the virtual environment by itself and needs only Python, pip and a package registry.
PYTHON ?= python3
VENV ?= .venv
KSERVE_VENV ?= .venv-kserve
BIN := $(VENV)/bin
# cpu or gpu: which build of vLLM
ENGINE ?= cpu

.DEFAULT_GOAL := help
.PHONY: help install kserve-env demo test test-fast lint bench clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Make the virtual environment

# The processor build of vLLM asks for torchvision, torchaudio and torchcodec, whose registry builds expect CUDA and break
# every model import beside a processor build of torch. Text models need none of them.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(ENGINE),dev]'
	$(if $(filter cpu,$(ENGINE)),$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

# KServe's packages and those for functions need different versions of cloudevents.
kserve-env: $(KSERVE_VENV)/.installed ## Make the environment of KServe's server, for its tests

$(KSERVE_VENV)/.installed: runtime/head/kserve_server/requirements.txt
	$(PYTHON) -m venv $(KSERVE_VENV)
	$(KSERVE_VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

demo: install ## Re-split a model twice while it answers
	$(BIN)/python -m runtime.model >/dev/null
	$(BIN)/midstream demo

test: install kserve-env ## Run all tests
	MIDSTREAM_KSERVE_PYTHON=$(abspath $(KSERVE_VENV))/bin/python $(BIN)/python -m pytest

test-fast: install ## Run the tests that need no engine
	$(BIN)/python -m pytest -m "not engine"

lint: install ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for function in functions/*/; do MYPYPATH=$$function $(BIN)/mypy -p function || exit 1; done
	$(BIN)/lint-imports

bench: install ## Measure a live re-split next to stock vLLM
	$(BIN)/midstream bench reconfigure

clean: ## Remove the virtual environments
	rm -rf $(VENV) $(KSERVE_VENV)
