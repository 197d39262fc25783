# From a checkout with Python >= 3.11, pip and make, and nothing else:
#   make demo    index the bundled recordings, search them with a bundled clip
#   make test    all tests
# VENV=folder puts the virtual environment elsewhere, PYTHON=python3.12 chooses the interpreter, PIP_FLAGS goes to pip.
#
# Paths stand in the shell's quotes and never in a target, since make cannot have spaces in those.

VENV ?= .venv
TEST_EXTRAS = cpu,train,cluster,dev
PYTHON ?=
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n auto --maxprocesses 4 --dist loadfile
export VENV PYTHON PIP_FLAGS PYTEST_FLAGS

# The demo has a data folder and a database of its own, whatever the environment says.
DEMO = env -u SAYAGAIN_DATABASE_URL SAYAGAIN_HOME="$$PWD/data" "$$VENV/bin/sayagain"

# $(call install,EXTRAS): make the environment and install the checkout into it with these extras, unless that is done
# already. The stamp says so, for this pyproject.toml and this place. Debian's Python may lack ensurepip: there the pip
# outside serves the environment.
define install
@set -eu; \
extras="$(1)"; stamp="$$VENV/.installed-$$(echo "$$extras" | tr , -)"; now="$$(cksum < pyproject.toml) $$PWD"; \
if [ -f "$$stamp" ] && [ "$$(cat "$$stamp")" = "$$now" ] && [ -x "$$VENV/bin/sayagain" ]; then exit 0; fi; \
if ! "$$VENV/bin/python" -m pip --version > /dev/null 2>&1; then \
	made=; \
	for python in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1 || continue; \
		echo "Making a virtual environment in $$VENV with $$("$$python" --version)"; \
		if "$$python" -m venv "$$VENV" > /dev/null 2>&1; then made=yes; break; fi; \
		if "$$python" -m venv --without-pip "$$VENV" > /dev/null 2>&1 \
			&& "$$python" -m pip --python "$$VENV/bin/python" install --quiet $$PIP_FLAGS pip; then made=yes; break; fi; \
	done; \
	if [ -z "$$made" ]; then echo "No Python >= 3.11 here that can make a virtual environment." >&2; exit 1; fi; \
fi; \
echo "Installing sayagain[$$extras] (minutes the first time)"; \
PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
	"$$VENV/bin/python" -m pip install --quiet $$PIP_FLAGS --editable ".[$$extras]"; \
echo "$$now" > "$$stamp"
endef

.PHONY: help demo serve test lint types format clean distclean install-demo install-test

help:
	@sed -n '2,4s/^# *//p' Makefile
	@echo "also: make serve lint types format clean distclean"

install-demo:
	$(call install,cpu)

install-test:
	$(call install,$(TEST_EXTRAS))

demo: install-demo
	@echo "Indexing service/demo/archive: a small radio station that never was, in five languages"
	@$(DEMO) index service/demo/archive --archive demo
	@echo
	@echo "Where is this said? (service/demo/query.opus: the word \"visibility\", in a voice that is in no recording)"
	@$(DEMO) search service/demo/query.opus --archive demo --limit 10
	@echo
	@echo "Where it really is said: service/demo/truth.tsv. More clips: service/demo/queries/"
	@echo "To open the server on http://127.0.0.1:8000 (try /docs): make serve"

serve: install-demo
	@$(DEMO) serve

test: install-test
	"$$VENV/bin/python" -m pytest $$PYTEST_FLAGS

lint: install-test
	"$$VENV/bin/ruff" check .
	"$$VENV/bin/ruff" format --check .

types: install-test
	"$$VENV/bin/mypy"

format: install-test
	"$$VENV/bin/ruff" check --fix .
	"$$VENV/bin/ruff" format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -path "./$$VENV" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment and the demo's data too: stop the demo's server first.
distclean: clean
	rm -rf data "$$VENV"
