"""Small masked LMs of transformers with random weights, and tokenizers of their kinds trained on a few sentences."""

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AddedToken, AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

SENTENCES = [
    "Paris is the capital of France.",
    "The cat sat on the mat and looked at the dog.",
    "A bird sang in the tree while the cat slept.",
    "She was late for the train and ran all the way.",
]
BERT_KIND = ("bert", "modernbert", "electra", "distilbert")


def wordpiece_tokenizer(vocab_size=120):
    """As BERT's: padding has the first id, a text stands between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def byte_level_tokenizer(vocab_size=300):
    """As RoBERTa's: padding has id 1, a text stands between <s> and </s>, the mask takes in the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=special[-1], **names)


def make_masked_lm(model_type, tokenizer=None, extra_ids=3, **changes):
    """`(model, tokenizer)`; the vocabulary has a few more ids than the tokenizer, as published ones often do."""
    if tokenizer is None:
        tokenizer = wordpiece_tokenizer() if model_type in BERT_KIND else byte_level_tokenizer()
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    if model_type == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    ids |= {
        name: getattr(tokenizer, name)
        for name in ("cls_token_id", "sep_token_id")
        if model_type == "modernbert"
    }
    settings = (
        {"vocab_size": len(tokenizer) + extra_ids, "max_position_embeddings": 64} | sizes | ids
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **settings | changes))
    for parameter in model.parameters():  # predictions that differ from token to token
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), tokenizer
