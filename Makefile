# make demo: set up, train on handwritten digits, show a picture. make test: set up, lint, test.
# make gpu: what needs a GPU, as a report (tests/gpu/README.md).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench gpu gpu-wheels
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/distgan shards make digits data/digits
	test -f data/digits-classifier.safetensors || \
	    $(BIN)/distgan evaluate --train_extractor data/digits --out data/digits-classifier.safetensors
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	    distgan/train.py --config configs/demo.yaml --evaluate.extractor data/digits-classifier.safetensors \
	    --evaluate.every_epochs 20
	$(BIN)/distgan sample runs/demo --count 64 --seed 0 --out runs/demo/samples/demo.png
	@echo "look at runs/demo/samples/demo.png and runs/demo/report.html"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile \
	    -m "not slow and not servers and not slurm and not browser"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready
	$(BIN)/python tests/bench/step.py

# Without a virtual environment, and with packages from `make gpu-wheels`: on the machine's own Python.
ifeq ($(and $(wildcard .wheels/*.whl),$(if $(wildcard .venv/ready),,yes)),)
gpu: .venv/ready
gpu: GPU_PYTHON := $(BIN)/python
else
gpu: GPU_PYTHON := $(PYTHON)
endif
gpu:
	@$(GPU_PYTHON) tests/gpu/kit/report.py $(if $(OUT),--out $(OUT)) $(ARGS)

gpu-wheels: .venv/ready
	$(BIN)/python tests/gpu/kit/wheels.py $(ARGS)

.venv/ready: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "distgan needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@
