# Two commands matter: `make run` and `make test`. Each makes what it needs and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run torch test check format viewer bench test-gpu bench-gpu train train-gpu export clean
.DEFAULT_GOAL := run

# Stamps record which dependencies are in the environment; a changed pyproject.toml renews them.
$(VENV)/serve.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Scenelift needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Scenelift (about a minute) ..."
	@$(PIP) --editable ".[worker,video]"
	@touch $@

# torch comes alone and pinned, with pip: an open range may answer with several GB of CUDA packages.
$(VENV)/torch.stamp: pyproject.toml $(VENV)/serve.stamp
	@echo "Installing what checkpoints need ..."
	@$(PIP) torch==2.13.0
	@$(PIP) --editable ".[worker,torch]"
	@touch $@

$(VENV)/develop.stamp: pyproject.toml $(VENV)/torch.stamp
	@echo "Installing what development and the tests need ..."
	@$(PIP) --editable ".[worker,torch,dev]"
	@touch $@

# Independent readers of our files, for the tests only; without Node those tests are skipped.
tests/readers/node_modules/.package-lock.json: tests/readers/package-lock.json
	@if command -v npm >/dev/null; then cd tests/readers && npm ci --silent --no-audit --no-fund; \
	else echo "npm is not here: the tests that read our files with Node programs are skipped"; fi

viewer/node_modules/.package-lock.json: viewer/package-lock.json
	@if command -v npm >/dev/null; then cd viewer && npm ci --silent --no-audit --no-fund; \
	else echo "npm is not here: the tests that build the page are skipped"; fi

run: $(VENV)/serve.stamp  ## start the whole service on http://127.0.0.1:8000
	@$(BIN)/scenelift serve

torch: $(VENV)/torch.stamp  ## install what `scenelift models download` and `add` need

# In a process a core, of one thread each, up to as many as the longest test leaves work for.
test: $(VENV)/develop.stamp tests/readers/node_modules/.package-lock.json viewer/node_modules/.package-lock.json  ## run every test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

check: $(VENV)/develop.stamp  ## lint, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/develop.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

viewer: viewer/node_modules/.package-lock.json  ## build the page into service/static; needs Node 20.19 or newer
	@cd viewer && npm run --silent types && npm run --silent check && npm run --silent build

bench: $(VENV)/develop.stamp  ## every measurement, about an hour; figures in docs/
	@$(BIN)/python -m bench.parity
	@$(BIN)/python -m bench.accuracy
	@$(BIN)/python -m bench.latency
	@$(BIN)/python -m bench.load
	@$(BIN)/python -m bench.reference
	@$(BIN)/python -m bench.alignment
	@$(BIN)/python -m bench.forward
	@$(BIN)/python -m bench.film
	@$(BIN)/python -m bench.page

# PY=python3: with what that has installed, PyTorch for CUDA and pytest at least, and no environment of its own.
test-gpu: $(if $(PY),,$(VENV)/develop.stamp)  ## what only a CUDA GPU can prove; fails where there is none
	@$(or $(PY),$(BIN)/python) -m pytest -m gpu --require-gpu

bench-gpu: $(if $(PY),,$(VENV)/develop.stamp)  ## figures of a CUDA GPU, within 8 minutes, in docs/bench/gpu.*
	@$(or $(PY),$(BIN)/python) -m bench.gpu

train: $(VENV)/torch.stamp  ## make train OUT=runs/mine ARGS="--start weights.pth --frames my-rooms"; goes on where it was
	@$(BIN)/python -m train --out "$(or $(OUT),runs/own)" $(ARGS)

# Gone on with by the same command: `timeout 9m make train-gpu`, repeated, is one run. REHEARSE=1: small, on any machine.
train-gpu: $(if $(PY),,$(VENV)/torch.stamp)  ## a network of our own in 25 minutes of one H100, in runs/gpu
	@$(or $(PY),$(BIN)/python) -m train --split-mb 15 \
	$(if $(REHEARSE),--out "$(or $(OUT),runs/rehearsal)" --rehearse,--out "$(or $(OUT),runs/gpu)" --device cuda --minutes 25)

export: $(VENV)/torch.stamp  ## make export CHECKPOINT=weights.pth OUT=data/models/mine LICENCE="CC BY-NC 4.0"
	@$(BIN)/python -m export "$(CHECKPOINT)" -o "$(OUT)" $(if $(LICENCE),--licence "$(LICENCE)")

clean:
	rm -rf $(VENV) tests/readers/node_modules viewer/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
