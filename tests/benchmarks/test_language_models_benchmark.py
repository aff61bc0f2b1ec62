"""The benchmark of language models measures what it says, and its small model learns to answer."""

import language_models
import pytest
import torch
from parts.language_models import heads, writing
from parts.language_models.heads import HeadSize
from parts.language_models.models import (
    ModelSize,
    conversation_of,
    encode_turns,
    masked_loss,
    random_pipe,
    train,
)

pytestmark = pytest.mark.slow

TINY = ModelSize(width=16, layers=1, heads=2, length=96, vocab_size=100)


@pytest.fixture(scope="module")
def trained():
    return train(0.005, 3, size=ModelSize(width=16, layers=1, heads=2, length=128, vocab_size=400))


@pytest.mark.parametrize("model_type", heads.ARCHITECTURES)
def test_every_architecture_of_the_table_can_be_built(model_type):
    size = HeadSize(vocab_size=50, length=8, width=16, layers=1, heads=2)
    model = heads.toy_model(model_type, size)
    assert model.get_output_embeddings().weight.shape == (50, 16)


def test_equal_tokens_leave_out_padding_behind_both_texts():
    pipe = random_pipe(TINY)
    first, second = writing.Writer(pipe), writing.Writer(pipe)
    pad = pipe.tokenizer.pad_token_id
    first.rows = [torch.tensor([5, 6, 7, pad]), torch.tensor([5, pad])]
    second.rows = [torch.tensor([5, 9, pad]), torch.tensor([5, pad])]
    # Of 5 6 7 beside 5 9 one token of three is equal, and of 5 beside 5 one of one.
    assert first.share_equal_to(second) == pytest.approx(2 / 4)


def test_replies_are_learned_with_their_filling_and_questions_are_not(trained):
    tokenizer = trained.pipe.tokenizer
    question, reply = encode_turns(tokenizer, trained.turns)[0]
    row = tokenizer.apply_chat_template(
        conversation_of(trained.turns[0]), tokenize=True, return_dict=False
    )
    assert question == row and len(reply) == 36 and reply[-1] == tokenizer.eos_token_id

    seen = []

    def flat(tokens, attention_mask, positions):
        seen.append((tokens, positions))
        return type("Output", (), {"logits": torch.zeros(int(positions.sum()), len(tokenizer))})

    loss = masked_loss(flat, tokenizer, [(question, reply)] * 8, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(torch.tensor(float(len(tokenizer))).log().item())
    tokens, positions = seen[0]
    assert tokens[0, : len(question)].tolist() == question
    assert torch.equal(tokens == tokenizer.mask_token_id, positions)
    # Shares of masks are spread over the rows.
    counts = positions.sum(dim=1).tolist()
    assert counts[0] < 12 and counts[-1] > 24


def test_the_command_prints_every_part(trained, capsys, monkeypatch):
    monkeypatch.setattr(language_models, "train", lambda minutes, num_turns: trained)
    monkeypatch.setattr(heads, "ARCHITECTURES", ("llama",))
    monkeypatch.setattr(writing, "NUM_BLOCKS", (2,))
    options = language_models.LanguageModelOptions(repetitions=1)
    tiny_head = HeadSize(vocab_size=50, length=8, width=16, layers=1, heads=2)
    language_models.main(options, TINY, tiny_head)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for part in language_models.PARTS:
        assert part in lines
    assert "2 blocks of 32 tokens" in printed and "LlamaForCausalLM" in printed
    exact = [line for line in lines if line.startswith("2 blocks")]
    assert exact[0].split()[-1] == "1.000"
    assert sum(line.startswith("threshold") for line in lines) == len(writing.THRESHOLDS) - 1
