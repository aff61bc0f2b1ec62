"""Tokenizers: a byte-level BPE trained on texts, and what diffusion over tokens needs of any other."""

import logging
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

EOS_TOKEN = "[EOS]"
PAD_TOKEN = "[PAD]"
MASK_TOKEN = "[MASK]"
# At least the 256 bytes and some merges; at most what 16 bits can number
VOCABULARY_LIMITS = (300, 65_536)
# Bytes of a word, such as a line without spaces, that are merged together in training, which takes time in proportion
# to the square of a word's length
LONGEST_WORD = 1_024

# How many texts are looked at for tokens that a tokenizer does not know, how much of each, and their largest share
LOOKED_AT_TEXTS = 1_000
LOOKED_AT_CHARACTERS = 1_000
LARGEST_UNKNOWN_SHARE = 0.5
# Marks of a space, or of a word's inside, which tokenizers put before the letters of a token
WORD_MARKS = "\u2581\u0120# "


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
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.FixedLength(LONGEST_WORD)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words  # texts are read with their words whole
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


def unknown_share(tokenizer: Any, texts: Iterable[str]) -> float:
    """Share of the first `LOOKED_AT_TEXTS` texts, in tokens, that a tokenizer does not know; 0 for one of bytes.

    A character that some tokenizers leave out, where others write the unknown token, counts as a token.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> from text_diffusers.data.tokenizers import unknown_share
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "tea": 1}, unk_token="[UNK]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> unknown_share(tokenizer, ["tea", "чай"])
        0.5
    """
    num_tokens = 0
    num_unknown = 0
    for text in islice(texts, LOOKED_AT_TEXTS):
        text = text[:LOOKED_AT_CHARACTERS]
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=tokenizer.is_fast,
        )
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])

        # A space is known in any script, so that a token of nothing else says nothing of the words.
        unknown = tokens.count(tokenizer.unk_token)
        known = sum(
            token != tokenizer.unk_token and token.strip(WORD_MARKS) != "" for token in tokens
        )
        left_out = characters_left_out(text, encoded["offset_mapping"]) if tokenizer.is_fast else 0
        num_unknown += unknown + left_out
        num_tokens += unknown + left_out + known
    return num_unknown / max(1, num_tokens)


def characters_left_out(text: str, spans: list[tuple[int, int]]) -> int:
    """Letters, digits and signs of a text outside the spans of its tokens."""
    gaps = []
    end = 0
    for first, last in spans:
        gaps.append(text[end:first])
        end = max(end, last)
    gaps.append(text[end:])

    # Spaces, controls and accents may be meant to be left out.
    return sum(unicodedata.category(character)[0] not in "ZCM" for character in "".join(gaps))


def check_script(tokenizer: Any, texts: Iterable[str]):
    """Warn of tokens that a tokenizer does not know, as in texts of another script than those it was made for.

    Raises:
        ValueError: if they are more than half of all, of which a model would learn nothing.
    """
    share = unknown_share(tokenizer, texts)
    if share == 0:
        return

    known_as = f"{100 * share:.2g}% of the tokens of these texts are unknown to it"
    if share > LARGEST_UNKNOWN_SHARE:
        raise ValueError(
            f"`tokenizer` must know the script of the texts: {known_as}; at most "
            f"{LARGEST_UNKNOWN_SHARE:.0%} may be. Take one that was made for such texts."
        )
    logger.warning(f"`tokenizer` does not know all of the texts: {known_as}, and are lost.")
