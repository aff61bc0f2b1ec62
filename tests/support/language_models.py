"""Small language models of transformers with random weights, read as diffusion models, and a tokenizer for chat."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.models import Reading, write_reading

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|mask|>", "<|pad|>", "<|end|>", "<|eot|>", "<|user|>", "<|assistant|>")


def word_tokenizer(num_words=40, special=SPECIAL, template=TEMPLATE, **names):
    """A tokenizer whose words are "w6", "w7", ..., by their ids, behind the special tokens."""
    words = [*special, *(f"w{index}" for index in range(len(special), num_words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not names:
        names = {"mask_token": "<|mask|>", "pad_token": "<|pad|>", "eos_token": "<|end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[word for word in special if word not in names.values()],
        chat_template=template,
        model_max_length=64,
        **names,
    )


def make_language_model(
    model_type="llama", reading=None, vocab_size=44, max_length=64, seed=0, **changes
):
    """A causal LM with random weights that says how it is read."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": max_length,
    }
    if model_type == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": max_length}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(
        model_type, **({"vocab_size": vocab_size} | ids | sizes | changes)
    )
    if reading is not None:
        write_reading(config, reading)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # predictions that differ from token to token
        if "norm" not in name and "ln_" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def chat_pipe(model_type="llama", attention="bidirectional", scheduler=None, **changes):
    """A pipeline that can chat, with a confidence scheduler that draws nothing at random."""
    tokenizer = word_tokenizer()
    mask = tokenizer.mask_token_id
    entries = {"mask_token_id": mask, "end_token_ids": [2, 3], "attention": attention}
    if attention == "block":
        entries["block_length"] = 4
    others = ("alignment", "block_length", "past")
    entries |= {key: changes.pop(key) for key in others if key in changes}
    model = make_language_model(model_type, Reading(**entries), **changes)
    scheduler = scheduler or ConfidenceScheduler(mask, temperature=0.0)
    pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
