"""Stand-ins for the repositories of the Hub that the pages open: small checkpoints in the same layouts."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from support.language_models import chat_pipe, make_language_model, word_tokenizer
from support.latent_models import decoder_config, encoder_config
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior
from support.masked_lms import make_masked_lm
from support.published_checkpoints import (
    GOLDEN,
    copy_checkpoint,
    golden_tensors,
    numbered_tokenizer,
)
from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.hub import load_denoiser, load_published_pipeline

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
LORA = "runs/llada_lora"


@dataclass
class StandIn:
    """A small checkpoint in the place of a repository.

    Attributes:
        family: the golden checkpoint of its layout.
        changes: of its configuration.
        num_tokens: of its tokenizer; without one it has none.
        tokens: names of tokens by their ids.
    """

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    num_tokens: int | None = None
    tokens: dict[int, str] = field(default_factory=dict)


# The end of a text is the first of the named tokens.
STAND_INS = {
    "GSAI-ML/LLaDA-8B-Instruct": StandIn(
        "llada",
        {"max_sequence_length": 1024},
        95,
        {88: "<|endoftext|>", 89: "<|eot_id|>", 90: "<|mdm_mask|>"},
    ),
    "Dream-org/Dream-v0-Instruct-7B": StandIn(
        "dream", {}, 94, {85: "<|endoftext|>", 89: "<|im_end|>", 90: "<|mask|>"}
    ),
    "JetLM/SDAR-1.7B-Chat": StandIn(
        "sdar", {}, 94, {84: "<|im_end|>", 85: "<|endoftext|>", 90: "<|MASK|>"}
    ),
    "kuleshov-group/mdlm-owt": StandIn("mdlm"),
}
GPT2 = "openai-community/gpt2"

# Language models that know nothing of diffusion, to adapt
CAUSAL_LMS = (
    "gpt2",
    "data/models/smollm2",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct",
)
ENCODERS = ("data/models/minilm", "data/models/e5_small", "sentence-transformers/all-MiniLM-L6-v2")

# Pipelines of language models that were adapted: to conversations, and to texts with labels
ADAPTED = "runs/adapt"
LABELLED = "runs/styles"

# Pipelines over latents: of texts with labels, and of replies, by diffusion and by a Gaussian prior
LATENTS = "runs/latent"
LATENTS_OF_REPLIES = "runs/latent_replies"
GAUSSIAN_REPLIES = "runs/latent_replies_cvae"
# Tokens of a text and of a source that their language models take
LATENT_ROWS = 256


def put_stand_ins(code: str, folder: Path):
    """Make a folder of each repository that a block names, and what else it opens of published models."""
    for name, stand_in in STAND_INS.items():
        if is_named(name, code):
            put_stand_in(stand_in, folder / name)
    if is_named(GPT2, code):
        words_tokenizer(90, {89: "<|endoftext|>"}).save_pretrained(folder / GPT2)
    for name in CAUSAL_LMS:
        if is_named(name, code):
            make_language_model(model_type="gpt2").save_pretrained(folder / name)
            word_tokenizer().save_pretrained(folder / name)
    for name in ENCODERS:
        if is_named(name, code):
            for part in make_masked_lm("bert"):
                part.save_pretrained(folder / name)
    if is_named(LORA, code):
        put_adapter(folder / LORA)
    if is_named(ADAPTED, code):
        adapted_pipe().save_pretrained(folder / ADAPTED)
    if is_named(LABELLED, code):
        labelled_pipe().save_pretrained(folder / LABELLED)
    for name, make in LATENT_PIPES.items():
        if is_named(name, code):
            make().save_pretrained(folder / name)


def is_named(name: str, code: str) -> bool:
    return re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/.-])", code) is not None


def put_stand_in(stand_in: StandIn, folder: Path):
    config = json.loads((GOLDEN / stand_in.family / "config.json").read_text())
    copy_checkpoint(stand_in.family, folder, config | stand_in.changes)
    if stand_in.num_tokens is not None:
        words_tokenizer(stand_in.num_tokens, stand_in.tokens).save_pretrained(folder)


def words_tokenizer(num_tokens: int, tokens: dict[int, str]) -> Any:
    """A tokenizer of numbered words with a chat template, which does not say what its mask is."""
    end = next(iter(tokens.values()))
    names = {"eos_token": end, "pad_token": end, "bos_token": end}
    tokenizer = numbered_tokenizer(num_tokens, tokens, **names)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def put_adapter(folder: Path):
    """An adapter of LLaDA that does something, as peft writes it."""
    model = load_denoiser(GOLDEN / "llada").language_model
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


def adapted_pipe() -> Any:
    """A pipeline with what is saved of a causal LM that was trained to write in blocks."""
    tokenizer = word_tokenizer()
    scheduler = ConfidenceScheduler(tokenizer.mask_token_id, order="left_to_right")
    pipe = chat_pipe(attention="block", past="causal", alignment="shifted", scheduler=scheduler)
    pipe.generation_defaults = {
        "max_new_tokens": 16,
        "num_inference_steps": 4,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    return pipe


def labelled_pipe() -> Any:
    """A pipeline of a bidirectional model that is shown one of two labels before a text."""
    pipe = chat_pipe()
    names = {"label_names": ["chat", "novel"], "label_prompts": ["w7", "w8"]}
    defaults = {"max_new_tokens": 16, "num_inference_steps": 16}
    return TextDiffusionPipeline(**pipe.components, **names, generation_defaults=defaults)


def latent_pipe(denoiser: Any, **changes: Any) -> Any:
    """A pipeline over latents with what the recipe saves; `changes` are those of the autoencoder."""
    texts = [
        "the cat sat on the mat and looked at the dog",
        "she was late for a train and ran home",
    ]
    tokenizer = train_tokenizer(texts * 9, vocab_size=300)
    longest = {"max_position_embeddings": LATENT_ROWS}
    parts = {
        "encoder_config": encoder_config(len(tokenizer), **longest),
        "decoder_config": decoder_config("llama", len(tokenizer), **longest),
    }
    pipe = make_latent_pipe(tokenizer, denoiser, **parts | changes)
    steps = {} if pipe.scheduler is None else {"num_inference_steps": 10}
    pipe.generation_defaults = {"max_new_tokens": 16} | steps
    return pipe


def latents_of_labels() -> Any:
    """One that is told one of two labels by their names."""
    pipe = latent_pipe(make_latent_denoiser(num_classes=2, prompt_size=None))
    pipe.register_to_config(label_names=["negative", "positive"])
    return pipe


# Each as it is saved by the recipe with other options
LATENT_PIPES = {
    LATENTS: latents_of_labels,
    LATENTS_OF_REPLIES: lambda: latent_pipe(make_latent_denoiser(), reads_source=True),
    GAUSSIAN_REPLIES: lambda: latent_pipe(make_latent_prior(), reads_source=True),
}


# What is refused


def refused_checkpoints() -> list[Any]:
    """Functions without arguments, each of which should raise an error that the page of published models quotes."""
    config = json.loads((GOLDEN / "llada/config.json").read_text())
    tensors = golden_tensors("llada")
    first = next(iter(tensors))
    without_first = {name: tensor for name, tensor in tensors.items() if name != first}
    without_base = {key: value for key, value in config.items() if key != "rope_theta"}
    causal = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    pipe = chat_pipe()
    by_prompt = chat_pipe()
    by_prompt.tokenizer.chat_template = None
    turn = {"role": "user", "content": "w7"}

    def load(number, config=config, tensors=tensors):
        folder = Path(f"refused_{number}")
        return lambda: load_denoiser(copy_checkpoint("llada", folder, config, tensors))

    def load_pickle():
        folder = Path("pickle")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(tensors, folder / "pytorch_model.bin")
        load_denoiser(folder)

    def load_without_tokenizer():
        load_published_pipeline(copy_checkpoint("mdlm", Path("no_tokenizer")))

    return [
        load(1, config | {"logit_softcap": 30.0}),
        load(2, config | {"alibi": True}),
        load(3, without_base),
        load(4, config, without_first),
        load(5, config, tensors | {"extra": torch.zeros(2)}),
        load(6, config | {"mlp_hidden_size": 64}),
        load_pickle,
        load_without_tokenizer,
        load(7, config | {"model_type": "another"}),
        load(8, causal),
        lambda: pipe("w7", approximate_cache="dual"),
        lambda: by_prompt(messages=[turn]),
    ]


def refused_latents() -> list[Any]:
    """Functions without arguments, each of which should raise an error that the page of latent diffusion quotes."""
    labelled, _, by_prior = (make() for make in LATENT_PIPES.values())
    plain = latent_pipe(make_latent_denoiser(prompt_size=None))
    of_sources = latent_pipe(make_latent_denoiser())
    of_tokens = latent_pipe(make_latent_denoiser(prompt_size=None))
    of_tokens.scheduler = D3PMAbsorbingScheduler(mask_token_id=0)
    drawn = torch.zeros(1, 2, 4)

    return [
        lambda: plain(source="the cat"),
        lambda: plain(class_labels=1),
        lambda: plain(guidance_scale=2.0),
        lambda: labelled(class_labels=1, latents=plain.encode("the cat")),
        lambda: plain(latents=drawn),
        lambda: plain(decode_strategy="greedy", temperature=0.7),
        lambda: of_sources(source="the cat " * LATENT_ROWS),
        lambda: of_tokens(),
        lambda: type(by_prior)(**by_prior.components | {"scheduler": plain.scheduler}),
    ]
