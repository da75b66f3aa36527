# Every target sets itself up; none needs another to have run. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One process per core, one thread each: the interpreter's small matrix products gain nothing from more.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest

# Of `make study`: training; what is looked at afterwards takes a minute more.
BUDGET ?= 3m

# What GPU machines have: torch 2.11 and triton 3.6, in a virtual environment of its own.
PYTHON312  ?= python3.12
GPU_VENV   ?= .venv-matrix

.PHONY: help demo study test check types test-all test-cpus test-luck bench gate gate-check softgpu softgpu-tests softgpu-faults mutants faults faults-ranks fuzz matrix gpu-cache gpu-dry-run gpu-rehearsal readme lint format lock wheel clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# --- set-up ---------------------------------------------------------------------------------------------------------
$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info, "fastgpt needs Python 3.10 or newer, this is " + sys.version'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot make a virtual environment: install venv (Debian, Ubuntu: apt install python3-venv), or name another Python: make PYTHON=python3.12"; exit 1; }

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

$(GPU_VENV)/.dev: pyproject.toml constraints-gpu.txt
	@[ -x $(GPU_VENV)/bin/python ] || $(PYTHON312) -c 'import sys; assert sys.version_info[:2] == (3, 12)' 2>/dev/null \
	  || { echo "this needs Python 3.12, and $(PYTHON312) is none; name one: make $(MAKECMDGOALS) PYTHON312=/path/to/python3.12"; exit 1; }
	@[ -x $(GPU_VENV)/bin/python ] || $(PYTHON312) -m venv $(GPU_VENV) || { rm -rf $(GPU_VENV); exit 1; }
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-gpu.txt -e '.[test]'
	@touch $@

# --- the two commands -----------------------------------------------------------------------------------------------
demo: $(VENV)/.run  ## train a small GPT on Shakespeare, sample from it, check every kernel, write runs/demo/report.html (demo-2, ... if that is there)
	$(BIN)/fastgpt demo

study: $(VENV)/.run  ## a small depth study on the embedded Shakespeare, in 5 minutes: runs/study/study.html (BUDGET=30s: a smaller one)
	$(BIN)/fastgpt study depth --layers 1 2 4 8 --widths 64 --heads 4 --seq-len 64 --batch-size 16 --lr 1e-3 \
	  --tokenizer shakespeare --budget $(BUDGET) --name study

test: $(VENV)/.dev  ## the whole CPU test suite (on a GPU machine: on the GPU)
	$(PYTEST) -n $(JOBS) --dist worksteal -m 'not slow'

# --- more -----------------------------------------------------------------------------------------------------------
test-all: $(VENV)/.dev  ## the tests, slow ones included
	$(PYTEST) -n $(JOBS) --dist worksteal

test-cpus: $(VENV)/.dev  ## the numeric tests, with what libraries have for older CPUs (one: CPUS=default; one case in four: SAMPLE=4)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.cpus $(CPUS:%=--only %) -n $(JOBS) --dist worksteal \
	  $(SAMPLE:%=-p tests.support.sampled --one-in %)

test-luck: $(VENV)/.dev  ## the numeric tests, beside a torch whose results are exact but for the last rounding
	$(PYTEST) -p tests.support.luckiest -n $(JOBS) --dist worksteal -m 'numeric and not slow'

bench: $(VENV)/.dev  ## benchmarks beside peers (on a CPU: the peers that run there, without ours)
	$(BIN)/python -m pytest benchmarks/ --benchmark

gate: $(VENV)/.dev  ## compile every kernel for every GPU, offline, and rewrite the tables kernels/*/gate.txt
	$(BIN)/python -m benchmarks.gate --write --jobs $(JOBS)

gate-check: $(VENV)/.dev  ## recompile a fixed sample of the gate's rows; fail on any that is worse than its table
	$(BIN)/python -m benchmarks.gate --check --sample 48 --jobs $(JOBS)

softgpu: $(VENV)/.dev  ## execute every compiled kernel for sm_80, sm_90 and sm_100 on the CPU, every access checked, under six schedules; write the table
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.softgpu --write --jobs $(JOBS)

softgpu-tests: $(VENV)/.dev  ## the kernels' tests, compiled for sm_80 and for sm_90 (warps in an adversary's order), executed on the CPU
	FASTGPT_DEVICE=softgpu $(PYTEST) tests/kernels -n $(JOBS) --dist worksteal -m 'not slow' --timeout 1800
	FASTGPT_DEVICE=softgpu SOFTGPU_ARCH=sm_90 SOFTGPU_SCHEDULE=worst SOFTGPU_LANDING=random SOFTGPU_APPROX=1 SOFTGPU_SEED=1 \
	  $(PYTEST) tests/kernels -n $(JOBS) --dist worksteal -m 'not slow' --timeout 1800

softgpu-faults: $(VENV)/.dev  ## plant faults of every kind in compiled kernels; that must find each
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.softgpu.planting --write --jobs $(JOBS)

mutants: $(VENV)/.dev  ## plant every listed fault in kernels and fastgpt, one at a time; each must be caught
	$(BIN)/python -m tests.mutants --jobs $(JOBS)

faults: $(VENV)/.dev  ## fail or kill the training loop at every call that changes a file; the next run must make it good
	$(BIN)/python -m tests.faults --jobs $(JOBS)

faults-ranks: $(VENV)/.dev  ## kill ranks of jobs of torchrun at twenty moments; each job must end with the undisturbed one's bits
	$(BIN)/python -m tests.faults.ranks --write

fuzz: $(VENV)/.dev  ## property-based tests, long mode
	FASTGPT_FUZZ_EXAMPLES=500 $(PYTEST) tests/fuzz -n $(JOBS) --timeout 7200

matrix: $(GPU_VENV)/.dev  ## the test suite on torch 2.11 and triton 3.6 (3 GB to download; needs Python 3.12)
	$(GPU_VENV)/bin/python -m tests.matrix --jobs $(JOBS)

gpu-cache: $(GPU_VENV)/.dev  ## compile what scripts/gpu_session.sh launches on an H100, into .gpu-cache/ (no GPU needed)
	$(GPU_VENV)/bin/python scripts/gpu/cache.py build --jobs $(JOBS)

gpu-dry-run: $(GPU_VENV)/.dev  ## run scripts/gpu_session.sh on a GPU that is not there, with the kernels of .gpu-cache/
	$(GPU_VENV)/bin/python scripts/gpu/cache.py try --jobs $(JOBS)

gpu-rehearsal: $(VENV)/.dev  ## run scripts/gpu_session.sh on a simulated GPU, whose kernels compute, at tiny sizes
	$(BIN)/python scripts/gpu/rehearse.py --jobs $(JOBS)

readme: $(VENV)/.dev  ## regenerate the README's tables and its picture of the study from benchmarks/results
	$(BIN)/python -m benchmarks.readme --write

check: lint types  ## before each commit: rules, types and one quick test of every promise, in a minute
	$(PYTEST) -n $(JOBS) --dist worksteal -m quick -q tests/kernels tests/fastgpt tests/test_arrows.py tests/test_docs.py tests/test_prose.py

types: $(VENV)/.dev  ## mypy over fastgpt/ and the host code of kernels/
	@rm -rf .typecheck && mkdir -p .typecheck/fastgpt
	@ln -s $(CURDIR)/fastgpt/* .typecheck/fastgpt && ln -s $(CURDIR)/kernels .typecheck/fastgpt
	cd .typecheck && $(abspath $(BIN))/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p fastgpt

lint: $(VENV)/.dev  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## let ruff rewrite the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev  ## build wheel and sdist into dist/
	rm -rf build dist
	$(BIN)/python -m build --quiet

lock: $(VENV)/.dev  ## rewrite constraints.txt for Python 3.10 to 3.13, and constraints-gpu.txt (needs uv on the PATH)
	printf 'torch==2.13.0\ntriton==3.7.1\n' | uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 \
	  -c - --no-annotate --no-header -o constraints.txt
	sed -i '1i # What CI installs, for Python 3.10 to 3.13 (`make lock` rewrites it). The package itself states ranges: pyproject.toml.' constraints.txt
	printf 'torch==2.11.0\ntriton==3.6.0\nnumpy==2.5.2\ntransformers==5.17.0\n' | uv pip compile pyproject.toml --extra test \
	  --python-version 3.12 -c - --no-annotate --no-header -o constraints-gpu.txt
	sed -i '1i # What GPU machines have, for Python 3.12: `make matrix` runs the tests on it (`make lock` rewrites it).' constraints-gpu.txt

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) $(GPU_VENV) .gpu-cache .gpu-build build dist runs .pytest_cache .ruff_cache .mypy_cache .typecheck .hypothesis .benchmarks *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
