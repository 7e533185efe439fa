# The whole project from a machine that has Python >= 3.11 and make:
#   make results K=30   the seed's model and ours side by side: train, score and draw
#   make sweep          one model for each K of the seed's experiment, in one table
#   make test           every check there is
PYTHON ?= python3
K ?= 20
SEED ?= 0
PARAMETERS ?=
OPTIONS ?=
KS ?= 1 10 20 30 40 50
BIN := .venv/bin

# OpenMP threads that spin while they wait ruin a shared machine: sleep instead.
export KMP_BLOCKTIME := 0
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help env same-python results sweep table test soak gpu-check site bench peers-env peers
.PHONY: readme notebooks data clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: same-python .venv/.ready ## create .venv with the pinned development set, once: make env [PYTHON=python3.12]

# PYTHON, if it was given, is what .venv was made with
same-python:
ifneq ($(origin PYTHON),file)
	@test ! -x $(BIN)/python || $(BIN)/python -c 'import subprocess, sys; \
	    say = "import sys; print(*sys.version_info[:2])"; \
	    theirs = subprocess.check_output(["$(PYTHON)", "-c", say], text=True).split(); \
	    ours = [*map(str, sys.version_info[:2])]; \
	    told = ".venv has Python {}.{}, $(PYTHON) is {}.{}: delete .venv first"; \
	    sys.exit(theirs != ours and told.format(*ours, *theirs))'
endif

.venv/.ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@if [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$(CURDIR)" ]; then \
	    git config merge.nbdev-merge.driver ".venv/bin/nbdev_merge %O %A %B %P"; fi
	mkdir -p _runs
	touch $@

RUN = _runs/K$(K)-seed$(SEED)
DRAFT = _runs/.K$(K)-seed$(SEED).ipynb
# folders of the models beside runs of these patterns
BESIDE = ls $(addsuffix /*/metrics.json,$(1)) 2>/dev/null | xargs -r -n 1 dirname
results: env ## train, score and draw the seed's model and ours beside it, or go on: make results K=30 [SEED=0] [PARAMETERS='-p compare ""']
	@test ! -e $(RUN).ipynb || grep -q '"papermill"' $(RUN).ipynb || \
	    { echo "$(RUN).ipynb is there and was not written by make results: move it away"; exit 2; }
	mkdir -p _runs
	$(BIN)/papermill nbs/06_results.ipynb $(DRAFT) --cwd . --kernel python3 --log-output --no-progress-bar \
	    -p K $(K) -p seed $(SEED) -p out $(RUN) $(PARAMETERS)
	sync $(DRAFT) && mv $(DRAFT) $(RUN).ipynb
	@$(BIN)/gmvae_table $(RUN) $$($(call BESIDE,$(RUN)))
	@echo "notebook  $(RUN).ipynb"
	@echo "metrics   $(RUN)/metrics.json"
	@echo "cells     $(RUN)/annotated.h5ad"
	@for beside in $$($(call BESIDE,$(RUN))); do echo "beside    $$beside"; done
	@echo "figures   $$(ls $(RUN)/*.png | tr '\n' ' ')"

sweep: env ## one model for each K in KS, finished ones skipped, then the table: make sweep [KS="10 20"] [SEED=0] [OPTIONS="--max_epochs 5"]
	$(BIN)/gmvae_sweep kang_pbmc --K $(KS) --seed $(SEED) --batch_key batch --labels_key cell_type --preset blog --out _runs $(OPTIONS)

table: env ## the table of all finished runs: mean and standard deviation over repeats, per K
	$(BIN)/gmvae_table _runs/K*/ $$($(call BESIDE,_runs/K*))

# one core for the pages and then some of the tests, the other for the rest: with a thread for each
# core, the pages would take both
AFTER_PAGES := $(addprefix tests/test_,limits.py ray.py reproducible.py typed.py peers.py results.py)
test: export OMP_NUM_THREADS := 1
# compiled modules are kept, whatever the shell says: a process that imports torch and scanpy takes
# 3 s from __pycache__, and 8 s if it has to compile them
test: export PYTHONDONTWRITEBYTECODE :=
test: env ## everything: notebook tests; beside them lint, map of modules, what is exported, pytest
	mkdir -p _runs
	# whatever fails, the others are run too; the report of the pages' core comes last
	( $(BIN)/nbdev_test --n_workers 1 --timing; pages=$$?; \
	    $(BIN)/python -m pytest $(AFTER_PAGES) && exit $$pages ) > _runs/nbdev_test.log 2>&1 & \
	    pages=$$!; status=0; \
	    for check in "ruff check" "ruff format --check" "python tools/module_map.py --check"; do \
	        $(BIN)/$$check || status=1; done; \
	    tests/in_sync.sh || status=1; \
	    $(BIN)/python -m pytest tests $(AFTER_PAGES:%=--ignore=%) --durations 40 || status=1; \
	    wait $$pages || status=1; cat _runs/nbdev_test.log; exit $$status

soak: env ## the promises in large: hundreds of kills, thousands of damaged files; three hours
	$(BIN)/python -m pytest -s tests/soak/soak_promises.py

gpu-check: env ## whether a graphics card gives the processor's numbers, and how fast; on a machine that has one
	$(BIN)/python tests/gpu_check.py cuda nbs/gpu.csv

site: env ## render the site without quarto into _docs, check links and figures, look at each page in a browser
	$(BIN)/python tools/site.py

bench: env ## time heads, training, draws and evaluation; prints tables, takes hours (SCVI too after `make peers-env`)
	$(BIN)/python tests/bench/heads.py
	$(BIN)/python tests/bench/training.py
	$(BIN)/python tests/bench/training.py --scaling
	$(BIN)/python tests/bench/training.py --disk 500000 13431
	$(BIN)/python tests/bench/partition.py _runs/partition.csv
	$(BIN)/python tests/bench/evaluation.py

peers-env: .venv-peers/.ready ## create .venv-peers with scvi-tools and Harmony, once (1.9 GB)

.venv-peers/.ready: tests/bench/peers-requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint $< torch
	.venv-peers/bin/python -m pip install --quiet --requirement $<
	touch $@

PEERS_DATA ?= kang_pbmc
peers: env peers-env ## score PCA, Harmony, SCVI and our presets alike: make peers [PEERS_DATA=cells.h5ad]; takes hours, resumes
	$(BIN)/python tests/bench/peers.py nbs/peers.csv --data $(PEERS_DATA)

readme: env ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

notebooks: env ## run every notebook in place, so that the outputs in it are those of this machine
	for nb in nbs/0*.ipynb nbs/index.ipynb; do $(BIN)/jupyter execute --inplace $$nb || exit 1; done
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/module_map.py

data: env ## build the shipped data set again from its source
	$(BIN)/python tools/build_kang_pbmc.py

clean: ## remove what was built; .venv and _runs stay
	rm -rf _proc _docs build dist *.egg-info .pytest_cache
