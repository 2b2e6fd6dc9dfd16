# Two commands on a fresh machine (Python 3.11, make, git): `make demo` and `make test`.
SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first that runs; a shim of pyenv is there without its Python.
PYTHON ?= $(shell for name in python3.11 python3; do $$name -c '' 2>/dev/null && command -v $$name && break; done)
ENVS := .envs
UV_FILE := $(ENVS)/uv/bin/uv
UV := $(ENVS)/uv/bin/python requirements/uv_like_pip.py
# A fixed release, so that all machines resolve and install alike.
UV_VERSION := 0.13.9
# uv must not download an interpreter; the machine's Python 3.11 is used.
export UV_PYTHON_DOWNLOADS := never

# By default, waiting threads spin; on a small machine they take the cores from all other processes.
export OMP_WAIT_POLICY := passive

# Serving without a GPU needs another build of vLLM. On a login node without one: make SERVE=serve envs
SERVE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo serve || echo serve-cpu)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# --- environments ---------------------------------------------------------------------------------
# What would fail after a long download is told first; again when the pins change.
MACHINE := $(ENVS)/machine-$(SERVE)
$(MACHINE): requirements/check_machine.py requirements.txt
	@$(PYTHON) -c '' || { echo "error: PYTHON=$(PYTHON) does not run; Python 3.11 is needed"; exit 1; }
	@$(PYTHON) $< $(SERVE) $(DRIVER_CHECK)
	@mkdir -p $(ENVS) && touch $@

$(UV_FILE): | $(MACHINE)
	$(PYTHON) -m venv $(ENVS)/uv
	$(ENVS)/uv/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION)

# $(call build,NAME,PINS): make the environment hold exactly the pins.
define build
	@test -x $(ENVS)/$(1)/bin/python || $(UV) venv -q --python $(PYTHON) $(ENVS)/$(1)
	$(UV) pip sync -q --python $(ENVS)/$(1)/bin/python $(2)
	@cp $(2) $@
endef

$(ENVS)/main/pins: requirements.txt | $(MACHINE) $(UV_FILE)
	$(call build,main,$<)
$(ENVS)/%/pins: requirements/%.txt | $(MACHINE) $(UV_FILE)
	$(call build,$*,$<)

.PHONY: envs
envs: $(ENVS)/main/pins $(ENVS)/sft/pins $(ENVS)/$(SERVE)/pins ## the three environments

.PHONY: qlora
qlora: $(ENVS)/main/pins ## bitsandbytes in the main environment, for --load_in_4bit of stage 3
	$(UV) pip sync -q --python $(ENVS)/main/bin/python requirements/qlora.txt

.PHONY: ray
ray: $(ENVS)/ray/pins ## the environment of scripts/infer_ray.py, for inference on several machines

COMPILE := $(UV) pip compile -q --no-header --no-annotate --python-version 3.11 --upgrade
.PHONY: lock
lock: | $(UV_FILE) ## write all pins anew from the short inputs
	$(COMPILE) requirements/main.in -o requirements.txt
	$(COMPILE) requirements/sft.in -o requirements/sft.txt
	$(COMPILE) requirements/serve.in -o requirements/serve.txt
	$(COMPILE) requirements/grpo.in -o requirements/grpo.txt
	$(COMPILE) --override requirements/serve-cpu.overrides requirements/serve-cpu.in -o requirements/serve-cpu.txt
	$(COMPILE) -c requirements.txt requirements/dev.in -o requirements/dev.txt
	$(COMPILE) -c requirements.txt requirements/qlora.in -o requirements/qlora.txt
	$(COMPILE) -c requirements.txt requirements/ray.in -o requirements/ray.txt

# --- work -----------------------------------------------------------------------------------------
SEEDS ?= 0
# BASE=qwen3_vl, BASE=qwen3_5: the same pictures and settings, another family's base.
DEMO_qwen3_vl := --world-family qwen3_vl --sft-template qwen3_vl_nothink --runs runs/demo-qwen3_vl
DEMO_qwen3_5 := --world-family qwen3_5 --sft-template qwen3_5_nothink --runs runs/demo-qwen3_5
DEMO_BASE = $(if $(BASE),$(or $(DEMO_$(BASE)),$(error BASE=$(BASE): not qwen3_vl or qwen3_5)))
.PHONY: demo demo-clean
demo: envs ## the whole chain in small, on real engines (SEEDS="0 1 2" for three; ROUNDS=2; BASE=qwen3_vl)
	scripts/chain.sh --profile configs/demo --seeds $(SEEDS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(DEMO_BASE)
demo-clean: ## forget every result of the demo
	rm -rf runs/demo runs/demo-qwen3_vl runs/demo-qwen3_5 dataset/demo

# More workers than cores: many tests wait for servers. So one thread for each.
QUICK_TESTS := OMP_NUM_THREADS=1 $(ENVS)/dev/bin/pytest -m "not slow" -n 3 --dist loadfile
.PHONY: quick test check bench bench-client bench-capacity bench-service bench-structured bench-merge bench-dpo
check: $(ENVS)/dev/pins ## lint, format and types
	$(ENVS)/dev/bin/ruff check .
	$(ENVS)/dev/bin/ruff format --check .
	$(ENVS)/dev/bin/mypy
bench: bench-client bench-capacity bench-service bench-merge bench-dpo ## benchmarks; their results are in tests/bench/RESULTS.md
	$(ENVS)/main/bin/python tests/bench/threads.py
	$(ENVS)/main/bin/python tests/bench/climb.py
	$(ENVS)/main/bin/python tests/bench/lengths.py
	$(ENVS)/main/bin/python tests/bench/until.py
	$(ENVS)/main/bin/python tests/bench/preparing.py
	$(ENVS)/main/bin/python tests/bench/comparison.py
	$(ENVS)/main/bin/python tests/bench/fleet.py
	$(ENVS)/main/bin/python tests/bench/reward.py
bench-client: envs ## the client and other clients against a fast mock server (10 to 15 minutes; its flags: tests/bench/client.py)
	$(ENVS)/main/bin/python tests/bench/client.py
bench-capacity: envs ## --concurrency auto and fixed numbers on a real server (needs `make demo`)
	$(ENVS)/main/bin/python tests/bench/capacity.py
bench-service: envs ## the service under faults, and beside the client (15 minutes; needs `make demo`)
	$(ENVS)/main/bin/python tests/bench/service.py soak
	$(ENVS)/main/bin/python tests/bench/service.py rate
bench-structured: envs ## --structured-output on a real server: cost and accuracy (needs `make demo SEEDS="0 1"`)
	$(ENVS)/main/bin/python tests/bench/structured.py
bench-merge: envs ## the merger and a dictionary join (half an hour and 30 GB of disk; its flags: tests/bench/merge.py)
	$(ENVS)/main/bin/python tests/bench/merge.py
bench-dpo: envs ## stage 3 and stock TRL (an hour on 2 cores; its flags: tests/bench/dpo.py)
	$(ENVS)/main/bin/python tests/bench/dpo.py
quick: envs check ## while working: lint, types and the tests that are not slow (under 3 minutes on 2 cores)
	$(QUICK_TESTS) -q
test: envs ray check ## every check and test, the whole chain among them
	$(QUICK_TESTS)
	$(ENVS)/dev/bin/pytest -m slow -n 2 --dist loadfile --durations=25
