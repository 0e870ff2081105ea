# veery: the two main commands are `make demo` and `make test`; both do their own set-up.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

DRIVER ?= qemu
PYTEST ?=

# The system's own Python if it is new enough: a pyenv shim in PATH may be a Python without Debian's packages.
PYTHON := $(shell for each in /usr/bin/python3 python3; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
SETUP := PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m veery.lab.setup
BIN := .venv/bin
VENV := .cache/venv.stamp
PIP = $(BIN)/python -m pip install --disable-pip-version-check

ifeq ($(filter $(DRIVER),qemu xen),)
$(error DRIVER=$(DRIVER): the drivers are: qemu, xen)
endif
ifeq ($(PYTHON),)
$(error veery needs Python 3.11 or later as /usr/bin/python3 or python3)
endif

.PHONY: FORCE $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## print this help
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo 'PYTEST=... is passed to pytest, for example PYTEST="-k tap tests/unit".'
	@echo 'BENCH=... is passed to the bench, for example BENCH="--rounds 5 --parts moves".'

demo: root setup ## the seed's experiment on real parts, with comments (about a minute; DRIVER=xen: on nested Xen hosts)
	@$(BIN)/veery lab demo --driver $(or $(DRIVER),qemu)

test: root setup ## run every check and every test
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest $(or $(PYTEST),-n 2 --dist loadfile -m 'not slow' tests/unit tests/fuzz tests/simulation tests/contract \
		tests/faults tests/integration)
	@[ -n '$(PYTEST)' ] || $(BIN)/python -m pytest -m 'not slow' tests/nested

check: $(VENV) ## check format, lint, types and layers; fail if a program that the tests start is missing
	@$(SETUP) programs
	@$(MAKE) --no-print-directory style

style: $(VENV)
	@$(BIN)/ruff format --check --quiet . || { echo 'error: format with: $(BIN)/ruff format .'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@PYTHONPATH=src $(BIN)/lint-imports --no-logo --config pyproject.toml >.cache/layers.log 2>&1 \
		|| { cat .cache/layers.log; exit 1; }
	@echo 'format, lint, types, layers: good'

unit: $(VENV) ## check format, lint, types and layers, and run every test that needs no lab
	@$(MAKE) --no-print-directory style
	@$(BIN)/python -m pytest $(or $(PYTEST),-q -n 2 --dist loadfile -m 'not slow' tests/unit)

faults-move: root setup ## inject every fault in every phase of a move, into docs/faults.md (about 40 minutes; GO_ON=1 continues)
	@[ -n '$(GO_ON)' ] || rm -f .cache/cells.json
	@VEERY_CELLS=.cache/cells.json $(BIN)/python -m pytest -v --tb=short tests/faults/test_matrix.py || true
	@PYTHONPATH=tests:tests/faults $(BIN)/python tests/faults/cells.py .cache/cells.json docs/faults.md

faults: root setup ## inject 200 faults from a seeded nemesis, into docs/faults.md (about an hour; GO_ON=1 continues, SEED=17: one round)
	@[ -n '$(GO_ON)$(SEED)' ] || rm -f .cache/rounds.json
	@VEERY_ROUNDS=.cache/rounds.json VEERY_SEED=$(SEED) $(BIN)/python -m pytest -v --tb=short tests/faults/test_nemesis.py || true
	@PYTHONPATH=tests:tests/faults $(BIN)/python tests/faults/rounds.py .cache/rounds.json docs/faults.md

faults-sim: setup ## run 3,000 random schedules in the simulated cluster, and the mutants that they must find (about 40 minutes)
	@$(BIN)/python -m pytest -v --tb=short -m slow $(or $(PYTEST),tests/simulation)

networks: root setup ## change the addresses of lab nodes under domains; test a lab with IPv6 only (about eight minutes)
	@$(BIN)/python -m pytest -v --tb=short -m slow $(or $(PYTEST),tests/integration/test_readdress.py tests/integration/test_ipv6.py)

mutants: setup ## make one-line faults in the move and in HA; the tests must find each (slow)
	@$(BIN)/python tests/unit/migrate/move_mutants.py
	@$(BIN)/python -m pytest -v --tb=short -m slow tests/simulation -k mutant

recovery: root setup ## lose and recover the store under a running domain, in each way of docs/recovery.md (about 5 minutes)
	@$(BIN)/python -m pytest -v --tb=short tests/faults/test_recovery.py

rollover: root setup ## roll a new CA out under a running domain, cancel it, and roll it out (about 4 minutes)
	@$(BIN)/python -m pytest -v --tb=short tests/integration/test_ca_rollover.py

versions: root setup ## test a lab with nodes of an older version: moves both ways, and a rolling upgrade (about 5 minutes)
	@$(BIN)/python -m pytest -v --tb=short -m slow tests/faults/test_versions.py

qemu-versions: root setup ## test moves between the machine's QEMU and Debian's newest, both ways (about 5 minutes; fetches 50 MB)
	@$(BIN)/python -m pytest -v --tb=short -m slow tests/integration/test_qemu_versions.py

soak: root setup ## move a domain that writes memory and disk 300 times to and fro (about 10 minutes)
	@VEERY_SOAK=.cache/soak.json $(BIN)/python -m pytest -v --tb=short tests/faults/test_growth.py -k 300
	@PYTHONPATH=tests:tests/faults $(BIN)/python tests/faults/soak.py .cache/soak.json docs/faults.md

fuzz: root setup ## run every fuzzer of tests/fuzz, with new examples each time (FUZZ_SECONDS=600 in total)
	@FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(BIN)/python -m pytest -v --tb=short --timeout 0 $(or $(PYTEST),tests/fuzz)

slow: root setup ## run the slow tests without their own target, for example the guest that ends during a move under Xen
	@$(BIN)/python -m pytest -v --tb=short -m slow $(or $(PYTEST),tests/unit/migrate/test_moving_guest_xen.py tests/contract \
		tests/integration tests/faults/test_nodes.py tests/faults/test_postcopy.py tests/faults/test_upkeep.py)

nested: root setup ## run the slow tests on nested Xen hosts
	@$(BIN)/python -m pytest -v --tb=short -m slow $(or $(PYTEST),tests/nested)

bench: root setup ## measure moves, compared with a bare QMP script and virsh (about an hour); DRIVER=xen: with xl migrate
	@$(BIN)/python -m bench$(if $(filter xen,$(DRIVER)),.xen) $(BENCH)

bench-ha: root setup ## measure power cuts and drains, from the cut to the guest's answer (about 20 minutes); writes bench/ha.json
	@$(BIN)/python -m bench.ha $(BENCH)

bench-strangers: root setup ## measure moves and power cuts during connections from 2,000 strangers, into docs/bench.md (about 15 minutes)
	@$(BIN)/python -m bench.strangers $(BENCH) && $(BIN)/python -m bench.page --input bench/strangers.json

bench-balance: root setup ## plan for 200 generated clusters beside Ganeti's hbal, which scores both (some hours; BENCH="--clusters 40")
	@$(BIN)/python -m bench.balance $(BENCH)

fresh: root setup ## run the README's commands in a bare Debian root, before each release (SUITE=trixie; TARGETS="setup check")
	@$(BIN)/python -m veery.lab.fresh --suite $(or $(SUITE),bookworm) $(TARGETS)

lab: root setup ## build the lab and keep it (veery lab down removes it)
	@$(BIN)/veery lab up

setup: system $(VENV) ## do only the set-up: packages, guest kernel, .venv

api: $(VENV) ## write docs/api.md and docs/openapi.json from the table of routes
	@$(BIN)/python -m veery.api.pages >.cache/api.md && mv .cache/api.md docs/api.md
	@$(BIN)/python -m veery.api.openapi >.cache/openapi.json && mv .cache/openapi.json docs/openapi.json

lock: $(VENV) ## resolve pyproject.toml again into packaging/requirements.lock
	@cd packaging && ../$(BIN)/pip-compile --quiet --upgrade --extra dev --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --no-header --no-annotate \
		--cache-dir ../.cache/pip-tools --output-file requirements.lock ../pyproject.toml
	@sed -i '1i # Made by `make lock`: every package that .venv holds, with the hashes of its files. Not to be edited.' \
		packaging/requirements.lock

dist: $(VENV) ## make a wheel and an sdist, in dist
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >.cache/dist.log 2>&1 || { tail -n 20 .cache/dist.log; exit 1; }
	@ls dist/*

dist-test: dist ## install the wheel and the sdist by pip, each in an empty virtual environment
	@$(BIN)/python -m pytest -v --tb=short -m slow tests/packages/test_dist.py

deb: $(VENV) ## make the Debian packages, in build (SUITE=bookworm or trixie: one of them)
	@$(BIN)/python packaging/deb/package.py $(SUITE)

deb-check: deb ## check the packages with lintian, which must be installed (apt-get install lintian)
	@lintian --fail-on error,warning --allow-root build/*.deb

deb-test: root setup ## install, upgrade, downgrade and purge the Debian package in a bare root (SUITE=trixie)
	@rm -rf .cache/deb/$(or $(SUITE),bookworm)
	@$(BIN)/python packaging/deb/package.py --quick --revision 1 --revision 2 --out .cache/deb/$(or $(SUITE),bookworm) \
		$(or $(SUITE),bookworm)
	@VEERY_SUITE=$(or $(SUITE),bookworm) $(BIN)/python -m pytest -v --tb=short -m slow tests/packages/test_deb.py

clean: ## remove the generated files in this folder (.venv, .cache); downloads stay in ~/.cache/veery
	@rm -rf .venv .cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist bench/latest.json bench/ha.json bench/strangers.json
	@find . -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up
root:
	@[ "$$(id -u)" = 0 ] || { echo 'error: the lab makes network namespaces and installs packages: run make as root' >&2; exit 1; }

.PHONY: system
system: root
	@$(SETUP) packages guest agents

# Made again when the lock changes, and when the work tree was moved (the stamp contains its path).
$(VENV): packaging/requirements.lock pyproject.toml $(if $(filter $(CURDIR),$(shell cat $(VENV) 2>/dev/null)),,FORCE)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(SETUP) packages
	@mkdir -p .cache
	@$(BIN)/python -c '' 2>/dev/null || { rm -rf .venv; echo 'python: making .venv'; $(PYTHON) -m venv .venv; }
	@echo 'python: installing the packages of packaging/requirements.lock'
	@{ $(PIP) --require-hashes -r packaging/requirements.lock && $(PIP) --no-deps --no-build-isolation -e .; } \
		>.cache/pip.log 2>&1 || { tail -n 20 .cache/pip.log; echo 'error: see .cache/pip.log' >&2; exit 1; }
	@echo '$(CURDIR)' >$@

FORCE:
