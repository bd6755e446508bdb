# layersim: every target is explained by `make help`.
.DEFAULT_GOAL := help
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder \
	--numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4
OWN = $(shell $(BIN)/python -c 'import sys; print("python%d.%d" % sys.version_info[:2])')

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make .venv with the pinned environment (uv where it is there, else pip)

$(VENV)/installed: requirements.lock pyproject.toml
	rm -rf $(VENV)
	if command -v uv >/dev/null; then \
		uv venv --quiet --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/pip install --quiet -r requirements.lock && \
		$(BIN)/pip install --quiet --no-deps -e .; \
	fi
	touch $@

demo: install ## train a small ViT on the digits with three objectives, compare them, and see what leaving early saves
	$(BIN)/python experiments/vision/digits/demo.py runs/demo-$(shell date +%Y%m%d-%H%M%S)

test: install ## the whole test suite, a process a core and one more, as some wait for servers (at most four)
	$(PYTEST)

test-long: install ## what takes too long for `make test`: every family, made tiny and read; faults by the thousand (tests/RELIABILITY.md); the suite on other Pythons
	LAYERSIM_LONG=1 $(PYTEST) tests/backbones/test_survey.py tests/test_machines.py tests/test_demo.py \
		tests/export/test_leaving.py tests/similarity/test_null.py tests/test_packaging.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability
	$(MAKE) test-pythons PYTHONS="$(filter-out %$(OWN),$(PYTHONS))"

test-pythons: ## the whole suite on each supported Python that this machine has (PYTHONS="/path/to/python3.12 …")
	for python in $(PYTHONS); do \
		if $$python -c '' 2>/dev/null; then $(MAKE) test PYTHON=$$python VENV=.venv-$$(basename $$python) || exit 1; \
		else echo "$$python is not here."; fi; done

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## strict type checks
	$(BIN)/mypy

docs: install ## build the documentation into site/, a warning being an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

figures: install ## draw the pictures of README and docs anew (NAMES="digits sweep docstrings evidence"; see experiments/figures.py)
	$(BIN)/python experiments/figures.py $(NAMES) $(if $(DATA),--evidence $(DATA))

notebooks: install ## run three tutorials, and keep what they print beside them
	$(BIN)/python docs/notebooks.py

package: install ## build a source archive and a wheel into dist/, and check what an index would say of them
	rm -rf dist build
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

bench: install ## the benchmarks behind experiments/benchmarks/RESULTS.md (needs the extra `bench`; an hour and a half)
	if command -v uv >/dev/null; then uv pip install --quiet --python $(BIN)/python -e '.[bench]'; \
	else $(BIN)/pip install --quiet -e '.[bench]'; fi
	$(BIN)/python experiments/benchmarks/similarity.py
	$(BIN)/python experiments/benchmarks/similarity_null.py
	$(BIN)/python experiments/benchmarks/training_step.py
	$(BIN)/python experiments/benchmarks/callbacks_overhead.py
	$(BIN)/python experiments/benchmarks/memory.py
	$(BIN)/python experiments/benchmarks/vocabulary_loss.py
	$(BIN)/python experiments/benchmarks/early_exit.py
	$(BIN)/python experiments/benchmarks/sampled_layers.py

evidence: install ## train and judge what experiments/paper/RESULTS.md tells (DATA=FOLDER: all of it; hours: see there)
	$(BIN)/python experiments/paper/evidence/train.py $(if $(DATA),--data $(DATA)) $(if $(OBJECTIVES),--objectives $(OBJECTIVES))

lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra demo --extra onnx --extra dashboard \
		--extra sweep --extra lora --extra docs --no-header --no-annotate --no-emit-index-url --upgrade --output-file requirements.lock pyproject.toml

clean: ## remove the environment and caches, never a run
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache build dist site *.egg-info

.PHONY: help install demo test test-long test-pythons lint types docs figures notebooks package bench evidence lock clean
