# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
AWS_CDK := aws-cdk@2.1148.1
AWS_CLI := awscli==1.46.3
ASL_VALIDATOR := asl-validator@4.0.0
CHECKOV := checkov==3.3.30

# Not compiled when it is installed: most of it is never imported, and what is, is compiled then. Half the time.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: setup demo test tools check bench fix generate clean

setup: .venv/.installed

demo: setup
	./lockstep demo

# Static checks, then the tests, more of them at a time than there are cores, since many wait; last and alone, the one
# that compares a plan with how long things took.
test:
	$(MAKE) --jobs=2 --no-print-directory check tools
	$(BIN)/python -m pytest -q -n 3 tests/unit tests/infrastructure tests/integration
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --ignore tests/e2e/test_demo.py tests/e2e
	$(BIN)/python -m pytest -q tests/e2e/test_demo.py

tools: .tools/aws/.installed .tools/cdk/.installed .tools/asl/.installed .tools/checkov/.installed

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m contract.schema --check
	$(BIN)/python -m tests.generated_code

# Not on a machine that does other things: about 35 minutes, and the figures are this machine's. Parts of it, in minutes:
# `python -m bench --quick --only lockstep-tcp,raw-tcp --sizes 62k --workers 1`.
bench: setup .tools/bench/.installed
	$(BIN)/python -m bench epoch --output bench/results
	$(BIN)/python -m bench instrumentation --output bench/results
	$(BIN)/python -m bench parts --output bench/results
	$(BIN)/python -m bench blocks --output bench/results
	$(BIN)/python -m bench memory --output bench/results
	$(BIN)/python -m bench compression --output bench/results
	$(BIN)/python -m bench push-pull --output bench/results; failed=$$?; $(BIN)/python -m bench report && exit $$failed

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is written by programs and kept in the repository: `make check` fails where it is stale.
generate: setup
	$(BIN)/python -m tests.generated_code --write
	$(BIN)/python -m contract.schema

# Not results/: nothing makes those again. A cloud that is up must not lose its files while it runs.
clean:
	-test ! -x $(BIN)/python || ./lockstep down
	rm -rf .venv .tools .lockstep cdk.out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Lockstep needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt
	touch $@

# The AWS CLI wants another botocore than the emulator: it has an environment of its own.
.tools/aws/.installed: Makefile
	test -x .tools/aws/bin/python || $(PYTHON) -m venv .tools/aws
	.tools/aws/bin/python $(PIP_INSTALL) $(AWS_CLI)
	touch $@

# Checkov pins what others here pin too, to other versions.
.tools/checkov/.installed: Makefile
	test -x .tools/checkov/bin/python || $(PYTHON) -m venv .tools/checkov
	.tools/checkov/bin/python $(PIP_INSTALL) $(CHECKOV)
	touch $@

.tools/cdk/.installed: Makefile .venv/.installed
	mkdir -p .tools/cdk
	PATH="$(CURDIR)/$(BIN):$$PATH" npm install --silent --no-fund --no-audit --prefix .tools/cdk $(AWS_CDK)
	touch $@

.tools/asl/.installed: Makefile .venv/.installed
	mkdir -p .tools/asl
	PATH="$(CURDIR)/$(BIN):$$PATH" npm install --silent --no-fund --no-audit --prefix .tools/asl $(ASL_VALIDATOR)
	touch $@

# Ray brings pins that are none of ours: it has an environment of its own. Where it does not install, the bench says so
# and measures the others.
.tools/bench/.installed: bench/requirements.txt
	test -x .tools/bench/bin/python || $(PYTHON) -m venv .tools/bench
	-.tools/bench/bin/python $(PIP_INSTALL) -r bench/requirements.txt && touch $@
