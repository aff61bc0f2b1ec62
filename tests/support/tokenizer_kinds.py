"""Tokenizers of the kinds that people bring: of words, pieces of words and bytes, with and without special tokens."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from support.masked_lms import byte_level_tokenizer, wordpiece_tokenizer
from text_diffusers.data.tokenizers import train_tokenizer

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a bird sang in the tree while the cat slept",
    "Paris is the capital of France, and I am here.",
]
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[EOS]", "mask_token": "[MASK]"}


class SlowTokenizer(PreTrainedTokenizer):
    """Single characters, in Python."""

    def __init__(self, **kwargs):
        self.characters = {letter: place for place, letter in enumerate("abcdefghijklmnop [].")}
        super().__init__(**SPECIAL | kwargs)

    @property
    def vocab_size(self):
        return len(self.characters)

    def get_vocab(self):
        return self.characters | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.characters.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index):
        return list(self.characters)[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def word_tokenizer(splits_marks=True):
    """Whole words; without `splits_marks` "[EOS]" is a word, so that it cannot be taken for five characters."""
    words = dict.fromkeys(word for text in TEXTS for word in text.split())
    vocabulary = {word: place for place, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Whitespace() if splits_marks else pre_tokenizers.WhitespaceSplit()
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def cased_wordpiece_tokenizer():
    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer


def llama_tokenizer(prepend_scheme=None):
    """As Llama's: blanks are part of the words, and unknown characters bytes; nothing fills rows up."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend_scheme is None:
        # The older ones put a blank before every part.
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(blanks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=prepend_scheme, split=False
        )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*special, *[f"<0x{byte:02X}>" for byte in range(256)]],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def gpt2_tokenizer():
    """As GPT-2's, with a mask: one special token for everything, and nothing that fills rows up."""
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    names = {"unk_token": end, "bos_token": end, "eos_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


TOKENIZERS = {
    "ours": lambda: train_tokenizer(TEXTS * 9, vocab_size=310),
    "words": word_tokenizer,
    "uncased": wordpiece_tokenizer,
    "cased": cased_wordpiece_tokenizer,
    "roberta": byte_level_tokenizer,
    "llama": llama_tokenizer,
    "metaspace": lambda: llama_tokenizer("first"),
    "gpt2": gpt2_tokenizer,
    "slow": SlowTokenizer,
}
