# The two commands that a newcomer needs: make run, make test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: run test lint bench fuzz soak lab clean packages
.DEFAULT_GOAL := run

# pip's chatter is shown only when it fails.
quietly = $(1) >$(VENV)/pip.log 2>&1 || { cat $(VENV)/pip.log >&2; exit 1; }

# A machine without python3-venv gets told what to install; nothing else is needed to run relayd.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "relayd needs Python 3.11 or later; $(PYTHON) is older" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "apt-get install python3-venv, then try again" >&2; rm -rf $(VENV); exit 1; }
	@$(call quietly,$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel)

$(VENV)/run.stamp: setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing relayd into $(VENV) (once)"
	@$(call quietly,$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .)
	@touch $@

$(VENV)/test.stamp: setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing what the tests need into $(VENV) (once)"
	@$(call quietly,$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]')
	@touch $@ $(VENV)/run.stamp

run: $(VENV)/run.stamp
	@mkdir -p var
	@printf '%s\n' 'Once it says "ready", try in another terminal:' \
	    "  printf 'Subject: hello\n\nIt works.\n' | curl -sS smtp://127.0.0.1:2525 --crlf --upload-file - \\" \
	    '      --mail-from me@relayd.example --mail-rcpt you@relayd.example && cat var/drop/*.eml'
	@exec env PYTHONPATH=$(CURDIR) $(BIN)/twistd --nodaemon --pidfile= relayd --config etc/relayd.toml

packages: $(VENV)/test.stamp
	@$(BIN)/python -m tests.lab.packages

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The extras come first: pyspnego looks for gssapi once, when the first test imports it.
test: packages lint
	@$(BIN)/python -m tests.lab.packages directory extras
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(PYTEST_ARGS)

bench: packages
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Each property of the tests with many more examples than make test takes: FUZZ_EXAMPLES says how many (5000).
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n $(JOBS) -m hypothesis --hypothesis-profile=fuzz --timeout 3600 tests/unit $(PYTEST_ARGS)

# A domain controller on loopback until Ctrl-C, and what to type to try relayd with it.
lab: $(VENV)/test.stamp
	@$(BIN)/python -m tests.lab

# var stays: it holds the mail and the accounts of make run.
clean:
	rm -rf $(VENV) build dist *.egg-info
