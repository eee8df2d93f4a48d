# Needs make and Python >= 3.11; everything else is installed into folders of this repository.
#
#   make demo         race four optimizers on real text; the report is demo_out/report.html
#   make test         style, types, and the quick tests; examples in docstrings take turns
#   make test-slow    the tests that `make test` leaves out
#   make test-sweep   the costly tests of many alike; `make test` looks at an eighth of these
#   make test-latest  a part of the tests on Python 3.12 or later with the newest JAX
#   make test-tpu     compile kernels with the TPU's own compiler; no TPU is needed
#   make test-gpu     compile kernels with the GPU's own compiler; no GPU is needed
#   make lint         style only
#   make clean        remove all that these commands made

PYTHON ?= python3
PYTHON312 ?= python3.12
JOBS ?= 2

VENV ?= .venv
VENV_LATEST ?= .venv-latest
VENV_TPU ?= .venv-tpu
VENV_GPU ?= .venv-gpu

DEMO ?= optkit race adamw lion muon cautious_adamw --task bytelm --config benchmarks/demo.toml \
	--out demo_out --overwrite
PYTEST_FLAGS ?= -n $(JOBS) --dist worksteal
LATEST_TESTS ?= tests/golden/test_replay.py tests/kernels $(patsubst %,tests/conformance/test_%.py,compilation models sharding state) \
	tests/transforms/test_elementwise.py tests/transforms/test_stored_kernel.py \
	tests/evolution/test_population_apply.py tests/evolution/test_perturb.py tests/evolution/test_mesh.py \
	tests/spmd tests/distributed/test_inside.py tests/aot
LATEST_EVERY ?= 6
LATEST_FLAGS ?= -m "not slow and not tpu and not gpu"

# Of the costly tests of many alike a part, other ones after each commit.
ifndef OPTKIT_SWEEP
OPTKIT_SWEEP := $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
endif
export OPTKIT_SWEEP

# Packages of the user or of another project must not be seen in place of those installed here.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PYTHONNOUSERSITE := 1

# Files with such tests: each worker would read all others too, for half a minute.
marked = $(shell grep -rlw --include='test_*.py' 'mark.$(1)' tests)

.PHONY: help demo test test-slow test-sweep test-latest test-tpu test-gpu lint types clean
.PHONY: own-venv own-venv-latest own-venv-tpu own-venv-gpu
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n '3,$${/^#/!q;s/^# *//;p;}' Makefile

demo: $(VENV)/.optkit-cli
	$(VENV)/bin/$(DEMO)

test: lint types
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

test-slow: $(VENV)/.optkit-test
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS) -m slow $(call marked,slow)

test-sweep: $(VENV)/.optkit-test
	OPTKIT_SWEEP=all $(VENV)/bin/python -m pytest $(PYTEST_FLAGS) \
	  -m "sweep and not tpu and not gpu"

test-latest: $(VENV_LATEST)/.optkit-test
	OPTKIT_EVERY_METHOD=$(LATEST_EVERY) $(VENV_LATEST)/bin/python -m pytest $(PYTEST_FLAGS) \
	  $(LATEST_FLAGS) $(LATEST_TESTS)

test-tpu: $(VENV_TPU)/.optkit-test
	$(VENV_TPU)/bin/python -m pytest $(PYTEST_FLAGS) -m tpu $(call marked,tpu)

test-gpu: $(VENV_GPU)/.optkit-test
	$(VENV_GPU)/bin/python -m pytest $(PYTEST_FLAGS) -m gpu $(call marked,gpu)

lint: $(VENV)/.optkit-test
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(VENV)/.optkit-test
	$(VENV)/bin/python -m mypy

# An environment that this Makefile did not make is left alone, here and below.
clean:
	@for venv in $(VENV) $(VENV_LATEST) $(VENV_TPU) $(VENV_GPU); do \
	  if [ -e "$$venv/.optkit-home" ]; then rm -rf "$$venv"; \
	  elif [ -e "$$venv" ]; then echo "$$venv stays: this Makefile did not make it"; fi; \
	done
	rm -rf .cache .hypothesis build dist demo_out
	find optkit tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + \
	  2>/dev/null || true

# --- environments: the stamp inside one says which extra of this pyproject.toml it holds ----------

# Bytecode is made of what is imported, which is a small part of what is installed.
PIP_INSTALL = -m pip install --quiet --no-compile

$(VENV)/.optkit-cli: pyproject.toml | own-venv
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[cli]'
	@touch $@

$(VENV)/.optkit-test: pyproject.toml | own-venv
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[test,evolve]'
	@touch $@ $(VENV)/.optkit-cli

$(VENV_LATEST)/.optkit-test: pyproject.toml | own-venv-latest
	$(VENV_LATEST)/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

$(VENV_TPU)/.optkit-test: $(VENV)/.optkit-test | own-venv-tpu
	$(call see_packages,$(VENV_TPU))
	$(VENV_TPU)/bin/python $(PIP_INSTALL) --editable '.[test,tpu]'
	@touch $@

$(VENV_GPU)/.optkit-test: $(VENV)/.optkit-test | own-venv-gpu
	$(call see_packages,$(VENV_GPU))
	$(VENV_GPU)/bin/python $(PIP_INSTALL) --editable '.[test,gpu]'
	@touch $@

# Packages of $(VENV) are seen in $(1) too, which then holds a compiler and little else.
define see_packages
@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
$(VENV)/bin/python -c "$$packages" > "$$($(1)/bin/python -c "$$packages")/optkit-base.pth"
endef

# $(1): folder; $(2): shell text that sets $$python to the interpreter to make it with
define own_venv
@if [ -e $(1) ]; then \
  if [ "$$(cat $(1)/.optkit-home 2>/dev/null)" != "$$(pwd -P)" ]; then \
    echo "error: the folder $(1) was not made by this Makefile in this place:" \
      "remove it, or name another one (make VENV=DIR, VENV_LATEST=DIR, VENV_TPU=DIR," \
      "VENV_GPU=DIR)" >&2; exit 1; \
  fi; \
else \
  $(2); \
  echo "making $(1) with $$("$$python" --version)"; \
  { "$$python" -m venv $(1) && pwd -P > $(1)/.optkit-home; } || { rm -rf $(1); exit 1; }; \
fi
endef

own-venv:
	$(call own_venv,$(VENV),$(find_python))

own-venv-tpu:
	$(call own_venv,$(VENV_TPU),python=$(VENV)/bin/python)

own-venv-gpu:
	$(call own_venv,$(VENV_GPU),python=$(VENV)/bin/python)

own-venv-latest:
	$(call own_venv,$(VENV_LATEST),$(find_python312))

define find_python
python="$(PYTHON)"; \
"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "error: optkit needs Python >= 3.11, and $$python is $$("$$python" --version 2>&1):" \
    "name a newer one with make PYTHON=/path/to/python3" >&2; exit 1; }
endef

# After python3.12, the newest 3.12 that pyenv has: its shim may refuse to start one not selected.
define find_python312
root="$${PYENV_ROOT:-$$(pyenv root 2>/dev/null || echo "$$HOME/.pyenv")}"; python=; \
for found in "$(PYTHON312)" \
  $$(ls -d "$$root"/versions/3.12.*/bin/python 2>/dev/null | sort -t. -k3 -rV); do \
  if "$$found" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
    python="$$found"; break; \
  fi; \
done; \
if [ -z "$$python" ]; then \
  echo "error: no Python 3.12: neither $(PYTHON312) nor one under $$root/versions runs;" \
    "install it, or name one with make PYTHON312=/path/to/python3.12" >&2; exit 1; \
fi
endef
