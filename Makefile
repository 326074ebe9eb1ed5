# All a developer or CI runs. A machine needs only Python (3.11 or later) with venv, make and git:
# each target makes the environment it needs and installs what is missing in it.
#
#   PYTHON=      the interpreter the environment is made with (default: python3)
#   VENV=        the environment's directory (default: .venv)
#   ARGS=        more arguments for the command, as in: make test ARGS="-x -k cancel"
#   CONSTRAIN=   `lowest` installs every dependency at its lower bound

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CONSTRAIN ?=

RUN := "$(VENV)/bin/python" -m

.DEFAULT_GOAL := help
# Two pips in one environment break it.
.NOTPARALLEL:
# What the caller's shell has active must not decide which packages are seen.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help demo test test-slow check bench faults soak test-lowest dist docs format clean venv-demo venv-test venv-bench venv-dist venv-docs

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: venv-demo ## open and load from a server with latency, beside plain xarray
	@$(RUN) aioxarray demo $(ARGS)

test: venv-test ## run the tests, but for the slow ones
	$(RUN) pytest -n auto -m "not slow" $(ARGS)

test-slow: venv-test ## run the slow tests: properties, stress, matrices, xarray's own suites
	$(RUN) pytest -n auto -m slow $(ARGS)

check: venv-test ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: venv-bench ## run the benchmarks
	@$(RUN) benchmarks $(ARGS)

faults: venv-bench ## run the matrix of faults: each fault, with each client, in each call
	@$(RUN) benchmarks.faults $(ARGS)

soak: venv-bench ## serve windows of a remote Zarr for ten minutes, while much goes wrong
	@$(RUN) benchmarks.soak $(ARGS)

test-lowest: ## run the tests with every dependency at its lower bound
	@$(MAKE) test test-slow VENV=.venv-lowest CONSTRAIN=lowest

dist: venv-dist ## build the sdist and the wheel, check them and list their contents
	rm -rf dist
	$(RUN) build --outdir dist .
	$(RUN) twine check --strict dist/*
	tar -tzf dist/*.tar.gz
	$(RUN) zipfile --list dist/*.whl

docs: venv-docs ## build the documentation site in site/, without network
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict $(ARGS)
	@echo "Open site/index.html, or serve it: $(VENV)/bin/python -m mkdocs serve"

format: venv-test ## let ruff sort imports and lay out the code
	$(RUN) ruff check --select I --fix .
	$(RUN) ruff format .

clean: ## remove the environments, caches and built packages
	rm -rf .venv .venv-* build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# `check` and `test` share one environment, so that they see the same versions and pins.
venv-demo: EXTRAS := demo
venv-test: EXTRAS := test,dev
venv-bench: EXTRAS := bench
venv-dist: EXTRAS := dist
venv-docs: EXTRAS := docs

# Old interpreters read this too, if only to be told that they are too old. The interpreter below
# the environment that is active, if any, is named: that environment may be the one to be remade.
PROBE := import os, sys; \
	print("%s %d.%d.%d %s" % ((sys.version_info >= (3, 11),) + sys.version_info[:3] + \
	(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),)))

# Each `name>=version` that users meet in pyproject.toml, as `name==version`.
LOWEST := import re, tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	e = p["optional-dependencies"]; \
	r = sum((e[k] for k in e if k not in {"test", "bench", "dev", "dist", "docs"}), p["dependencies"]); \
	print(*sorted({re.sub(r"^([\w.-]+)(\[[^]]*\])?>=", r"\1==", x) for x in r if ">=" in x}), sep="\n")

# The environment remembers what it was made from, so a repeat costs two starts of Python. It is
# made again when the interpreter or the directory is another, and installs again when
# pyproject.toml has changed. A run that was interrupted leaves no stamp and is done again.
venv-demo venv-test venv-bench venv-dist venv-docs:
	@set -eu; \
	fail() { echo "make: $$*" >&2; exit 1; }; \
	found=$$("$(PYTHON)" -c '$(PROBE)') \
		|| fail "cannot run '$(PYTHON)'; name a Python 3.11 or later: make PYTHON=/path/to/python3 ..."; \
	base=$${found#* }; version=$${base%% *}; base=$${base#* }; \
	case "$$found" in \
		"True "*) ;; \
		*) fail "aioxarray needs Python 3.11 or later, but '$(PYTHON)' is Python $$version;" \
			"name another: make PYTHON=/path/to/python3 ..." ;; \
	esac; \
	made="Python $$version, $$base, in $(CURDIR)"; \
	if [ "$$(cat "$(VENV)/.made-with" 2>/dev/null)" != "$$made" ] \
		|| ! "$(VENV)/bin/python" -c "" 2>/dev/null; then \
		if [ -e "$(VENV)" ] && ! rmdir "$(VENV)" 2>/dev/null; then \
			[ -f "$(VENV)/pyvenv.cfg" ] \
				|| fail "'$(VENV)' is there and is no virtual environment; remove it or choose another VENV="; \
			echo "Removing $(VENV): it was not made here with $$base"; \
			rm -rf "$(VENV)"; \
		fi; \
		echo "Making $(VENV) with Python $$version ($$base)"; \
		"$$base" -m venv "$(VENV)" \
			|| fail "no virtual environment could be made (on Debian or Ubuntu: apt-get install python3-venv)"; \
		echo "$$made" > "$(VENV)/.made-with"; \
	fi; \
	stamp="$(VENV)/.installed-$(EXTRAS)"; \
	wanted="$$(cksum < pyproject.toml) $(CONSTRAIN)"; \
	if [ "$$(cat "$$stamp" 2>/dev/null)" != "$$wanted" ]; then \
		case "$(CONSTRAIN)" in \
			"") : > "$(VENV)/constraints.txt" ;; \
			lowest) "$(VENV)/bin/python" -c '$(LOWEST)' > "$(VENV)/constraints.txt" ;; \
			*) fail "CONSTRAIN= is empty or 'lowest', not '$(CONSTRAIN)'" ;; \
		esac; \
		echo "Installing aioxarray[$(EXTRAS)] in $(VENV) (once; it can take some minutes)"; \
		install() { \
			$(RUN) pip install --disable-pip-version-check --no-input "$$@" \
				-c "$(VENV)/constraints.txt" -e ".[$(EXTRAS)]"; \
		}; \
		install -qq || { \
			echo "The installation failed; trying once more, in case the fault was passing" >&2; \
			sleep 5; \
			install; \
		} || fail "the installation failed twice"; \
		echo "$$wanted" > "$$stamp"; \
	fi
