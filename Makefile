SHELL := /bin/bash
# A fresh rustup is on PATH only after the next login.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Progress for people, silence for logs.
quiet := $(shell test -t 2 || echo --quiet)

PREFIX ?= /usr/local

.PHONY: help setup demo install test models bench conformity clean distclean
.NOTPARALLEL:

help: ## Lists what can be made (the default).
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Installs what is missing: Debian packages, libtorch into .libtorch/ (540 MB to download, once).
	@scripts/setup.sh

demo: setup ## Quantizes a trained digit classifier and compares it with the original. Sets up first.
	@scripts/step.sh "cargo build" cargo build $(quiet)
	@scripts/step.sh "demo" scripts/demo.sh

install: setup ## Installs libjitquant.so, headers, a CMake package and a pkg-config file under PREFIX (/usr/local).
	@scripts/step.sh "cargo build" cargo build $(quiet) --release --lib --no-default-features --features torch
	@scripts/step.sh "install" scripts/install.sh "$(PREFIX)"

test: ## Runs every check: formatting, lints, tests with and without libtorch, documentation. Sets up first.
	@scripts/setup.sh test
	@scripts/test.sh

models: setup ## Exports larger real models into models/, with a Python and torch of its own (a long download).
	@scripts/step.sh "models" scripts/models/export.sh

bench: setup ## Measures jitquant's kernels against libtorch's engines (bench.json has the figures; not part of the tests).
	@scripts/step.sh "make bench" cargo bench $(quiet) --bench libtorch -- --json bench.json

conformity: ## Runs PyTorch's own test suites on jitquant's passes (PYTORCH_SOURCE: a checkout; downloads torch; not part of the tests).
	@scripts/conformity/run.sh "$(PYTORCH_SOURCE)"

clean: ## Removes what was built, and the demo's output.
	@cargo clean
	@rm -rf demo-out

distclean: clean ## Removes libtorch, the exported models and their Python environments as well.
	@rm -rf .libtorch .libtorch.part.* models .venv*
