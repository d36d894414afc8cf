# Everything starts from a checkout with Python 3.11 or later, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .venv-bench

.PHONY: demo web test lint coverage audit constraints bench report clean

## Classify sample images with the demo model.
demo: $(VENV)/.installed
	$(BIN)/siglip-onnx classify siglip_onnx/demo/images/never_shown_red_circle.png siglip_onnx/demo/images/six_eggs.png \
	    siglip_onnx/demo/images/word_open.png --texts-file siglip_onnx/demo/texts.txt

## The web page, at http://127.0.0.1:5678/ until Ctrl-C.
web: $(VENV)/.installed-web
	$(BIN)/siglip-onnx web

## The whole test suite, with PyTorch as the reference.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## The full benchmark: every peer, in an environment of its own; 20 to 25 minutes on two cores after exports and
## conversions. IMAGES is a folder of photographs; SPIECE a SentencePiece model, or CHECKPOINT a checkpoint to measure.
bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python benchmarks/suite.py --images "$(IMAGES)" $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
	    $(if $(SPIECE),--spiece "$(SPIECE)") $(BENCH_OPTIONS)

## Tables and plots of the documents, from benchmarks/results/.
report: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/report.py

## Branch coverage of the runtime, without the exporter and the benchmarks; see pyproject.toml for what is omitted.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --cov --cov-report=term-missing

## Known vulnerabilities of what CI installs.
audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

## Pin what is installed now, after an upgrade that passed the tests.
constraints: $(VENV)/.installed-dev
	(echo "# What CI installs, pinned; written by: make constraints"; \
	    $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.txt

clean:
	rm -rf $(VENV) $(BENCH_VENV) dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-web: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[web]"
	touch $@

$(BENCH_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable ".[bench]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
