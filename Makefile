# Every target builds .venv when it has to; a second call finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help up demo test fuzz chaos test-sdks test-cookbook test-slow lint screenshots bench bench-distill bench-distill-long bench-gpu bench-page bench-test clean soak fairness

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## +/\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(ENOUGH)' || \
	  { echo "Tinsmith needs Python 3.11 or newer; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[all,dev]'
	@touch $@

up: $(STAMP)  ## Start the whole service on this machine
	$(BIN)/tinsmith up

demo: $(STAMP)  ## Train a small model through the service; writes demo.png
	$(BIN)/tinsmith demo --out demo.png

lint: $(STAMP)  ## Format, lint, types and walls between the packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## Lint, then every test that needs no GPU
	$(BIN)/pytest -q

CHAOS ?= --seed 1 --kills 40

chaos: $(STAMP)  ## Kill what can be killed, for minutes, and compare bit by bit; CHAOS="--seed 7 --kills 60"
	TINKER_TELEMETRY=0 PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python -m tests.chaos $(CHAOS)

test-sdks: $(STAMP)  ## Every method by SDKs from 0.6.3 on and by ours; writes docs/compatibility.md
	rm -rf .sdks/results
	$(BIN)/pytest -q tests/sdks
	$(BIN)/python -m tests.sdks.table

test-cookbook: $(STAMP)  ## tinker_cookbook's recipes, unmodified, in .cookbooks/; each must learn
	rm -f .cookbooks/figures.json
	$(BIN)/pytest -q tests/cookbook
	$(BIN)/python -m tests.cookbook.page

fuzz: $(STAMP)  ## Hundreds of requests to every route, against the OpenAPI document
	FUZZ_EXAMPLES=200 $(BIN)/pytest -q tests/contract/test_openapi.py tests/contract/test_protobuf_fuzz.py

test-slow: $(STAMP)  ## What takes minutes: Gemma 3 270M (https://ai.google.dev/gemma/terms)
	$(BIN)/pytest -q -m slow

BENCH := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python -m
BENCHES = $(filter-out bench_gpu,$(basename $(notdir $(wildcard benchmarks/bench_*.py))))

bench: $(STAMP)  ## Benchmarks, one thread; rows in benchmarks/results, tables in docs
	@rm -f benchmarks/results/latest.json
	@set -e; for bench in machine $(BENCHES); do echo "== $$bench"; $(BENCH) benchmarks.$$bench; done
	@$(BENCH) benchmarks.tables

bench-distill: $(STAMP)  ## Four ways to learn from a teacher, through the service; docs/distillation.md
	@$(BENCH) benchmarks.distill

bench-distill-long: $(STAMP)  ## SmolLM2-135M on real text: held-out KL over student tokens, three seeds; STEPS=60
	@$(BENCH) benchmarks.distill_long --steps $(or $(STEPS),60)

bench-gpu: $(STAMP)  ## An 8B-shaped model on a CUDA device against what the device can do
	@$(BENCH) benchmarks.bench_gpu
	@$(BENCH) benchmarks.tables

screenshots: $(STAMP)  ## docs/images, of a service that trains (chromium)
	$(BIN)/python -m tests.browser.screenshots

bench-page: $(STAMP)  ## docs/performance.md from the rows of benchmarks/results
	@$(BENCH) benchmarks.tables

soak: $(STAMP)  ## 16 clients for MINUTES=30: does memory, or anything else, grow?
	@$(BENCH) benchmarks.soak --minutes $(or $(MINUTES),30)

fairness: $(STAMP)  ## A small request beside 200 queued ones of another tenant, and in one FIFO with them
	@$(BENCH) benchmarks.http_fairness

bench-test: $(STAMP)  ## The benchmarks' own tests: harness, both sides, tables
	$(BIN)/pytest -q benchmarks

clean:  ## Remove the environment and every cache
	rm -rf $(VENV) build dist demo.png .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache
	find client server worker tests -name __pycache__ -prune -exec rm -rf {} +
