# make demo   set up, then simulate a progression on the embedded demo checkpoint
# make check  set up as the demo does, then see in two minutes that it computes what it should
# make test   set up, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
comma := ,
OUTPUT ?= demo-output
# Which torch pip is asked for, and, where that is not PyPI, of which index; the constraints choose its version.
TORCH ?= torch
TORCH_INDEX ?=
BUILT_FROM := pyproject.toml constraints.txt setup.py cpp_ext/build.py $(wildcard cpp_ext/*.cpp cpp_ext/*.h)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo check test smoke test-matrix coverage lint audit fuzz format bench bench-report evaluation engine-build gpu-check gpu-wheels clean

demo: $(VENV)/.demo
	$(BIN)/pie-engine demo --output $(OUTPUT)

check: $(VENV)/.demo
	$(BIN)/python tests/support/check.py

TESTS := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(BIN)/python $(TESTS)

# What another Python or another torch would break first, in less than five minutes; .ci/run has the newest Python run it.
SMOKE := tests/test_equality.py tests/test_packages.py tests/test_engine_inputs.py tests/rounds/test_rounds.py tests/test_golden.py \
  tests/cli/test_cli_options.py tests/cli/test_cli_outputs.py tests/cli/test_doctor_packages.py \
  tests/evaluation/sweep/test_design.py tests/imaging/test_imaging.py tests/kernels/test_cpp.py tests/kernels/test_cpp_build.py

smoke: $(VENV)/.smoke
	$(BIN)/python $(TESTS) $(SMOKE)

# Fresh environments for every Python that is found, with both builds of torch: about a quarter of an hour each. May be
# narrowed: PYTHONS=3.12,3.13 BUILDS=cpu,cuda QUICK=1 (the smoke set). TORCH_INDEX is where the CPU build comes from.
test-matrix:
	$(PYTHON) tests/support/matrix.py $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(BUILDS),--builds $(BUILDS)) \
	  $(if $(QUICK),--quick) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# Apart from the tests, as tracing every line makes them a fifth slower.
coverage: $(VENV)/.dev
	$(BIN)/python $(TESTS) --cov --cov-report=term

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" sh tests/lint.sh build/lint

# What a reader of our code, a list of known holes and whoever installs the wheel would ask. The list of holes is fetched.
AUDIT := build/audit
audit: $(VENV)/.dev
	$(PIP) --no-build-isolation --editable '.[audit]'
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml pie_engine export kernels cpp_ext benchmarks
	@mkdir -p $(AUDIT)
	$(BIN)/python tests/support/dependencies.py > $(AUDIT)/requirements.txt
	$(BIN)/cyclonedx-py requirements --output-reproducible --output-file $(AUDIT)/sbom.cdx.json $(AUDIT)/requirements.txt
	$(BIN)/python tests/support/known_holes.py $(AUDIT)/requirements.txt

# Files that nobody would write, new ones each time: about 145,000, half an hour on two cores. What breaks something is kept
# in build/fuzz and tried first the next time.
FUZZ := tests/checkpoint/test_any_file.py tests/model/test_any_manifest.py tests/imaging/test_generated_files.py \
  tests/cli/test_any_settings.py
FUZZ_EXAMPLES ?= 5000
fuzz: $(VENV)/.dev
	HYPOTHESIS_PROFILE=fuzz FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) \
	  $(BIN)/python -m pytest --numprocesses auto --dist load $(FUZZ)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The questions that take minutes on the demo; the others, and full size, stand in docs/performance.md.
bench: $(VENV)/.bench
	for name in progression ladder components denoise_step round_share; do \
	  $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/report.py

# The figures of docs/evaluation.md: about an hour and a half on two cores.
evaluation: $(VENV)/.dev
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/report.py

bench-report: $(VENV)/.bench
	$(BIN)/python benchmarks/report.py

# Slow: full-size engines, which tensorrt-rtx compiles without a GPU.
engine-build: $(VENV)/.dev
	$(BIN)/python benchmarks/build_times.py --model sd --engines tensorrt-rtx --compute-capability 8.6,8.9,12.0

# With WHEELS=DIR, on the machine's own Python and torch, and those wheels for what is missing; else in the environment.
SECONDS ?= 300
RESULTS ?= build/gpu-check
gpu-check: $(if $(WHEELS),,$(VENV)/.dev)
	$(if $(WHEELS),$(PYTHON),$(BIN)/python) benchmarks/gpu_check.py --seconds $(SECONDS) --results $(RESULTS) \
	  $(if $(WHEELS),--wheels $(WHEELS))

# What a machine with torch, triton and transformers lacks: fetched here, where there is a network, and carried there.
GPU_PYTHON ?= 3.12
gpu-wheels:
	$(if $(WHEELS),,$(error gpu-wheels needs WHEELS=DIR))
	$(PYTHON) -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
	  --python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
	  --platform manylinux2014_x86_64 --constraint constraints.txt --dest $(WHEELS) diffusers importlib_metadata zipp \
	  pydantic pydantic-core annotated-types typing-inspection typing-extensions

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pie-engine needs Python 3.11 or later; pass PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Said before a long download, with sizes on the disk; once torch is there, the rest is small.
# $(call ABOUT,with a CPU build of torch,with a CUDA build,what the one saves,what else comes)
define ABOUT
@if ! ls -d $(VENV)/lib/python3*/site-packages/torch >/dev/null 2>&1; then \
  echo "Installs into $(VENV): torch, diffusers, transformers, ONNX Runtime and what they need$(4);" \
    "$(1) GB with a CPU build of torch, $(2) GB with a CUDA build."; \
  if [ -z "$(TORCH_INDEX)" ] && [ ! -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then \
    echo "No NVIDIA driver is found. PyPI's torch for Linux is a CUDA build; to take a CPU build and save $(3) GB:"; \
    echo "  make $(or $(firstword $(MAKECMDGOALS)),demo) TORCH_INDEX=https://download.pytorch.org/whl/cpu"; \
  fi; \
fi
endef

# Editable, so that the sources are used as they are; onnxruntime is the engine on a machine without a GPU.
# torch comes before: setup.py compiles the C++ step against its headers, or leaves the step out and says why. What torch
# needs is not taken from TORCH_INDEX: the last line brings it.
INSTALL = $(PIP) 'setuptools>=77' && \
  $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) --no-deps) '$(TORCH)' && \
  $(PIP) --no-build-isolation --editable
OPERATIONS = @test -e cpp_ext/_ops.so || $(BIN)/python -m pie_engine.cpp_ext || echo "going on without them"

$(VENV)/.demo: $(BUILT_FROM) | $(BIN)/python
	$(call ABOUT,1.6,5.6,4)
	$(INSTALL) '.[cpu]'
	$(OPERATIONS)
	@touch $@

$(VENV)/.smoke: $(BUILT_FROM) | $(BIN)/python
	$(call ABOUT,1.6,5.6,4)
	$(INSTALL) '.[cpu]' pytest pytest-xdist hypothesis
	$(OPERATIONS)
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(BUILT_FROM) | $(BIN)/python
	$(call ABOUT,1.6,5.6,4)
	$(INSTALL) '.[cpu,bench]'
	$(OPERATIONS)
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(BUILT_FROM) | $(BIN)/python
	$(call ABOUT,3.2,6.4,3,$(comma) and what the tests compare it with (OpenVINO$(comma) TensorRT-RTX$(comma) pydicom ...))
	$(INSTALL) '.[cpu,test,test-bindings,lint]'
	$(OPERATIONS)
	@touch $@ $(VENV)/.demo $(VENV)/.smoke $(VENV)/.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage demo-output cpp_ext/_ops.so
