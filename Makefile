# Everything runs in .venv, which is made on first use with the versions of constraints.txt.
#   make quick     a minute: a new layer from spec to kernels, verified, trained with and decoded with
#   make demo      minutes: the same on every backend, and a language model that writes
#   make test      every test that needs no GPU
#   make lint      style, types, and the files that others' tools read
#   make docs      the documentation as a site, in build/site
#   make generate  bring generated/ up to date with specs/ and codegen/

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quick demo test lint lint-workflows docs generate clean

quick: .venv/.installed
	$(BIN)/based-ops demo --quick

demo: .venv/.installed
	$(BIN)/based-ops demo

# A worker takes whole files, whose tests share what they have compiled.
test: .venv/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not gpu"

lint: .venv/.installed-dev lint-workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/reuse lint --quiet
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# What GitHub reads, by schemas and audits that come with the tools.
lint-workflows: .venv/.installed-dev
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/layer.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --no-progress .github

docs: .venv/.installed-docs
	$(BIN)/python -m mkdocs build --strict

generate: .venv/.installed
	$(BIN)/based-ops generate

clean:
	rm -rf .venv build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv .venv

# A stamp each, so that a second call installs nothing.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[all]"
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(INSTALL) -e ".[docs]"
	@touch $@

.venv/.installed-test: .venv/.installed
	$(INSTALL) -e ".[test]"
	@touch $@

.venv/.installed-dev: .venv/.installed-test
	$(INSTALL) -e ".[dev]"
	@touch $@
