"""Train the autoencoder of latent diffusion: texts to a few continuous vectors, and back by a language model.

    accelerate launch training_scripts/train_text_autoencoder.py --dataset my_texts.txt --output_dir runs/latents \\
        --encoder sentence-transformers/all-MiniLM-L6-v2 --decoder HuggingFaceTB/SmolLM2-135M

Without `--encoder` and `--decoder` small ones are trained along, on the texts alone. With `--source_column` the
decoder also reads what a text is written from, and the encoder the text alone; of conversations, `--source_column
messages` makes each answer a text, and the turns before it its source. Read it from top to bottom: options, models,
data, loss, training, report. Shapes: B batch, T row length in tokens of the decoder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from text_diffusers import AutoencoderTextLatentModel
from text_diffusers.evaluation.latents import (
    evaluate_latents,
    interpolated_texts,
    latent_statistics,
    rewritten_texts,
)
from text_diffusers.evaluation.likelihood import unigram_entropy
from text_diffusers.models.language.calls import configured_length
from text_diffusers.models.latent.autoencoder_text_latent import REGULARIZATIONS, encoder_class
from text_diffusers.training.adaptation.adapters import (
    QUANTIZATIONS,
    add_adapters,
    merge_adapters,
    names_of_layers,
    quantize,
)
from text_diffusers.training.adaptation.language_models import set_dropout
from text_diffusers.training.adaptation.starting_models import load_tokenizer
from text_diffusers.training.config import option
from text_diffusers.training.latent_data import check_sources, prepare_latent_data
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics
from text_diffusers.training.runtime import end_training, make_accelerator, refuse_shards
from text_diffusers.training.steps.condition_dropout import drop_conditions
from text_diffusers.training.steps.latent_autoencoder import (
    LatentDropout,
    LatentLossWeights,
    latent_autoencoder_loss,
)
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    row_order,
    rows_per_step,
)

# Peak learning rates, by what the decoder learns
LEARNING_RATES = {"new": 1e-3, "all": 2e-4, "adapters": 5e-4}

# What is shown between texts at the end
SHOWN_PAIRS = 2


@dataclass
class TextAutoencoderConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # What a text is written from, which the decoder then reads
    source_column: str | None = option(
        None, "column of the texts, or of the conversations, from which a text is to be written"
    )
    source_length: int | None = option(
        None,
        "tokens of such a source, of which the last ones are read; default: `length`",
        limit="at least 1",
    )
    context_turns: int = option(
        3, "turns before an answer that are its source, in conversations", limit="at least 1"
    )
    condition_dropout: float = option(
        0.1, "share of rows in which the decoder reads no source", limit="in [0, 1)"
    )

    # Language models
    encoder: str | None = option(
        None, "encoder of transformers, folder or Hub name; default: a small one, trained along"
    )
    decoder: str | None = option(
        None, "causal LM of transformers, folder or Hub name; default: a small one, trained along"
    )
    train_encoder: bool = option(False, "train that encoder, too; else it stays as it is")
    lora_rank: int | None = option(
        None, "train low-rank adapters of that decoder only", limit="at least 1"
    )
    quantization: str | None = option(
        None,
        f"weights under adapters in fewer bits: {', '.join(QUANTIZATIONS)}; bf16 needs mixed_precision bf16",
        one_of=(*QUANTIZATIONS,),
    )

    # Small ones, where none is named
    model_size: int = option(256, "width of a small encoder and decoder", limit="at least 1")
    model_layers: int = option(4, "their blocks", limit="at least 1")

    # Rows: one text each, for latents that are of one text
    length: int = option(64, "tokens in a row of the decoder")
    encoder_length: int | None = option(
        None, "tokens that the encoder reads; default: `length`", limit="at least 1"
    )
    packing: bool = option(False, "must be off: latents are of one text")

    # Latents
    num_latents: int = option(8, "vectors that a text becomes, 1 to 32")
    latent_size: int = option(64, "width of each")
    regularization: str = option(
        "noise", "kl, a variational posterior, or noise, of one size", one_of=REGULARIZATIONS
    )
    noise_scale: float = option(
        0.1, "standard deviation of that noise, around latents of variance 1", limit="at least 0"
    )

    # The perceiver that pools the encoder's states
    hidden_size: int = option(256, "its width")
    num_layers: int = option(2, "its blocks")
    num_attention_heads: int = option(4, "its heads")

    # Loss
    kl_weight: float = option(0.05, "of the divergence from the prior", limit="at least 0")
    free_bits: float = option(
        0.1,
        "nats that each entry of the latents may tell of a text for nothing",
        limit="at least 0",
    )

    # Words that the latents tell by themselves
    words_share: float = option(
        0.2,
        "share of the training, the first, in which latents learn to tell words and the decoder does not run",
        limit="in [0, 1)",
    )
    words_weight: float = option(0.1, "of these words in the loss, afterwards", limit="at least 0")

    # What the decoder is not told in training
    memory_dropout: float = option(0.1, "share of latents, each by itself", limit="between 0 and 1")
    text_dropout: float = option(
        0.1, "share of texts that are written without any latent", limit="between 0 and 1"
    )
    word_dropout: float = option(
        0.1, "share of words that are not seen by the next ones", limit="between 0 and 1"
    )

    # Optimizer
    learning_rate: float | None = option(
        None,
        "peak learning rate; default: 1e-3, with a named decoder 2e-4, or 5e-4 for its adapters",
        limit="above 0",
    )

    # Figures
    validation_rows: int = option(
        100,
        "at most, of a validation during training",
        limit="at least 1",
        may_change_on_resume=True,
    )
    report_rows: int = option(
        500,
        "held-out texts of the figures at the end, spread over all",
        limit="at least 1",
        may_change_on_resume=True,
    )
    num_rewritten: int = option(
        64,
        "of these, texts that are written anew for exact match and BLEU",
        limit="at least 0",
        may_change_on_resume=True,
    )
    statistics_rows: int = option(
        4_000, "texts by which latents are normalised for diffusion", limit="at least 1"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.packing:
            raise ValueError(
                "`packing` must be false for an autoencoder of single texts, got True."
            )
        if self.label_column:
            raise ValueError("`label_column` is not used by an autoencoder; leave it out.")
        check_sources(self)
        if self.decoder is None and self.lora_rank:
            raise ValueError(f"`lora_rank` needs a `decoder` to adapt, got {self.lora_rank}.")
        if self.quantization and not self.lora_rank:
            raise ValueError(
                f"`quantization` needs a `lora_rank`, as weights of few bits do not learn, got {self.quantization!r}."
            )
        if self.encoder is None and self.train_encoder:
            raise ValueError("`train_encoder` goes with an `encoder`; a small one always learns.")
        if self.decoder is not None and self.tokenizer:
            raise ValueError("`tokenizer` is that of the `decoder`; leave it out.")
        if self.learning_rate is None:
            learns = "new" if self.decoder is None else "adapters" if self.lora_rank else "all"
            self.learning_rate = LEARNING_RATES[learns]

    @property
    def read_length(self) -> int:
        """Tokens that the encoder reads."""
        return self.encoder_length or self.length

    @property
    def row_length(self) -> int:
        """Tokens in a row of the decoder, with its source."""
        if self.source_column is None:
            return self.length
        return self.length - 1 + (self.source_length or self.length)

    @property
    def latent_options(self) -> dict[str, Any]:
        """Arguments of the autoencoder beside its language models."""
        names = ("num_latents", "latent_size", "hidden_size", "num_layers", "num_attention_heads")
        names += ("regularization", "noise_scale")
        learns = self.train_encoder or self.encoder is None
        options = {name: getattr(self, name) for name in names}
        reads_source = self.source_column is not None
        return options | {"train_encoder": learns, "reads_source": reads_source}


# Models


def named_settings(name: str, least: int, option_name: str) -> Any:
    """The configuration of a model of transformers without dropout, checked to take `least` tokens.

    Raises:
        ValueError: if its longest input is shorter.
    """
    settings = AutoConfig.from_pretrained(name)
    longest = configured_length(settings)
    if longest is not None and least > longest:
        raise ValueError(
            f"`{option_name}` asks for {least} tokens of {name!r}, which takes at most {longest}."
        )
    # Minutes of training need none.
    set_dropout(settings, 0.0)
    return settings


def check_models(config: TextAutoencoderConfig):
    """Refuse sizes that no autoencoder has, and rows that are too long for its language models."""
    tiny = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny |= {"vocab_size": 4, "intermediate_size": 2}
    AutoencoderTextLatentModel(
        BertConfig(**tiny).to_dict(), LlamaConfig(**tiny).to_dict(), **config.latent_options
    )
    if config.encoder is not None:
        named_settings(config.encoder, config.read_length, "encoder_length")
    if config.decoder is not None:
        named_settings(config.decoder, config.row_length + config.num_latents, "length")


def small_sizes(config: TextAutoencoderConfig) -> dict[str, Any]:
    """Sizes of a small encoder or decoder."""
    return {
        "hidden_size": config.model_size,
        "intermediate_size": 4 * config.model_size,
        "num_hidden_layers": config.model_layers,
        "num_attention_heads": config.num_attention_heads,
    }


def make_encoder(config: TextAutoencoderConfig, vocab_size: int) -> Any:
    """The encoder that is named, or a small BERT with random weights."""
    if config.encoder is not None:
        settings = named_settings(config.encoder, config.read_length, "encoder_length")
        return encoder_class(settings).from_pretrained(
            config.encoder, config=settings, dtype=torch.float32
        )
    settings = BertConfig(
        vocab_size=vocab_size,
        max_position_embeddings=config.read_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **small_sizes(config),
    )
    return BertModel(settings)


def make_decoder(config: TextAutoencoderConfig, tokenizer: Any) -> Any:
    """The decoder that is named, or a small Llama with random weights."""
    # A row is read behind the prefix.
    longest = config.row_length + config.num_latents
    if config.decoder is not None:
        settings = named_settings(config.decoder, longest, "length")
        decoder: Any = AutoModelForCausalLM.from_pretrained(
            config.decoder, config=settings, dtype=torch.float32
        )
        # Our tokenizers have a mask, which no text holds; each token of a tokenizer is one that its model knows.
        if len(tokenizer) > decoder.get_input_embeddings().weight.shape[0]:
            decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return decoder
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **small_sizes(config),
    )
    return LlamaForCausalLM(settings)


def build_model(
    config: TextAutoencoderConfig, tokenizer: Any, encoder_tokenizer: Any, accelerator: Any
) -> AutoencoderTextLatentModel:
    """The autoencoder around both language models, with adapters if they are asked for."""
    set_seed(config.seed)
    model: Any = AutoencoderTextLatentModel.from_language_models(
        make_encoder(config, len(encoder_tokenizer)),
        make_decoder(config, tokenizer),
        **config.latent_options,
    )
    if config.quantization:
        precision = accelerator.mixed_precision
        quantize(model.decoder, config.quantization, accelerator.device, precision)
    if config.lora_rank:
        language_model = model.decoder.language_model
        add_adapters(language_model, config.lora_rank, targets=names_of_layers(language_model))
    return model


# Data


def prepare_texts(config: TextAutoencoderConfig, accelerator: Any) -> tuple[TextData, Any]:
    """Rows with the tokens of both models, and the encoder's tokenizer, which is saved beside the decoder's."""
    encoder_tokenizer = None
    if config.encoder is not None:
        encoder_tokenizer = load_tokenizer(config.encoder, "encoder")
    data = prepare_latent_data(config, accelerator, config.decoder, encoder_tokenizer)

    # A small encoder reads what the decoder writes.
    if encoder_tokenizer is None:
        encoder_tokenizer = data.tokenizer
    if accelerator.is_main_process:
        encoder_tokenizer.save_pretrained(Path(config.output_dir, "encoder_tokenizer"))
    return data, encoder_tokenizer


def main(
    config: TextAutoencoderConfig, on_validation: ValidationCallback | None = None
) -> list[float]:
    """Train, save the autoencoder and its figures; returns the loss of each step in nats per token."""
    # 1. Refuse what makes no sense before the texts are read
    check_models(config)

    # 2. Data and model
    accelerator = make_accelerator(config)
    # Texts are written in validation, for which the model must be whole.
    refuse_shards(accelerator)
    data, encoder_tokenizer = prepare_texts(config, accelerator)
    model = build_model(config, data.tokenizer, encoder_tokenizer, accelerator)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    accelerator.print(f"{model.num_parameters():,} parameters, of which {num_trained:,} learn")

    # 3. The loss of a batch, and what is watched on the way
    dropout = LatentDropout(
        memory_dropout=config.memory_dropout,
        text_dropout=config.text_dropout,
        word_dropout=config.word_dropout,
    )

    weights = LatentLossWeights(config.kl_weight, config.free_bits, config.words_weight)

    def loss_function(model, batch, uniform, generators):
        # Without its source, a row teaches the decoder to write from the latents alone.
        if config.source_column:
            filling = data.tokenizer.pad_token_id
            batch = drop_conditions(
                batch, generators, config.condition_dropout, pad_token_id=filling
            )

        # At first the latents alone; then reconstruction from latents that are drawn, and what these tell beyond the
        # prior.
        words_only = loop.progress < config.words_share
        return latent_autoencoder_loss(model, batch, dropout, generators, weights, words_only)

    # What latents keep, with the means of the posterior and with draws, and what the decoder knows without
    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        # Without the precision of the training, frozen weights in bfloat16 and adapters would not meet.
        with accelerator.autocast():
            return evaluate_latents(model, rows, seed=config.seed).metrics()

    # An autoencoder has nothing to write from noise: held-out texts are shown after the way back.
    def write(model) -> list[str]:
        rows = data.validation_rows
        with accelerator.autocast():
            texts, written = rewritten_texts(model, data.tokenizer, rows, config.num_samples)
        return [
            line
            for text, copy in zip(texts, written, strict=True)
            for line in (f"text: {text}", f"from latents: {copy}")
        ]

    # 4. Train
    loop = TrainingLoop(
        config,
        accelerator,
        model,
        loss_function,
        row_order(config, data.train_rows, rows_per_step(config, accelerator)),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 5. Save the averaged weights, and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        saved_model = finish(config, loop.unwrapped, averages, data)
        saved_model.save_pretrained(Path(config.output_dir, "autoencoder"))
        loop.log_pipeline(report(config, saved_model, data))
    end_training(accelerator)
    return losses


@torch.no_grad()
def finish(config: TextAutoencoderConfig, model: Any, averages: Any, data: TextData) -> Any:
    """The model with its averaged weights, adapters merged, and the statistics of its latents over the texts."""
    parameters = dict(model.named_parameters())
    for name, value in averages.items():
        parameters[name].copy_(value)
    if config.lora_rank:
        model.decoder.language_model = with_merged_adapters(config, model.decoder, data.tokenizer)

    model.eval()
    model.set_latent_statistics(*latent_statistics(model, data.train_rows, config.statistics_rows))
    return model


def with_merged_adapters(config: TextAutoencoderConfig, decoder: Any, tokenizer: Any) -> Any:
    """The decoder's language model in plain weights, with what its adapters have learned."""
    language_model = decoder.language_model
    adapters = {
        name: weight for name, weight in language_model.named_parameters() if weight.requires_grad
    }

    def build() -> tuple[Any, None]:
        return make_decoder(config, tokenizer), None

    # Where weights were rounded, adapters go into those that were not.
    return merge_adapters(language_model, adapters, build if config.quantization else None)


def report(config: TextAutoencoderConfig, model: Any, data: TextData) -> dict[str, float]:
    """Print, save and return what the latents keep of the held-out split."""
    rows = data.spread_validation_rows(config.report_rows)
    found = evaluate_latents(
        model, rows, data.tokenizer, min(config.num_rewritten, len(rows)), config.seed
    )
    # What guessing by frequency would cost, as a yardstick
    metrics = found.metrics() | {"unigram_entropy": unigram_entropy(data.validation_rows)}

    num_units = config.num_latents * config.latent_size
    print(f"\nunigram entropy    {metrics['unigram_entropy']:.3f} nats per token")
    print(f"without latents    {found.without_latents:.3f} nats per token")
    print(f"of another text    {found.other_latents:.3f} nats per token")
    print(
        f"from latents       {found.cross_entropy:.3f} nats per token, "
        f"{found.sampled_cross_entropy:.3f} from drawn ones"
    )
    if found.bound is not None:
        print(
            f"bound              {found.bound:.3f} nats per token, {found.kl:.3f} of them divergence"
        )
    print(f"active units       {found.active_units} of {num_units}")
    if found.exact_match is not None:
        bleu = "needs sacrebleu" if found.bleu is None else f"{found.bleu:.1f}"
        print(f"written anew       {found.exact_match:.1%} to the character, BLEU {bleu}")
        pairs = min(SHOWN_PAIRS, len(rows) - 1)
        for line in interpolated_texts(model, data.tokenizer, rows, pairs) if pairs else []:
            print("from one text to another:", *line, sep="\n  ")

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, TextAutoencoderConfig)
