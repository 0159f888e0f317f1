# make demo   set up, then simulate a progression on the embedded demo checkpoint
# make test   set up, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
BUILT_FROM := pyproject.toml constraints.txt setup.py cpp_ext/build.py $(wildcard cpp_ext/*.cpp cpp_ext/*.h)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test coverage lint format bench bench-report evaluation engine-build gpu-check gpu-wheels clean

demo: $(VENV)/.demo
	$(BIN)/pie-engine demo --output $(OUTPUT)

TESTS := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(BIN)/python $(TESTS)

# Apart from the tests, as tracing every line makes them a fifth slower.
coverage: $(VENV)/.dev
	$(BIN)/python $(TESTS) --cov --cov-report=term

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" sh tests/lint.sh build/lint

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
	  --platform manylinux2014_x86_64 --constraint constraints.txt --dest $(WHEELS) diffusers importlib_metadata zipp

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pie-engine needs Python 3.11 or later; pass PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Editable, so that the sources are used as they are; onnxruntime is the engine on a machine without a GPU.
# torch comes first: setup.py compiles the C++ step against its headers, or leaves the step out and says why.
INSTALL = $(PIP) torch 'setuptools>=77' && $(PIP) --no-build-isolation --editable
OPERATIONS = @test -e cpp_ext/_ops.so || $(BIN)/python -m pie_engine.cpp_ext || echo "going on without them"

$(VENV)/.demo: $(BUILT_FROM) | $(BIN)/python
	$(INSTALL) '.[cpu]'
	$(OPERATIONS)
	@touch $@

$(VENV)/.bench: $(BUILT_FROM) | $(BIN)/python
	$(INSTALL) '.[cpu,bench]'
	$(OPERATIONS)
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(BUILT_FROM) | $(BIN)/python
	$(INSTALL) '.[cpu,test,test-bindings,lint]'
	$(OPERATIONS)
	@touch $@ $(VENV)/.demo $(VENV)/.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage demo-output cpp_ext/_ops.so
