"""Texts of one token a character, and a pipeline that knows nothing of them."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.oracles import TableDenoiser
from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline


def character_tokenizer(characters, **special):
    vocabulary = {
        character: i for i, character in enumerate([*characters, *special.values(), "[MASK]"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special)


class Ignorant(TableDenoiser):
    """All tokens but the mask are equally likely, whatever it is shown: each costs log(V - 1)."""

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        return type(
            "Output", (), {"logits": torch.zeros(int(positions.sum()), self.config.vocab_size)}
        )()


def ignorant_pipe(tokenizer, lengths=None):
    mask = tokenizer.mask_token_id
    return TextDiffusionPipeline(
        tokenizer, Ignorant(None, mask + 1), D3PMAbsorbingScheduler(mask), lengths
    )
