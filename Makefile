PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help install demo test test-ray lint docs pocket gpu clean
help:          ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

install: $(VENV)/installed  ## the virtual environment with everything in it

$(VENV)/installed: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps open-clip-torch==3.3.0  # for CLIP's vocabulary alone
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

demo: install  ## train a concept from five pictures of a dog and draw it, before and after
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	    train_dreambooth_atoms.py --instance_dir assets/dog --output_dir outputs/dog --overwrite \
	    --timeline_steps 10
	$(BIN)/atomdiff compare --concept outputs/dog/dog.safetensors --out outputs/dog/before_after.png \
	    "a sks dog on the beach" "a sks dog in space" "a sks dog wearing a red hat in the snow" "a pencil sketch of a sks dog in the city"

test: install  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-ray: install  ## the tests on a cluster of several processes (fetches Ray, 80 MB)
	$(BIN)/pip install --quiet "ray[serve]==2.60.0"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/test_ray.py

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## the site of docs/, with its reference made from the docstrings, into site/
	$(BIN)/python -m typer atomdiff.cli utils docs --name atomdiff --title "Command line" --output docs/reference/cli.md
	$(BIN)/zensical build --strict

pocket: install  ## train the bundled pocket on (a day on one core; goes on where it was stopped)
	$(BIN)/python -m atomdiff.pocket.build --start atomdiff/pocket/weights --out outputs/pocket-model

gpu: install   ## on a GPU: a longer pocket training, then every benchmark that asks for hours; all run, whatever one misses
	$(BIN)/python -m atomdiff.pocket.build --start atomdiff/pocket/weights --out outputs/pocket-model --compile \
	    --pictures 96000 --autoencoder-steps 20000 --autoencoder-batch 32 \
	    --decoder-steps 10000 --decoder-batch 32 --denoiser-steps 30000 --denoiser-batch 256 \
	    --judge-steps 6000 --judge-batch 256
	-$(BIN)/python -m benchmarks.pocket_quality --docs --check
	-$(BIN)/python -m benchmarks.step_time --device cuda --size 512 --dtype bf16 --docs --check
	-$(BIN)/python -m benchmarks.method --docs --check
	-$(BIN)/python -m benchmarks.size --docs --check
	-$(BIN)/python -m benchmarks.tricks --docs --check

clean:         ## removes outputs and the environment
	rm -rf outputs site .cache docs/reference/cli.md $(VENV) *.egg-info
