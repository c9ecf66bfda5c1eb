# Everything here makes .venv first, if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CPU := $(VENV)/.cpu
CUTLASS := $(VENV)/.cutlass
NVCC := $(wildcard $(CUDA_HOME)/bin/nvcc $(CUDA_PATH)/bin/nvcc /usr/local/cuda/bin/nvcc)
NVCC += $(shell command -v nvcc)
RUN := runs/first
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

SOAK := 300

.PHONY: help train kernels test test-all test-gpu test-browser test-slurm test-soak lint clean

help:
	@echo "make train     a first QuEST model on this machine's CPU or GPU, in minutes"
	@echo "make test      the test suite     make test-all   with the slow tests"
	@echo "make test-gpu  kernels, GPU tests make lint       ruff and mypy; edits nothing"
	@echo "make kernels   the kernels: a C++ compiler for the CPU's, nvcc (no GPU) for CUDA's"
	@echo "               [ARCHS=\"80;89;90a\" JOBS=2]"
	@echo "make test-browser  the tests of our pages, in headless Chromium"
	@echo "make test-slurm    the Slurm launcher's tests, in a Slurm of one node (as root)"
	@echo "make test-soak     runs that are killed at random end with the same bits [SOAK=300 seconds]"

$(READY): requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

# Where there is no C++ compiler it says so, and plain torch serves.
$(CPU): $(READY) csrc/build_cpu.py $(wildcard csrc/*.h csrc/cpu/*)
	@$(BIN)/python csrc/build.py --cpu
	@touch $(CPU)

train: $(CPU)
	$(BIN)/questtrain train model=nano bits=w4a4 data=stdlib name=$(notdir $(RUN))
	@echo
	@echo "a sample:"
	@$(BIN)/questtrain generate run=$(RUN) prompt="def " max_new_tokens=80
	@echo
	@echo "the loss picture: $(RUN)/figures/loss.png"

# Its headers alone: what the package itself needs is for another use of it.
$(CUTLASS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nvidia-cutlass==4.2.0.0
	@touch $(CUTLASS)

kernels: $(if $(or $(CUTLASS_PATH),$(if $(strip $(NVCC)),,none)),$(READY),$(CUTLASS))
	@$(BIN)/python csrc/build.py $(if $(ARCHS),--archs "$(ARCHS)") $(if $(JOBS),--jobs $(JOBS))

test: $(CPU)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu and not browser and not slurm"

test-all: $(CPU)
	$(BIN)/python -m pytest -m "not gpu and not browser and not slurm"

test-gpu: kernels
	$(BIN)/python -m pytest -m gpu

test-browser: $(READY)
	$(BIN)/python -m pytest -m browser

test-slurm: $(READY)
	$(BIN)/python -m pytest -m slurm

test-soak: $(CPU)
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	rm -f src/questtrain/kernels/questtrain_kernels.* src/questtrain/kernels/questtrain_cpu.*
