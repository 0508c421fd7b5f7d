# Two entry points: `make app` and `make test`. Both prepare .venv on their first run and start at once after it.
# Variables: PYTHON (interpreter for a new environment), JOBS (test processes), ARGS (passed to app.py).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread per test process: two processes with two threads each only fight over two cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False

.PHONY: app test lint unit browser bench soak clean

app: $(VENV)/.ready-app
	$(BIN)/python app.py $(ARGS)

test: lint unit browser

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	@# gradio writes .pyi files beside components; they know less than the source and mypy would prefer them.
	find inspector -name '*.pyi' -delete
	$(BIN)/mypy

unit: $(VENV)/.ready-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore=tests/browser tests

# Not in parallel: a browser and a server at work are two processes already.
browser: $(VENV)/.ready-test
	chromium=$$(sh scripts/ensure_chromium.sh $(BIN)/python) && \
	VLM_INSPECTOR_CHROMIUM="$$chromium" $(TEST_ENV) $(BIN)/python -m pytest tests/browser

bench: $(VENV)/.ready-test
	$(BIN)/python -m benchmarks

$(BIN)/python:
	sh scripts/make_venv.sh "$(PYTHON)" $(VENV)

$(VENV)/.ready-app: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.ready-app

# Twenty people and two training jobs at a public server, half an hour; not part of the tests.
soak: $(VENV)/.ready-test
	$(BIN)/python -m benchmarks soak

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
