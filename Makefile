# layersim: every target is explained by `make help`.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: .venv/installed ## make .venv with the pinned environment (uv where it is there, else pip)

.venv/installed: requirements.lock pyproject.toml
	rm -rf .venv
	if command -v uv >/dev/null; then \
		uv venv --quiet --python $(PYTHON) .venv && \
		uv pip install --quiet --python $(BIN)/python -r requirements.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/pip install --quiet -r requirements.lock && \
		$(BIN)/pip install --quiet --no-deps -e .; \
	fi
	touch $@

demo: install ## train a small ViT on the digits with three objectives, compare them, and see what leaving early saves
	$(BIN)/python experiments/vision/digits/demo.py runs/demo-$(shell date +%Y%m%d-%H%M%S)

test: install ## the whole test suite, one process a core (at most four)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: install ## what takes too long for `make test`: every family, made tiny and read; faults by the thousand (tests/RELIABILITY.md)
	LAYERSIM_LONG=1 $(BIN)/python -m pytest tests/backbones/test_survey.py tests/test_machines.py tests/test_demo.py \
		tests/export/test_leaving.py tests/similarity/test_null.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## strict type checks
	$(BIN)/mypy

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
		--extra sweep --extra lora --no-header --no-annotate --no-emit-index-url --upgrade --output-file requirements.lock pyproject.toml

clean: ## remove the environment and caches, never a run
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info

.PHONY: help install demo test test-long lint types bench evidence lock clean
