"""Rows for two tokenizers: the encoder reads the text that the decoder writes."""

from datasets import Dataset
from support.language_models import word_tokenizer

from text_diffusers.data.latent_rows import with_encoder_columns
from text_diffusers.data.rows import tokenize


def test_both_tokenizers_have_the_same_text_also_where_it_is_cut(tokenizer):
    texts = [
        "the cat sat on the mat",
        "the dog and the cat and the dog and the cat and the dog",
        "a",
    ]
    rows = tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=12, packing=False)
    other = word_tokenizer()
    # Words that the other tokenizer has one by one, and all others as one unknown word
    both = with_encoder_columns(rows, tokenizer, tokenizer, length=8)
    for row in both:
        real = row["input_ids"][: sum(row["attention_mask"])]
        text = tokenizer.decode(real, skip_special_tokens=True)
        read = row["encoder_ids"][: sum(row["encoder_mask"])]
        assert len(row["encoder_ids"]) == len(row["encoder_mask"]) == 8
        assert text.startswith(tokenizer.decode(read[:-1], skip_special_tokens=True))
        assert set(row["encoder_ids"][len(read) :]) <= {tokenizer.pad_token_id}
    assert both.remove_columns(["encoder_ids", "encoder_mask"])[:] == rows[:]

    short = with_encoder_columns(rows, tokenizer, other, length=30)
    lengths = [sum(mask) for mask in short["encoder_mask"]]
    cut_text = tokenizer.decode(rows[1]["input_ids"], skip_special_tokens=True)
    assert lengths == [6, len(cut_text.split()), 1] and cut_text != texts[1]
