# `make demo`: predict an example image, then train, evaluate and explain on a synthetic cohort.
# `make test`: format, lint, import contract, types, and the tests but the slow ones.
# `make test-slow`: the tests that train for long, or measure time and memory.
# `make coverage`: all tests, and whether they reach 90% of the lines.
# `make wheel`: build the wheel, install it into an environment of its own, and predict.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# One thread a process: torch's threads would wait for each other on shared cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

.PHONY: demo test test-slow coverage wheel docs format clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "boneage needs Python 3.11 or newer; pass PYTHON=...")'
	$(PYTHON) -c 'import ensurepip' || (echo "venv is missing: install the package python3-venv"; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/boneage predict --example --heatmap output/example
	$(BIN)/boneage phantom data/raw --n 2000 --seed 0
	$(BIN)/python preprocess.py
	$(BIN)/boneage train --config configs/demo.toml > /dev/null
	$(BIN)/python gradcam_demo.py > /dev/null
	$(BIN)/python main.py --mode evaluate --use_processed

test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PYTEST) -m 'not slow and not performance'

test-slow: $(INSTALLED)
	$(PYTEST) -m 'slow or performance'

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

wheel:
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	build/wheel/bin/python -m pip install --quiet build/wheel/boneage-*.whl
	cd build/wheel && bin/boneage predict --example && bin/boneage predict --example --json

docs: $(INSTALLED)
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_card.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .coverage*
