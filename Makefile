# What a user and a developer do; `.ci/run` calls the same targets.

PYTHON ?= python3
# More options for pip. On Linux PyPI's torch brings gigabytes of CUDA; without a GPU, save them:
#   make serve PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# How many processes run the tests, each with a database and a live server of its own.
WORKERS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help serve test test-postgres triton lm-eval node recovery reliability benchmark lint format docs clean

# --name "value" if the variable stands on make's command line. Only there: a HOST, for one, is in
# many an environment and means something else.
flag = $(if $(filter command,$(firstword $(origin $(1)))),--$(2) "$($(1))")

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

serve: .venv/.requirements ## start the server: MODEL=, PORT=, HOST=, ARGS="--more flags"
	@exec .venv/bin/python manage.py serve \
	    $(call flag,MODEL,model) $(call flag,PORT,port) $(call flag,HOST,host) $(ARGS)

test: .venv/.requirements-dev ## run all tests, or ARGS="tests/test_settings.py -k flag"
	.venv/bin/python -m pytest $(WORKERS) $(ARGS)

test-postgres: .venv/.requirements-dev ## the same tests on a PostgreSQL of their own, or ARGS="tests/test_serve.py ..."
	.venv/bin/python -m tests.postgres $(ARGS)

triton: .venv/.requirements-dev ## test the GPU's kernels, without a GPU in Triton's interpreter
	.venv/bin/python -m pip install $(PIP_ARGS) -r requirements-triton.txt
	.venv/bin/python -m pytest tests/inference/test_triton_attention.py $(ARGS)

lm-eval: .venv/.requirements-dev ## score the demo model with lm-eval over HTTP, beside transformers
	.venv/bin/python -m pip install $(PIP_ARGS) 'lm-eval[api]==0.4.13'
	.venv/bin/python -m tests.clients.lm_eval_check

node: .venv/.requirements-dev ## the main cases with OpenAI's library for Node (needs node and npm)
	.venv/bin/python -m tests.clients.node_check

recovery: .venv/.requirements-dev ## kill the server in the middle of background responses
	.venv/bin/python -m tests.clients.recovery_check $(ARGS)

reliability: .venv/.requirements-dev ## do to a live server what may happen to it, or ARGS="kill9 cycles=5", --save, --report
	.venv/bin/python -m tests.reliability $(ARGS)

BENCHMARKS ?= engine serve structured storage
benchmark: .venv/.requirements ## the quick ones, or BENCHMARKS=serve ARGS="--start qwen3-0.6b"
	@for name in $(BENCHMARKS); do \
	    echo "python -m benchmarks.$$name $(ARGS)" && \
	    .venv/bin/python -m benchmarks.$$name $(ARGS) || exit 1; done

lint: .venv/.requirements-dev ## check format, rules, types, Django's settings, migrations
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy inference
	.venv/bin/python manage.py check --fail-level WARNING
	.venv/bin/python manage.py makemigrations --check --dry-run

format: .venv/.requirements-dev ## put the code in order
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/.requirements ## write docs/settings.md anew
	.venv/bin/python -m nanollmserve_site.env > docs/settings.md

clean: ## remove what make made; the data folder stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps are newer than the files they stand for, so that a second start has nothing to do.
.venv/.requirements: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(\
	    "nanoLLMServe needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	    "; name another: make PYTHON=python3.12")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(PIP_ARGS) -r requirements.txt
	@touch $@

.venv/.requirements-dev: .venv/.requirements requirements-dev.txt requirements-postgres.txt
	.venv/bin/python -m pip install $(PIP_ARGS) -r requirements-dev.txt
	@touch $@
