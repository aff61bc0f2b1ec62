"""Other vocabularies for pretrained models: the tokens that the texts need, or new ones of the texts' own.

Most of a small multilingual model is its vocabulary. Pruned, it keeps the tokens of the texts, its vectors of these
tokens, and so its logits on them. With a new tokenizer each token begins as the mean of the vectors of the old tokens
that spell it (Fast Vocabulary Transfer, https://arxiv.org/abs/2402.09977).

Shapes: V vocabulary size before, W after, D width.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import end_ids
from text_diffusers.data.rows import each_encoded
from text_diffusers.models.language.calls import first_position
from text_diffusers.models.reading import Reading, read_config, write_reading

# Tokens that texts hold less often are spelt by others.
FEWEST_OCCURRENCES = 3

MARKS = ("##", "\u2581", "\u0120")  # of a word's inside or its beginning


# Pruning


def pruned_tokenizer(tokenizer: Any, texts: Iterable[str]) -> Any:
    """A tokenizer with the tokens that texts need, and with those that spell all that it could spell before.

    The tokens of the texts are the same, but for those that occur once or twice, which are spelt by shorter ones.

    Args:
        tokenizer: a fast one, of WordPiece, BPE or Unigram; it stays as it is.

    Raises:
        ValueError: if it is of another kind.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.training.adaptation.vocabulary import pruned_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> pruned = pruned_tokenizer(tokenizer, ["the cat"] * 3)
        >>> len(pruned) < len(tokenizer), pruned.decode(pruned("the cat").input_ids)
        (True, 'the cat')
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("`prune_vocabulary` needs a fast tokenizer, whose tokens can be listed.")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = description["model"]["type"]
    prune = {"WordPiece": prune_words, "BPE": prune_merges, "Unigram": prune_pieces}.get(kind)
    if prune is None:
        raise ValueError(
            f"`prune_vocabulary` needs a tokenizer of WordPiece, BPE or Unigram, got one of {kind}."
        )

    # 1. The tokens of the texts, and those that mean something by their name
    counts: Counter[int] = Counter()
    for ids in each_encoded(tokenizer, texts):
        counts.update(ids)
    needed = {token for token, count in counts.items() if count >= FEWEST_OCCURRENCES}
    needed |= set(tokenizer.all_special_ids)
    needed |= {token["id"] for token in description["added_tokens"]}

    # 2. The same tokenizer with fewer of them, numbered anew in their order
    names = {token: tokenizer.convert_ids_to_tokens(token) for token in needed}
    vocabulary = prune(description["model"], set(names.values()))
    renumber(description, vocabulary)
    return with_backend(tokenizer, Tokenizer.from_str(json.dumps(description)))


def prune_words(model: dict[str, Any], kept: set[str]) -> dict[str, int]:
    """Keep words, and single characters, of a WordPiece in place; returns the new ids."""
    prefix = model["continuing_subword_prefix"]
    alphabet = {word for word in model["vocab"] if len(word.removeprefix(prefix)) == 1}
    return numbered(model, kept | alphabet | {model["unk_token"]})


def prune_merges(model: dict[str, Any], kept: set[str]) -> dict[str, int]:
    """Keep tokens, those that they are merged from, and the alphabet, of a BPE in place; returns the new ids."""
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    # Not all of an alphabet are single characters: it has bytes by name, and letters with the mark of a word's end.
    results = {left + right for left, right in merges}
    kept = kept | {token for token in model["vocab"] if len(token) == 1 or token not in results}

    # From the last merge to the first: a token needs both of its parts, however they came to be.
    for left, right in reversed(merges):
        if left + right in kept:
            kept |= {left, right}
    model["merges"] = [
        [left, right] for left, right in merges if {left, right, left + right} <= kept
    ]
    return numbered(model, kept)


def numbered(model: dict[str, Any], kept: set[str]) -> dict[str, int]:
    """Cut a vocabulary with ids down to `kept`, in place, and number it anew in the same order."""
    order = sorted(kept & model["vocab"].keys(), key=model["vocab"].__getitem__)
    model["vocab"] = {token: index for index, token in enumerate(order)}
    return model["vocab"]


def prune_pieces(model: dict[str, Any], kept: set[str]) -> dict[str, int]:
    """Keep pieces, and single characters, of a Unigram model in place; returns the new ids."""
    unknown = model["vocab"][model["unk_id"]][0]
    pieces = [
        [piece, score]
        for piece, score in model["vocab"]
        if piece in kept or len(piece) == 1 or piece == unknown or piece.startswith("<0x")
    ]
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    model["vocab"] = pieces
    model["unk_id"] = vocabulary[unknown]
    return vocabulary


def renumber(description: dict[str, Any], vocabulary: dict[str, int]):
    """Give the new ids to all parts of a tokenizer that name tokens by their id, in place."""
    # Tokens that were added are no part of the model's own vocabulary, and stand behind it.
    for token in sorted(description["added_tokens"], key=lambda token: token["id"]):
        token["id"] = vocabulary.setdefault(token["content"], len(vocabulary))
    renumber_ends(description["post_processor"], vocabulary)


def renumber_ends(part: dict[str, Any] | None, vocabulary: dict[str, int]):
    """Give the new ids to what puts tokens around a text, in place."""
    if part is None:
        return
    for processor in part.get("processors", []):
        renumber_ends(processor, vocabulary)
    if part["type"] == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [vocabulary[name] for name in token["tokens"]]
    elif part["type"] in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            part[end] = [part[end][0], vocabulary[part[end][0]]]


def with_backend(tokenizer: Any, backend: Tokenizer) -> Any:
    """A tokenizer of transformers with the special tokens and settings of another, around `backend`."""
    names = {
        name: getattr(tokenizer, name)
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        for name in (f"{name}_token",)
        if getattr(tokenizer, name) is not None
    }
    copy = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        padding_side=tokenizer.padding_side,
        # Those without a role too, such as the ends of turns: nobody may write them by their names.
        additional_special_tokens=[
            token for token in tokenizer.all_special_tokens if token not in names.values()
        ],
        **names,
    )
    copy.chat_template = tokenizer.chat_template
    return copy


# Vectors


def spellings(old: Any, new: Any) -> list[list[int]]:
    """The tokens of one tokenizer by those of another: the same where it has it, or those that spell its text.

    Returns:
        W lists of ids of `old`; empty where it has nothing for a token.
    """
    vocabulary = old.get_vocab()
    unknown = old.unk_token_id
    roles = special_roles(old, new)

    spelt: list[list[int]] = []
    same_kind = kind_of_marks(old) == kind_of_marks(new)
    for token in range(len(new)):
        name = new.convert_ids_to_tokens(token)
        if token in roles:
            spelt.append([roles[token]])
        elif same_kind and name in vocabulary:
            spelt.append([vocabulary[name]])
        else:
            ids = spelling(old, new.decode([token]), vocabulary)
            spelt.append([id for id in ids if id != unknown])
    return spelt


def special_roles(old: Any, new: Any) -> dict[int, int]:
    """Ids of the special tokens of `new`, and those with the same role in `old`."""
    # A tokenizer may name an end by either of two roles.
    roles = {"pad": ("pad",), "mask": ("mask",), "unk": ("unk",)}
    roles |= {"bos": ("bos", "cls"), "cls": ("cls", "bos")}
    roles |= {"eos": ("eos", "sep"), "sep": ("sep", "eos")}

    found: dict[int, int] = {}
    for role, candidates in roles.items():
        token = getattr(new, f"{role}_token_id")
        ids = [getattr(old, f"{name}_token_id") for name in candidates]
        known = [id for id in ids if id is not None]
        if token is not None and known:
            found[token] = known[0]
    return found


def kind_of_marks(tokenizer: Any) -> str | None:
    """The mark by which the names of tokens tell the beginning of a word from its inside: that of the most names.

    A vocabulary of many languages holds the marks of other kinds as pieces of text, too.
    """
    names = list(tokenizer.get_vocab())
    counts = {mark: sum(name.startswith(mark) for name in names) for mark in MARKS}
    mark = max(MARKS, key=counts.__getitem__)
    return mark if counts[mark] else None


def spelling(old: Any, text: str, vocabulary: dict[str, int]) -> list[int]:
    """The ids of a piece of text; the piece may begin inside of a word.

    Args:
        vocabulary: of `old`, which takes long to be listed.
    """
    stripped = text.strip()
    if not stripped or "\ufffd" in stripped:
        return []
    (ids,) = encode_plain(old, [stripped])
    # A word's inside has other tokens in a WordPiece.
    begins_word = text[0].isspace() or not stripped[0].isalnum()
    inside = f"##{old.convert_ids_to_tokens(ids[0])}" if ids else ""
    if not begins_word and stripped[0].islower() and inside in vocabulary:
        ids = [vocabulary[inside], *ids[1:]]
    return ids


@torch.no_grad()
def transferred(table: Tensor, spelt: list[list[int]]) -> Tensor:
    """(W, ...) vectors or biases of new tokens: the means of those in `table` (V, ...) that spell them.

    A token that nothing spells begins as the mean of all.

    Example:
        >>> import torch
        >>> from text_diffusers.training.adaptation.vocabulary import transferred
        >>> transferred(torch.tensor([[1.0], [3.0]]), [[1], [0, 1], []]).tolist()
        [[3.0], [2.0], [2.0]]
    """
    mean = table.mean(dim=0)
    rows = [table[ids].mean(dim=0) if ids else mean for ids in spelt]
    return torch.stack(rows)


def transfer_vocabulary(model: Any, old: Any, new: Any):
    """Give a language model the vectors of another tokenizer's tokens, and their ids where it has some, in place.

    Raises:
        ValueError: if it counts positions from the id of its padding, and that is another one in the new vocabulary.
    """
    counts_from_padding = first_position(model) > 0
    if counts_from_padding and old.pad_token_id != new.pad_token_id:
        raise ValueError(
            f"`retrain_tokenizer` must be left out for a {type(model).__name__}, which counts positions from the "
            f"id of its padding, {old.pad_token_id}, got a tokenizer whose padding is {new.pad_token_id}; "
            "`prune_vocabulary` can be used."
        )
    spelt = spellings(old, new)
    # Its ids may be none of the new vocabulary, and are read before that is there.
    reading = read_config(model.config)
    embeddings = model.get_input_embeddings()
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is embeddings.weight
    vectors = transferred(embeddings.weight.detach(), spelt)
    output_vectors = None
    if head is not None and not is_tied:
        output_vectors = transferred(head.weight.detach(), spelt)
    bias = getattr(head, "bias", None)
    output_bias = None if bias is None else transferred(bias.detach(), spelt)

    # transformers resizes all that belongs to a vocabulary, and ties what was tied.
    model.resize_token_embeddings(len(spelt), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(vectors)
        head = model.get_output_embeddings()
        if output_vectors is not None:
            head.weight.copy_(output_vectors)
        if output_bias is not None:
            head.bias.copy_(output_bias)
    for config in (model.config, getattr(model, "generation_config", None)):
        for role in ("pad", "bos", "eos", "cls", "sep"):
            if hasattr(config, f"{role}_token_id"):
                setattr(config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
    if reading is not None:
        write_reading(model.config, transferred_reading(reading, old, new))


def transferred_reading(reading: Reading, old: Any, new: Any) -> Reading:
    """A reading with the ids of another tokenizer: of its mask, and of the ends that have their name or role there."""
    vocabulary = new.get_vocab()
    by_role = {old_id: new_id for new_id, old_id in special_roles(old, new).items()}
    ends = []
    for token in reading.end_token_ids:
        name = old.convert_ids_to_tokens(token)
        ends.append(vocabulary.get(name, by_role.get(token)))
    known_ends = [token for token in dict.fromkeys(ends) if token is not None]

    # A model that writes where its texts end goes on to.
    if reading.end_token_ids and not known_ends:
        known_ends = end_ids(new)
    return replace(reading, mask_token_id=new.mask_token_id, end_token_ids=known_ends)
