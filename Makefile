# Short targets; everything they need goes into .venv, at the versions of the lock files.
PYTHON ?= python3
BIN := .venv/bin
# Once, now: the demo counts the making of its environment, too.
FLEET_DEMO_STARTED := $(shell date +%s.%N)
export FLEET_DEMO_STARTED
export PATH := $(CURDIR)/$(BIN):$(PATH)

PIP_COMPILE_FLAGS := --quiet --generate-hashes --allow-unsafe --strip-extras --build-deps-for=editable \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.PHONY: help venv demo test lint unit site sanity molecule test-slow test-vm docs bundle release matrix lock clean bench

help:               ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

venv: $(BIN)/.runtime     ## The environment in .venv: what running needs, and nothing for tests

demo: $(BIN)/.runtime    ## Cluster up, configured, a container job run on it; asserts every step
	fleet demo --install-host-packages

test: lint unit site sanity molecule   ## Everything: linters, unit and property tests, docs, lab tests, Molecule scenarios

lint: $(BIN)/.dev   ## Linters, types, and whether generated pages are fresh
	ruff check . && ruff format --check . && mypy && yamllint --strict . && ansible-lint --offline && fleet docs --check

unit: $(BIN)/.dev   ## Unit and property tests: no node, no root
	pytest --numprocesses=auto

site: $(BIN)/.dev   ## The documentation as a site, in build/site; a warning fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

sanity: $(BIN)/.dev   ## ansible-test's own checks of the modules and their documentation
	tests/sanity

molecule: $(BIN)/.dev   ## Lab tests and Molecule scenarios on booted nodes (root)
	tests/integration/run

test-slow: $(BIN)/.dev   ## Molecule scenarios that take too long for every change (root)
	tests/integration/run slow

test-vm: $(BIN)/.dev   ## Molecule scenarios on virtual machines, kernels of their own (root; slow without KVM)
	tests/integration/run machines

bench: $(BIN)/.dev  ## Figures of this machine; nothing is asserted (root)
	tests/bench/lab_boot
	tests/bench/image_digests
	tests/bench/role_tasks
	tests/bench/image_rescan
	tests/bench/audit_page
	tests/bench/fleet_progress
	tests/bench/scale.py 50 100

docs: $(BIN)/.dev   ## Write role READMEs and reference pages anew
	fleet docs

bundle:             ## One archive that installs on a machine without a package index
	PYTHON=$(PYTHON) packaging/bundle

release:            ## Rehearse a release: make release VERSION=X.Y.Z checks, writes the tag's notes, tags nothing
	$(PYTHON) packaging/release "$(VERSION)"

matrix:             ## Unit and property tests with every supported ansible-core whose Python is here
	packaging/matrix

lock:               ## Resolve the ranges of pyproject.toml into the lock files anew
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet 'pip-tools>=7.4,<8'
	build/lock/bin/pip-compile $(PIP_COMPILE_FLAGS) --output-file=requirements.lock pyproject.toml
	build/lock/bin/pip-compile $(PIP_COMPILE_FLAGS) --extra=dev --output-file=requirements-dev.lock pyproject.toml

clean:              ## Take all labs down, remove the environment and the cache
	-$(BIN)/fleet lab down --all
	rm -rf .venv .ansible build .mypy_cache .ruff_cache .pytest_cache
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/apptainer-fleet"

$(BIN)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(BIN)/.dev: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@ $(BIN)/.runtime
