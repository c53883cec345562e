# The two commands: `make run` starts T-Bot, `make test` runs its tests. Neither needs any setup
# beyond a Python 3.12 or newer. `make help` lists the rest.
.SUFFIXES:

PYTHON = .venv/bin/python
# All tests run in two processes, each with a Postgres of its own.
# One test: make test T=tests/unit/core     With more: make test ARGS='-x -k chain'
T =
ARGS =
WORKERS = 2
KILLS = 20
SEEDS = 10000
SEED = 1

.PHONY: help run test check audit format bench chaos simulate nightly samples migration schema docs lock clean install dev

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

run: ## install what is missing and start T-Bot
	@scripts/bootstrap run
	@exec .venv/bin/tbot up $(ARGS)

install: ## install the locked packages into .venv
	@scripts/bootstrap run

dev: ## the same with the tools for development
	@scripts/bootstrap dev

test: dev ## all tests that take no more than seconds
	@unset PYTHONDONTWRITEBYTECODE; \
	exec $(PYTHON) -m pytest -q -m 'not long' $(if $(T),,-n $(WORKERS) --dist worksteal) $(ARGS) $(T)

check: dev ## format, lint, types, import contracts, house rules
	@scripts/check

format: dev ## rewrite the sources as `make check` wants them
	@$(PYTHON) -m isort --quiet src tests scripts bench examples
	@$(PYTHON) -m black --quiet src tests scripts bench examples
	@$(PYTHON) -m ruff check --quiet --fix-only src tests scripts bench examples

audit: dev ## known vulnerabilities of every locked dependency (asks the network), and bandit
	@$(PYTHON) scripts/audit.py $(ARGS)

samples: dev ## a minute of chaos and conformance
	@scripts/samples

bench: dev ## every benchmark with its baseline
	@scripts/bench

bench-%: dev
	@$(PYTHON) bench/bench_$*.py $(ARGS)

chaos: dev ## kill -9 of every part while orders flow: make chaos KILLS=20 SEED=1
	@$(PYTHON) bench/chaos_kills.py --kills $(KILLS) --seed $(SEED) $(ARGS)

simulate: dev ## seeds of the simulated write path: make simulate SEEDS=10000 SEED=1
	@$(PYTHON) bench/chaos_simulate.py --seeds $(SEEDS) --seed $(SEED) $(ARGS)

nightly: dev ## the long versions of everything
	@$(PYTHON) -m pytest $(ARGS)
	@$(PYTHON) scripts/audit.py --offline-is-fine
	@scripts/samples --long
	@scripts/bench

migration: dev ## the next migration's file: make migration name=add_a_thing
	@$(PYTHON) scripts/generate.py migration '$(name)'

schema: dev ## docs/schema.sql from the replayed migrations
	@$(PYTHON) scripts/generate.py schema

docs: dev ## docs/settings.md, docs/refusals.md and docs/schema.sql from the sources
	@$(PYTHON) scripts/generate.py docs
	@$(PYTHON) scripts/generate.py schema

lock: ## requirements/*.txt from pyproject.toml (needs uv)
	@scripts/lock $(ARGS)

clean: ## remove what can be made again; data/ stays
	rm -rf .venv .venv.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build
	find src tests scripts bench examples -type d -name __pycache__ -prune -exec rm -rf {} +
