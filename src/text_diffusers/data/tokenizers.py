"""Tokenizers: a byte-level BPE trained on texts, and the special tokens that diffusion over tokens needs."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

EOS_TOKEN = "[EOS]"
PAD_TOKEN = "[PAD]"
MASK_TOKEN = "[MASK]"
# At least the 256 bytes and some merges; at most what 16 bits can number
VOCABULARY_LIMITS = (300, 65_536)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens of data, `[EOS]` among them, then `[PAD]` and `[MASK]`.

    `[EOS]` separates documents, so it is also the token a text begins after (`bos_token`). Padding and mask have the
    last two ids: the first `vocab_size` are what text consists of. `[MASK]` takes in the space before it.

    Raises:
        ValueError: if `vocab_size` is outside its limits, or the texts are too few for it.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id
        (302, 0, 300, 301)
    """
    low, high = VOCABULARY_LIMITS
    if not low <= vocab_size <= high:
        raise ValueError(f"`vocab_size` must be between {low} and {high}, got {vocab_size}.")

    # Bytes are the alphabet, so that every text can be written.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"`vocab_size` must be at most {tokenizer.get_vocab_size()} for this text, which has no more repeated "
            f"pairs to merge; got {vocab_size}."
        )

    # Added after the training, so that they have the last ids.
    mask = AddedToken(MASK_TOKEN, lstrip=True, special=True)
    tokenizer.add_special_tokens([PAD_TOKEN, mask])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=mask,
        clean_up_tokenization_spaces=False,
    )


def add_missing_tokens(tokenizer: Any) -> Any:
    """Add tokens for padding and mask behind a tokenizer's own, if it lacks them, as GPT-2's does; returns it."""
    # Others stay as they are: the ids of a pretrained model must keep their meaning.
    needed = {"pad_token": PAD_TOKEN, "mask_token": MASK_TOKEN}
    missing = {name: token for name, token in needed.items() if getattr(tokenizer, name) is None}
    if missing:
        tokenizer.add_special_tokens(missing)
        print(f"added to the tokenizer: {', '.join(missing.values())}")
    return tokenizer
