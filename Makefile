# The commands of this repository; 'make' alone lists them. They work on a fresh Debian or
# Ubuntu, as root or not, and need nothing but a Python 3.11 or 3.12.
#
#   PYTHON=/path/to/python3.11   which Python to build on
#   STUDY=folder                 make demo with a study of yours in place of the phantom
#   PIP_ARGS='...'               more for pip, such as --extra-index-url with PyTorch's CPU
#                                wheels (without it, a machine may get the CUDA packages)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
PERF_VENV := .venv-perf
BIN := $(VENV)/bin
PIP_ARGS ?=
STUDY ?=
BENCH_ARGS ?=
WHEELS ?=
CONSTRAINTS ?= constraints.txt
BUNDLES ?= bundles
PYTEST_ARGS ?=

# The first Python that really runs (a pyenv shim may exist and not work) in 3.11 or 3.12.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& { command -v "$$p"; break; }; done)
endif

say = printf '\033[1m==> %s\033[0m\n'

# $(call apt,PACKAGES): installs Debian packages, through sudo where we are not root.
define apt
{ if ! command -v apt-get >/dev/null; then \
    echo "This machine has no apt-get. Please install by hand what these Debian packages have: $(1)" >&2; exit 1; \
  elif [ "$$(id -u)" = 0 ]; then as=; \
  elif command -v sudo >/dev/null; then as=sudo; \
  else \
    echo "Please let an administrator run: apt-get install $(1)" >&2; exit 1; \
  fi; \
  $(say) "Installing $(1)"; \
  $$as apt-get update -qq || true; \
  $$as env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends $(1) >/dev/null; }
endef

.PHONY: help
help: ## List the commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.server ## Make .venv with everything that serving needs
	@$(say) "Ready: $(BIN)/tritome --help"

.PHONY: demo
demo: $(VENV)/.server ## A chest CT in by C-STORE, its lungs back as DICOM SEG (STUDY=folder for yours)
	@$(BIN)/tritome demo $(if $(STUDY),--study "$(STUDY)")

.PHONY: test
test: peers lint $(PERF_VENV)/.ready ## Everything that must pass: lint, types, rooms, all tests
	@$(say) "Running the tests"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Style, types, and who may import whom
	@$(say) "Checking style, types and imports"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >$(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }

.PHONY: format
format: $(VENV)/.dev ## Put the code into the project's style
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.dev $(PERF_VENV)/.ready ## Measure models, studies, intake, peers and more (BENCH_ARGS="--quick" or "--only intake")
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m perf.bench $(BENCH_ARGS)

# Not run on a machine of ours yet: none had a GPU. WHEELS is a folder with every wheel that
# '.[dev]' needs and setuptools, for a machine without network; perf_analyzer's two (below) are
# missed by one part only. Where $(PYTHON) has a torch that sees the GPU, as in images for GPUs,
# .venv stands on that one, and on what it stands on, instead of a torch of its own.
.PHONY: bench-gpu
bench-gpu: ## The same on a CUDA machine (WHEELS=folder installs without a network)
	@nvidia-smi -L || { echo "bench-gpu needs an NVIDIA GPU and its driver (nvidia-smi)" >&2; exit 1; }
	@$(MAKE) --no-print-directory $(BIN)/python
	@if "$(PYTHON)" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  "$(PYTHON)" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    >"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_this_machine.pth"; \
	  "$(PYTHON)" -c 'import importlib.metadata as m, re, sys; \
	own = {"torch", *(re.match("[\w.-]+", r)[0].lower() for r in m.requires("torch") or ())}; \
	sys.stdout.writelines(n for n in sys.stdin if n.split("==")[0].lower() not in own); \
	print("torch==" + m.version("torch"))' <constraints.txt >$(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	@$(MAKE) --no-print-directory $(VENV)/.dev CONSTRAINTS=$(VENV)/constraints.txt $(OFFLINE)
	@$(MAKE) --no-print-directory $(PERF_VENV)/.ready $(OFFLINE) \
	  || echo "Without perf_analyzer the part 'models' will be missing."
	@$(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' \
	  || { echo "This torch sees no CUDA: install a CUDA build of torch $$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])') (WHEELS=folder or PIP_ARGS)" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m perf.bench --full --out perf/results/gpu $(BENCH_ARGS)
OFFLINE = $(if $(WHEELS),PIP_ARGS='--no-index --find-links $(abspath $(WHEELS)) $(PIP_ARGS)')

.PHONY: model-repository
model-repository: $(VENV)/.server ## Build model_repository/ again; commit what changes
	@$(BIN)/tritome build lung_ct --replace
	@$(BIN)/tritome build thorax_multi --replace

.PHONY: train-lung-ct
train-lung-ct: $(VENV)/.server ## Train the built-in lung_ct again from its fixed seed (about an hour)
	@$(BIN)/python -m ensemble_builder.pipelines.lung_ct.train

.PHONY: train-thorax-ct
train-thorax-ct: $(VENV)/.server ## Train the built-in thorax_ct again from its fixed seed (about half an hour)
	@$(BIN)/python -m ensemble_builder.pipelines.thorax_ct.train

.PHONY: train-chest-xray
train-chest-xray: $(VENV)/.server ## Train the built-in chest_xray again from its fixed seed (about ten minutes)
	@$(BIN)/python -m ensemble_builder.pipelines.chest_xray.train

.PHONY: verify-bundles
verify-bundles: $(VENV)/.server ## Prove a folder of bundles equal to MONAI (BUNDLES=folder)
	@$(BIN)/tritome verify --all "$(BUNDLES)"

# Each program that the tests call, and the package that brings it.
PEERS := storescu:dcmtk storescp:dcmtk dcmqrscp:dcmtk Orthanc:orthanc dciodvfy:dicom3tools ip:iproute2 strace:strace openssl:openssl \
  postgres:postgresql unshare:util-linux

.PHONY: peers
peers: ## Install the DICOM peers that the tests talk to (Debian packages)
	@missing=; \
	for peer in $(PEERS); do \
	  PATH="$$PATH:/usr/sbin:/sbin:$$(printf '%s:' /usr/lib/postgresql/*/bin)" command -v "$${peer%%:*}" >/dev/null || missing="$$missing $${peer#*:}"; \
	done; \
	[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || missing="$$missing orthanc-dicomweb"; \
	case "$$missing" in '') exit 0 ;; esac; \
	$(call apt,$$missing) || exit 1; \
	for service in orthanc postgresql; do \
	  case "$$missing" in *$$service*) \
	    if [ -d /run/systemd/system ]; then \
	      $$as systemctl disable --quiet --now $$service || true; \
	    fi ;; \
	  esac; \
	done

.PHONY: clean
clean: ## Remove the environments, caches and outputs
	@rm -rf $(VENV) $(PERF_VENV) build dist ./*.egg-info demo_output perf/results/tmp
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# ---- What the commands above stand on ---------------------------------------------------

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "tritome needs Python 3.11 or 3.12, and none was found that runs." >&2; \
	  echo "Debian 12: apt-get install python3-venv; Ubuntu 24.04: the same; elsewhere: make setup PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
	@$(say) "Making $(VENV) with $(PYTHON)"
	@v=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || $(call apt,python$$v-venv) || exit 1; \
	"$(PYTHON)" -c 'import ctypes, os, sys, sysconfig; \
	n = "libpython%d.%d.so.1.0" % sys.version_info[:2]; \
	p = os.path.join(sysconfig.get_config_var("LIBDIR") or "", n); \
	ctypes.CDLL(p if os.path.exists(p) else n)' \
	  2>/dev/null || $(call apt,libpython$$v) || { \
	  echo "Triton's Python backend needs libpython$$v.so.1.0, which $(PYTHON) doesn't have." >&2; \
	  echo "A Python of your own is built with it by: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install $$v" >&2; \
	  exit 1; }; \
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.server: pyproject.toml constraints.txt | $(BIN)/python
	@$(say) "Installing tritome with a Triton server (1 to 2 GB the first time, some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(say) "Installing tritome with everything that its tests need (some minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[dev]'
	@touch $(VENV)/.server $@

# The real perf_analyzer lies in the wheel of this old client, whose own dependencies would
# drag protobuf and numpy back: so it lives apart, without them. It wants two libraries.
$(PERF_VENV)/.ready: Makefile | $(BIN)/python
	@ldconfig -p 2>/dev/null | grep -q 'libb64\.so\.0d' || /sbin/ldconfig -p 2>/dev/null | grep -q 'libb64\.so\.0d' \
	  || { $(call apt,libb64-0d); }
	@$(say) "Installing perf_analyzer into $(PERF_VENV)"
	@$(BIN)/python -m venv $(PERF_VENV)
	@$(PERF_VENV)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps \
	  tritonclient==2.51.0 nvidia-cuda-runtime-cu12==12.9.79
	@touch $@
