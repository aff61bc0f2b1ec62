"""Language models of transformers as absorbing diffusion models: causal LMs, masked LMs, and encoders without a head.

What is new to a model begins where its training does least harm. The vector of an added mask is the mean of all
vectors. A causal LM keeps its shifted predictions, the state before a token predicts it, and reads the past causally
as it was taught, so that only the inside of a block is new to it. The head of an encoder is tied to its embeddings and
begins at the frequencies of the tokens.

Shapes: V vocabulary size, D width.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.models.language_model import (
    LanguageModelDenoiser,
    ids_never_predicted,
    is_language_model,
    is_masked_lm,
    language_model_length,
    reading_of,
)
from text_diffusers.models.reading import Reading, read_config, write_reading
from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.schedulers.scheduling_confidence import ConfidenceScheduler
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler
from text_diffusers.training.adaptation.starting_models import (
    kind_of_model,
    knows_no_ends,
    load_tokenizer,
    local_folder,
    saved_pipeline,
    saved_reading,
)
from text_diffusers.training.adaptation.vocabulary import transfer_vocabulary
from text_diffusers.training.config import marked_options

DEFAULT_BLOCK_LENGTH = 4  # of a causal LM; the best of those measured

# What a fresh head multiplies its normalised states by, so that it predicts little but frequencies at first
HEAD_SCALE = 0.3

# Entries of configurations that say how much is dropped in training
DROPOUT = re.compile("dropout|pdrop")

# How a language model writes by default, once it is trained
WRITING_SHAPE = {"temperature": 0.8, "top_p": 0.95}
DEFAULT_NEW_TOKENS = 64

# Rows up to which plain attention is the faster one in bfloat16 on a CPU
EAGER_LENGTH = 256

PLANTED_LENGTH = 8  # tokens of the row in which one is planted

# Peak learning rates, by what is trained of which model
LEARNING_RATES = {
    ("masked_lm", "all"): 5e-4,
    ("masked_lm", "adapters"): 1e-3,
    ("causal_lm", "all"): 1e-4,
    ("causal_lm", "adapters"): 5e-4,
    ("language_pipeline", "all"): 2e-4,
    ("language_pipeline", "adapters"): 5e-4,
}


def check_language_model_options(config: Any):
    """Refuse options that a language model of transformers cannot be trained with.

    Raises:
        ValueError: naming the option.
    """
    for name in marked_options(config, "not_for", "language_model"):
        if getattr(config, name):
            raise ValueError(
                f"`{name}` cannot be used with a language model of transformers, got {getattr(config, name)!r}."
            )

    # Either stands before a text, in the same place. A source is an option of some recipes.
    source_column = getattr(config, "source_column", None)
    if config.label_column and source_column:
        raise ValueError(
            "`label_column` excludes `source_column` for a language model of transformers, which reads either before "
            f"its text, got {config.label_column!r} and {source_column!r}."
        )


def default_learning_rate(kind: str | None, has_adapters: bool) -> float | None:
    """The peak learning rate for a model of this kind; `None` for one of this package, or for none."""
    return LEARNING_RATES.get((kind or "", "adapters" if has_adapters else "all"))


def end_behind_texts(config: Any, data: Any) -> int | None:
    """The token that training puts behind an answer, see `with_ends_behind`; `None` where nothing is.

    A text that has a row to itself, behind its label or source, is written like an answer: in more places than it
    needs, unless the pipeline draws its length.

    Args:
        config: with the options of `AdaptationConfig`.
        data: its `TextData`.
    """
    if data.template is not None:
        return data.template.end_token_id
    has_row = config.adapts_language_model and not config.packing and not config.gives_ends
    return end_ids(data.tokenizer)[0] if has_row and data.lengths is None else None


# Loading


def load_language_model(
    model_name_or_path: str,
    tokenizer: Any,
    frequencies: Callable[[], Tensor] | None = None,
    reading: dict[str, Any] | None = None,
    knows_ends: bool = True,
    dropout: float = 0.0,
) -> tuple[LanguageModelDenoiser, Any]:
    """`(denoiser, scheduler)`, the weights in float32; a model without a scheduler gets one of linear noise.

    Args:
        tokenizer: of the rows; the model's own, with a mask token, or one that `transfer_vocabulary` makes it fit.
        frequencies: counts the tokens, (V,), with which the head of an encoder begins that has none.
        reading: `attention`, `block_length` and `alignment` of a `Reading`, `None` for what suits the model.
        knows_ends: whether the ends of texts are learned, or given in each row.
        dropout: in training, of a model by itself. Minutes of training need none.

    Raises:
        ValueError: if the components disagree, or the model cannot be read in this way.
    """
    kind = kind_of_model(model_name_or_path)
    asked = {name: value for name, value in (reading or {}).items() if value is not None}
    if kind in ("pipeline", "language_pipeline"):
        pipe = TextDiffusionPipeline.from_pretrained(model_name_or_path, dtype=torch.float32)
        model = pipe.denoiser
        scheduler = pipe.scheduler
        fit_vocabulary(model, pipe.tokenizer, tokenizer)
        if scheduler.config.get("mask_token_id") not in (None, tokenizer.mask_token_id):
            scheduler = type(scheduler).from_config(
                scheduler.config, mask_token_id=tokenizer.mask_token_id
            )
        if knows_ends and knows_no_ends(model_name_or_path):
            adapt_masked(model, tokenizer, **asked)
        elif asked:
            read_anew(model, asked)
    else:
        model = load_model(model_name_or_path, kind, tokenizer, frequencies, dropout)
        if kind == "causal_lm":
            adapt_causal(model, tokenizer, **asked)
        elif knows_ends:
            adapt_masked(model, tokenizer, **asked)
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
        if read_config(model.config) is not None:
            scheduler = ConfidenceScheduler(tokenizer.mask_token_id, order="left_to_right")

    TextDiffusionPipeline(tokenizer, model, scheduler)  # checks that they fit
    check_open(model)
    return training_denoiser(model, tokenizer), scheduler


def set_dropout(config: Any, probability: float):
    """Let a model of transformers drop so much of everything in training, in its configuration, in place."""
    for entry, value in config.to_dict().items():
        if DROPOUT.search(entry) and isinstance(value, float):
            setattr(config, entry, probability)


def load_model(
    name: str,
    kind: str | None,
    tokenizer: Any,
    frequencies: Callable[[], Tensor] | None,
    dropout: float,
) -> Any:
    """A causal LM or masked LM by itself, with an embedding for each token of `tokenizer`."""
    place = local_folder(name) or name
    config = AutoConfig.from_pretrained(place)
    set_dropout(config, dropout)
    auto_class = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForMaskedLM
    loaded: Any = auto_class.from_pretrained(
        place, config=config, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    fit_vocabulary(model, load_tokenizer(name, "model_name_or_path"), tokenizer)

    if kind == "masked_lm" and lacks_head(model, info["missing_keys"]):
        begin_head(model, None if frequencies is None else frequencies())
    return model


def lacks_head(model: Any, missing_keys: Collection[str]) -> bool:
    """Whether an encoder was never asked for tokens, so that its files hold no layers of a head.

    Args:
        missing_keys: names of parameters that were not in its files.
    """
    # The last layer may be tied, and is then in the files under another name.
    tied = {f"{name}.weight" for name, module in model.named_modules() if is_head(model, module)}
    body = f"{model.base_model_prefix}."
    return any(
        key.endswith("weight") and not key.startswith(body) for key in {*missing_keys} - tied
    )


def is_head(model: Any, module: nn.Module) -> bool:
    return module is model.get_output_embeddings()


def fit_vocabulary(model: Any, old: Any, new: Any):
    """Give a model an embedding for each token of `new`, in place; `old` is the tokenizer that it came with."""
    old_ids = old.get_vocab()
    new_ids = new.get_vocab()
    if not old_ids.items() <= new_ids.items():
        transfer_vocabulary(model, old, new)
        return

    # Added tokens begin as the mean of all vectors, also where the model has vectors that no token had.
    known = sorted(token for token in old_ids.values() if token < model.config.vocab_size)
    added = sorted({*new_ids.values()} - {*known})
    if not added:
        return
    if len(new) > model.config.vocab_size:
        model.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[added] = layer.weight[known].mean(dim=0)


# Heads


def begin_head(model: Any, frequencies: Tensor | None):
    """Let the head of a masked LM that has none yet predict the frequencies of tokens, in place.

    Its linear layer begins as the identity, and its normalisation small, so that the logits are the products of states
    and embeddings, which encoders already have alike for alike meanings, under a bias of log frequencies.

    Args:
        frequencies: (V,) counts of the tokens; `None` is of all alike.
    """
    embeddings = model.get_input_embeddings().weight
    vocab_size, width = embeddings.shape
    body = set(model.base_model.modules())
    with torch.no_grad():
        for module in model.modules():
            if module in body:
                continue
            if isinstance(module, nn.Linear) and module.weight.shape == (width, width):
                module.weight.copy_(torch.eye(width))
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(HEAD_SCALE)
                if module.bias is not None:
                    module.bias.zero_()

        head = model.get_output_embeddings()
        model.config.tie_word_embeddings = True
        head.weight = embeddings
        if frequencies is not None and head.bias is not None:
            counts = frequencies.to(head.bias.dtype) + 1
            head.bias.copy_((counts / counts.sum()).log())


# Readings


def adapt_causal(
    model: Any,
    tokenizer: Any,
    attention: str = "block",
    block_length: int | None = None,
    alignment: str = "shifted",
):
    """Say in the configuration of a causal LM how it is read as a diffusion model, in place.

    Args:
        tokenizer: with a mask token.
        attention: "block", blocks over a past that is read causally; "bidirectional"; or "causal".
        block_length: tokens of a block, with "block".
        alignment: "shifted", as it was taught, or "aligned".
    """
    # A text is written behind a token that begins it.
    if not start_ids(tokenizer):
        tokenizer.bos_token = tokenizer.eos_token
    write_first_reading(model, tokenizer, attention, block_length, alignment)


def adapt_masked(
    model: Any,
    tokenizer: Any,
    attention: str = "bidirectional",
    block_length: int | None = None,
    alignment: str | None = None,
):
    """Say in the configuration of a masked LM that it learns where texts end, in place; arguments as above.

    With blocks it learns to read the past token by token, and by default shifted, so that it learns next tokens by
    itself; else aligned, as it was taught.
    """
    if attention == "causal":
        raise ValueError(
            '`attention` must be "bidirectional" or "block" for a model that was never causal, got "causal".'
        )
    if alignment is None:
        alignment = "shifted" if attention == "block" else "aligned"
    write_first_reading(model, tokenizer, attention, block_length, alignment)


def write_first_reading(
    model: Any, tokenizer: Any, attention: str, block_length: int | None, alignment: str
):
    """Say how a model that was none of diffusion is read, in its configuration; arguments as above."""
    has_blocks = attention == "block"
    if has_blocks and block_length is None:
        block_length = DEFAULT_BLOCK_LENGTH
    reading = Reading(
        attention=attention,
        block_length=block_length,
        past="causal" if has_blocks else "block",
        alignment=alignment,
        mask_token_id=tokenizer.mask_token_id,
        end_token_ids=end_ids(tokenizer),
    )
    write_reading(model.config, reading)


def read_anew(model: Any, asked: dict[str, Any]):
    """Change how a language model is read, in place; `asked` are fields of its `Reading`."""
    reading = reading_of(model)
    attention = asked.get("attention", reading.attention)
    if attention != "block":
        asked = {"block_length": None, "past": "block"} | asked
    elif reading.attention != "block":
        asked = {"block_length": DEFAULT_BLOCK_LENGTH, "past": "causal"} | asked
    write_reading(model.config, replace(reading, **asked))


@torch.no_grad()
def check_open(model: Any):
    """Refuse a model that is said to be bidirectional and is not, by planting a token at the right of a row.

    transformers itself must read it so, as those do who open the saved folder without this package.

    Raises:
        ValueError: naming the architecture.
    """
    reading = read_config(model.config)
    if reading is not None and reading.has_causal_past:
        check_block_open(model)
    if reading is None or reading.attention != "bidirectional":
        return

    model.eval()
    logits = [model(input_ids=tokens).logits[:, :-1] for tokens in planted_rows(model)]
    if torch.equal(*logits):
        raise ValueError(
            f'`attention` must be "block" or "causal" for a {type(model).__name__}: whatever its configuration says, '
            "its tokens see nothing to their right."
        )


def planted_rows(model: Any) -> tuple[Tensor, Tensor]:
    """Two rows (1, L) of tokens, of which only the last one differs, and has another vector."""
    length = min(PLANTED_LENGTH, language_model_length(model))
    row = torch.arange(length, device=model.device).remainder(model.config.vocab_size).unsqueeze(0)
    # Tokens that nothing spelt have the same vector.
    table = model.get_input_embeddings().weight
    distances = (table - table[row[0, -1]]).abs().amax(dim=1)
    planted = row.clone()
    planted[0, -1] = distances.argmax()
    return row, planted


def check_block_open(model: Any):
    """Refuse a model whose tokens do not see those of their own block, by planting one at its right.

    Raises:
        ValueError: naming the architecture.
    """
    denoiser = LanguageModelDenoiser(model.eval())
    rows = planted_rows(model)
    reason = "its tokens see nothing to their right"
    try:
        # A row that is one block
        length = rows[0].shape[1]
        logits = [denoiser(tokens, block_length=length).logits[:, :-1] for tokens in rows]
        is_open = not torch.equal(*logits)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # of masks in transformers
        reason = f"it takes no mask of pairs of tokens ({error})"
        is_open = False
    if not is_open:
        raise ValueError(
            f'`attention` must be "causal" for a {type(model).__name__}, which cannot be read in blocks: {reason}.'
        )


def choose_attention(denoiser: Any, accelerator: Any, length: int):
    """Let a language model attend in the way that trains rows of `length` tokens fastest, in place.

    On a CPU the fused attention of torch takes longer in bfloat16 than plain products do, until their scores, of each
    pair of tokens, are what takes most.
    """
    on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    if isinstance(denoiser, LanguageModelDenoiser) and on_cpu and length <= EAGER_LENGTH:
        denoiser.language_model.set_attn_implementation("eager")


# Writing


def writing_defaults(denoiser: Any, kind: str | None, name: str | None, length: int) -> Any:
    """Settings with which a pipeline that was trained writes best; `None` where nothing says that.

    Trained for minutes or hours, a model writes best from the left, token by token: under much noise it knows little
    more than the frequencies of tokens, and there always is a past to go on from.

    Args:
        kind: of the model that training began with, see `kind_of_model`.
        name: of that model.
        length: tokens of a training row.
    """
    reading = getattr(denoiser, "reading", Reading())
    if kind in ("pipeline", "language_pipeline") and name is not None:
        index = saved_pipeline(name)
        if kind == "pipeline" or index is None or writes_as_saved(reading, name):
            return (index or {}).get("generation_defaults")
    if reading == Reading():
        return None
    num_tokens = min(length, DEFAULT_NEW_TOKENS)
    return {
        "max_new_tokens": num_tokens,
        "num_inference_steps": reading.block_length or num_tokens,
        **WRITING_SHAPE,
    }


def writes_as_saved(reading: Reading, name: str) -> bool:
    """Whether as many tokens are written together, and see each other alike, as in the saved pipeline `name`."""
    saved = Reading(**saved_reading(name))
    return (reading.attention, reading.block_length) == (saved.attention, saved.block_length)


# Denoisers


def training_denoiser(model: Any, tokenizer: Any) -> Any:
    """A language model as a denoiser; a masked LM may also predict an unknown word, which texts may hold."""
    if not is_language_model(model):
        return model
    but = (tokenizer.unk_token_id,) if is_masked_lm(model) else ()
    return LanguageModelDenoiser(model, ids_never_predicted(model, tokenizer, but))


def fresh_copy(denoiser: Any) -> Any:
    """A denoiser of the same configuration, with random weights, on the CPU."""
    architecture = (
        LanguageModelDenoiser
        if isinstance(denoiser, LanguageModelDenoiser)
        else TextTransformerModel
    )
    return architecture.from_config(denoiser.config)


def plain_model(denoiser: Any) -> Any:
    """The model for a pipeline: the language model itself, where training has a denoiser around it."""
    return denoiser.language_model if isinstance(denoiser, LanguageModelDenoiser) else denoiser
