# Everything starts from a checkout with Python 3.11 or later, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .venv-bench
JAVASCRIPT := tests/javascript
ARM_MACHINE := .arm

.PHONY: demo web javascript test test-arm lint coverage audit constraints bench report clean

## Classify sample images with the demo model.
demo: $(VENV)/.installed
	@echo "The demo model scores nine texts for each of three images; the best five are:"
	@echo
	@$(BIN)/siglip-onnx classify siglip_onnx/demo/images/never_shown_red_circle.png siglip_onnx/demo/images/six_eggs.png \
	    siglip_onnx/demo/images/word_open.png --texts-file siglip_onnx/demo/texts.txt --model demo --top 5 --bars
	@echo
	@echo "Next:"
	@echo "  $(BIN)/siglip-onnx search siglip_onnx/demo/images 'six eggs'"
	@echo "  $(BIN)/siglip-onnx --help     # all commands; photographs: README.md"
	@echo "  make web                        # the same on a page in your browser"

## The web page, at http://127.0.0.1:5678/ until Ctrl-C.
web: $(VENV)/.installed-web
	$(BIN)/siglip-onnx web

## The whole test suite, in two processes, with PyTorch as the reference.
test: $(VENV)/.installed-dev javascript
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

## The runtime on emulated ARM64 CPUs with and without int8 instructions, compared with this machine; minutes. Needs
## apt. The result is benchmarks/results/arm.json.
test-arm: $(VENV)/.installed-dev
	PYTHON="$(CURDIR)/$(BIN)/python" tests/arm/machine.sh $(ARM_MACHINE)
	PYTHONPATH=.:tests $(BIN)/python tests/arm/run.py $(ARM_MACHINE)

## transformers.js, which tests open bundles with; they are skipped where npm cannot install it.
javascript: $(VENV)/.installed-dev
	@test $(JAVASCRIPT)/node_modules/.package-lock.json -nt $(JAVASCRIPT)/package-lock.json || \
	    PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix $(JAVASCRIPT) --ignore-scripts --no-audit --no-fund --loglevel error \
	    || echo "transformers.js could not be installed"

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
	rm -rf $(VENV) $(BENCH_VENV) $(ARM_MACHINE) $(JAVASCRIPT)/node_modules dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	@echo "Installing siglip_onnx, onnxruntime and what they need into $(VENV): about a minute, 250 MB ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

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
