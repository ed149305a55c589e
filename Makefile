# Every target sets up what it needs, from nothing. `make help` lists them.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := $(VENV)/.vllm
HQQ := $(VENV)/opt/hqq/.ready
EVAL := $(VENV)/opt/eval/.ready
REPORTERS := $(VENV)/opt/reporters/.ready
LOCKED := $(wildcard engines/setup/locks/*.txt)

PORT ?= 8000
MODEL ?=
ENGINE ?= pt
ARGS ?=
TESTS ?= tests
WORKERS ?= 2
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint types format bench docs lock audit
.PHONY: environments lmdeploy-environment evalscope-environment pages-folder

help: ## List the targets and their variables
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  serve:  PORT=8000  MODEL=folder or hub id (the demo model)  ENGINE=pt, vllm or lmdeploy"
	@echo "          ARGS='--max_length 4096 ...'"
	@echo "  test:   TESTS=tests  WORKERS=2  ARGS='-k name ...'"
	@echo "  setup:  PYTHON=python3.12  TORCH_INDEX=URL of the index that torch comes from, such as PyTorch's for CPUs:"
	@echo "          on Linux, PyPI's build of torch brings gigabytes of CUDA libraries"

setup: $(READY) ## Make .venv with our engine and training

# A second run costs nothing; a changed pyproject.toml or list, or an interrupted run, installs again.
$(READY): pyproject.toml $(LOCKED)
	@python=$$(for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done); \
	  [ -n "$$python" ] || { echo "make: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2; exit 1; }; \
	  "$$python" -m venv $(VENV)
	$(BIN)/python -m engines.setup.locked server dev build demo $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The other engines, for the targets that want them.
$(VLLM): $(READY) engines/setup/install.py
	$(BIN)/python -m engines.setup.install vllm >/dev/null
	@touch $@

# Beside the environment: where it can be imported, every process imports it.
$(HQQ): $(READY) engines/setup/locks/hqq.txt
	$(BIN)/python -m engines.setup.locked hqq --target $(@D)
	@touch $@

$(EVAL): $(READY) engines/setup/locks/eval.txt
	$(BIN)/python -m engines.setup.locked eval --target $(@D)
	@touch $@

$(REPORTERS): $(READY) engines/setup/locks/reporters.txt
	$(BIN)/python -m engines.setup.locked reporters --target $(@D)
	@touch $@

# Kept in the user's cache for all checkouts. Where it is there, finding that out takes no more than a moment.
lmdeploy-environment: $(READY)
	@$(BIN)/python -m engines.setup.install lmdeploy $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) >/dev/null

# There, too: EvalScope, and what the pages are made with.
evalscope-environment: $(READY)
	@$(BIN)/python -m engines.setup.install evalscope >/dev/null

pages-folder: $(READY)
	@$(BIN)/python -m engines.setup.install pages >/dev/null

# What tests run beside .venv.
environments: $(HQQ) $(EVAL) $(REPORTERS) lmdeploy-environment evalscope-environment pages-folder

serve: $(READY) $(if $(filter vllm,$(ENGINE)),$(VLLM)) $(if $(filter lmdeploy,$(ENGINE)),lmdeploy-environment)
serve: ## Serve a model: OpenAI's API on PORT
	@model="$(MODEL)"; [ -n "$$model" ] || model=$$($(BIN)/python -m engines.setup.demo) || exit 1; \
	  exec $(BIN)/tuneserve deploy --model "$$model" --infer_backend $(ENGINE) --port $(PORT) $(ARGS)

# Compiled once: where PYTHONDONTWRITEBYTECODE is set, each of the many processes that tests start would do it again.
test: $(READY) $(VLLM) environments ## Run the tests
	@$(BIN)/python -m compileall -q engines server training tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS) $(TESTS)

lint: $(READY) ## Check format, code and the import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY) ## Check types
	$(BIN)/mypy

format: $(READY) ## Format the code, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure our server beside its peers, on a quiet machine
	$(BIN)/python -m benchmarks.serving $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(ARGS)

docs: $(READY) ## Write docs/parameters.md from the schema
	$(BIN)/python -m server.commands.docs

lock: $(READY) ## Write the lists of what is installed, with hashes, as pyproject.toml asks for it now
	$(BIN)/python .ci/lock.py $(ARGS)

audit: $(READY) ## Look up known vulnerabilities of what is installed
	$(BIN)/python .ci/audit.py
