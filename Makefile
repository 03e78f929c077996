SHELL := /bin/bash
# A fresh rustup is on PATH only after the next login.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Progress for people, silence for logs.
quiet := $(shell test -t 2 || echo --quiet)

PREFIX ?= /usr/local

.PHONY: help setup demo install uninstall test test-python models bench accuracy matrix conformity generated sanitize clean distclean
.NOTPARALLEL:

help: ## Lists what can be made (the default).
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## Installs what is missing: Debian packages, libtorch into .libtorch/ (540 MB to download, once).
	@scripts/setup.sh

demo: setup ## Quantizes a trained digit classifier and compares it with the original. Sets up first.
	@scripts/step.sh "cargo build" cargo build $(quiet)
	@scripts/step.sh "demo" scripts/demo.sh

install: setup ## Installs libraries, headers, a CMake package and a pkg-config file under PREFIX (/usr/local); below DESTDIR for packages.
	@scripts/step.sh "cargo build" cargo build $(quiet) --release --lib --no-default-features --features torch
	@scripts/step.sh "cargo build (runtime)" cargo build $(quiet) --release -p jitquant-runtime-c
	@scripts/step.sh "install" scripts/install.sh "$(PREFIX)"

uninstall: ## Takes away what `make install` put under PREFIX.
	@scripts/install.sh --remove "$(PREFIX)"

test: ## Runs every check: formatting, lints, tests with and without libtorch, documentation. Sets up first.
	@scripts/setup.sh test
	@scripts/test.sh

test-python: setup ## Tests the operators from Python, with a PyTorch of its own (a long download; not part of `make test`).
	@scripts/step.sh "cargo build" cargo build $(quiet) --lib --no-default-features --features torch
	@scripts/step.sh "test-python" scripts/test-python.sh

models: setup ## Exports larger real models into models/, with a Python and torch of its own (a long download).
	@scripts/step.sh "models" scripts/models/export.sh

bench: setup ## Measures jitquant's kernels against libtorch's engines (bench.json has the figures; not part of the tests).
	@scripts/step.sh "make bench" cargo bench $(quiet) --bench libtorch -- --json bench.json

conformity: ## Runs PyTorch's own test suites on jitquant's passes (PYTORCH_SOURCE: a checkout; downloads torch; not part of the tests).
	@scripts/conformity/run.sh "$(PYTORCH_SOURCE)"

generated: setup ## Checks our passes, and INT8 models with writes in place, on 10,000 generated models each (an hour; `make test` has 300).
	@scripts/generated.sh
	@scripts/generated.sh 10000 "" functionalize

sanitize: setup ## Runs the kernel tests under thread and address sanitizers, and all operators on odd arguments (needs a nightly Rust; long).
	@scripts/sanitize.sh

matrix: setup ## Builds and tests the library against libtorch 2.9, 2.11, 2.13 and 2.15 (downloads 2 GB; long).
	@scripts/matrix.sh

accuracy: models ## Quantizes the models of `make models` and prints what they keep (accuracy.json has the figures).
	@scripts/step.sh "cargo build" cargo build $(quiet) --bin jitquant
	@$(or $(JITQUANT_MODELS_VENV),.venv-models)/bin/python scripts/accuracy/accuracy.py target/debug/jitquant models accuracy.json

clean: ## Removes what was built, and the demo's output.
	@cargo clean
	@rm -rf demo-out

distclean: clean ## Removes libtorch, the exported models and their Python environments as well.
	@rm -rf .libtorch .libtorch-* .libtorch.part.* models .venv*
