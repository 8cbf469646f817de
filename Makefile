# Two commands set everything up: `make demo` and `make test`.
UV := .tools/uv
PYTEST_WORKERS ?= 2
export UV_PROJECT_ENVIRONMENT := .venv

.PHONY: demo test lint format types bench eval clean

$(UV): .ci/get_uv.py
	@python3 .ci/get_uv.py

.venv/.host: $(UV) pyproject.toml uv.lock
	@$(UV) sync --quiet --inexact --extra sim
	@touch $@

.venv/.dev: $(UV) pyproject.toml policies/pyproject.toml uv.lock
	@echo "installing everything, with LeRobot and torch: some minutes the first time ..."
	@$(UV) sync --quiet --all-packages --all-extras --all-groups
	@touch $@ .venv/.host

demo: .venv/.host  ## a simulated SO-101 lifts a cube from camera pictures
	@.venv/bin/robotd demo $(ARGS)

lint: .venv/.dev  ## format, lint, types, import direction
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

test: lint  ## every check and every test
	.venv/bin/pytest -n $(PYTEST_WORKERS) --dist loadgroup $(ARGS)

format: .venv/.dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/.dev  ## measure everything, peers side by side
	.venv/bin/robotd bench all $(ARGS)

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis
