"""Laws of what stands behind an answer while it is learned."""

import pytest
import torch

from text_diffusers.training.steps.answers import with_ends_behind

END = 1


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + row) for row in range(count)]


def random_batch(rows=40, length=13, seed=0, segments=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, length + 1, (rows, 1), generator=generator)
    real = torch.arange(length) < sizes
    given = torch.rand(rows, length, generator=generator) < 0.6
    given[:, 0] = True
    batch = {
        "input_ids": torch.randint(5, 50, (rows, length), generator=generator) * real,
        "attention_mask": real.long(),
        "given": given & real,
    }
    if segments:
        batch["segment_ids"] = (torch.arange(length) >= length // 2).long().expand(rows, -1)
    return batch


@pytest.mark.parametrize("block_length", [1, 4, 5])
@pytest.mark.parametrize("has_starts", [False, True])
@pytest.mark.parametrize("segments", [False, True])
def test_in_blocks_ends_stand_behind_an_answer_up_to_the_end_of_its_block(
    block_length, has_starts, segments
):
    batch = random_batch(segments=segments)
    starts = torch.arange(40) % block_length if has_starts else None
    ended = with_ends_behind(batch, END, generators(40), block_length, starts)
    assert torch.equal(ended["clean_ids"], batch["input_ids"])
    for row in range(40):
        offset = 0 if starts is None else int(starts[row])
        for column in range(13):
            learned = [
                place
                for place in range(column)
                if batch["attention_mask"][row, place]
                and not batch["given"][row, place]
                and (place - offset) // block_length == (column - offset) // block_length
            ]
            is_own = batch["attention_mask"][row, column] and not batch["given"][row, column]
            is_end = bool(learned) and not is_own
            if is_end and segments:
                is_end = bool(
                    batch["segment_ids"][row, learned[-1]] == batch["segment_ids"][row, column]
                )
            found = {name: int(ended[name][row, column]) for name in batch}
            wanted = {name: int(batch[name][row, column]) for name in batch}
            if is_end:
                wanted |= {"input_ids": END, "attention_mask": 1, "given": 0}
            assert found == wanted, (row, column)


def test_without_blocks_a_row_has_as_many_ends_as_its_own_number_says():
    batch = random_batch()
    ended = with_ends_behind(batch, END, generators(40))
    learned = batch["attention_mask"].bool() & ~batch["given"]
    counts = []
    for row in range(40):
        last = max(learned[row].nonzero().flatten().tolist(), default=0)
        behind = ended["input_ids"][row, last + 1 :]
        count = int((behind == END).sum())
        counts.append(count / max(1, 12 - last))
        assert (behind[:count] == END).all()
        assert torch.equal(behind[count:], batch["input_ids"][row, last + 1 + count :])
        assert torch.equal(ended["input_ids"][row, : last + 1], batch["input_ids"][row, : last + 1])
    # All numbers alike, from none to all
    assert min(counts) < 0.2 and max(counts) > 0.8 and 0.3 < sum(counts) / 40 < 0.7

    # All ends of a row weigh no more than its answers.
    weights = ended["token_weights"]
    assert (weights[learned] == 1).all()
    behind = ended["attention_mask"].bool() & ~ended["given"] & ~learned
    assert ((weights * behind).sum(dim=1) <= learned.sum(dim=1) + 1e-4).all()
    assert (weights[behind] < 1).any() and (weights > 0)[learned.any(dim=1)].all()

    # Whoever shares the batch
    alone = {name: column[7:8] for name, column in batch.items()}
    again = with_ends_behind(alone, END, generators(1, first=7))
    assert torch.equal(again["input_ids"][0], ended["input_ids"][7])
