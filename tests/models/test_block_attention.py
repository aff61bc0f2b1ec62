"""Laws of a transformer with blocks: who sees whom, one pass for all blocks, and keys and values that are kept.

Shapes: B batch, L sequence length.
"""

import pytest
import torch
from conftest import make_denoiser

from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
from text_diffusers.evaluation.bounds import batch_bound

BLOCK, LENGTH = 4, 14  # the last block is shorter
CONFIGS = {
    "plain": {},
    "time": {"time_conditioning": True},
    "labels": {"num_classes": 3},
    "tied": {"tie_embeddings": True},
    "time and labels": {"time_conditioning": True, "num_classes": 3, "tie_embeddings": True},
}
every_config = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())


class Rows:
    """Three noisy texts of different lengths, right-padded, a time for each of their blocks, and a way to ask for one
    block at a time: `block(model, b)` reads the clean blocks before b and the noisy block b, and no more."""

    def __init__(self, tokenizer, model):
        generator = torch.Generator().manual_seed(0)
        self.clean = torch.randint(1, 256, (3, LENGTH), generator=generator)
        self.noisy = self.clean.masked_fill(
            torch.rand(3, LENGTH, generator=generator) < 0.5, tokenizer.mask_token_id
        )
        self.mask = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [6], [9]])).long()
        block_times = torch.rand(3, -(-LENGTH // BLOCK), generator=generator)
        self.times = block_times.repeat_interleave(BLOCK, dim=1)[:, :LENGTH]
        self.labels = None if model.config.num_classes is None else torch.tensor([0, 2, 3])
        self.blocks = [
            slice(start, min(start + BLOCK, LENGTH)) for start in range(0, LENGTH, BLOCK)
        ]

    def block(self, model, number, **inputs):
        block = self.blocks[number]
        ids = torch.cat([self.clean[:, : block.start], self.noisy[:, block]], dim=1)
        times = torch.cat([torch.zeros(3, block.start), self.times[:, block]], dim=1)
        return model(ids, times, self.mask[:, : block.stop], self.labels, **inputs).logits[:, block]

    def real(self, number):
        return self.mask[:, self.blocks[number]].bool()


def block_model(tokenizer, **changes):
    return make_denoiser(tokenizer, **{"block_length": BLOCK} | changes)


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@every_config
def test_one_pass_beside_the_clean_tokens_equals_a_pass_for_each_block(tokenizer, changes):
    model = block_model(tokenizer, **changes)
    rows = Rows(tokenizer, model)
    inputs = rows.noisy, rows.times, rows.mask, rows.labels
    together = model(*inputs, clean_ids=rows.clean).logits
    assert together.shape[:2] == (3, LENGTH)
    for number, block in enumerate(rows.blocks):
        close(together[:, block][rows.real(number)], rows.block(model, number)[rows.real(number)])
    positions = rows.noisy == tokenizer.mask_token_id
    close(model(*inputs, clean_ids=rows.clean, positions=positions).logits, together[positions])


@every_config
@pytest.mark.parametrize("read", ["alone", "with the next block"])
def test_logits_with_a_cache_equal_those_without(tokenizer, changes, read):
    model = block_model(tokenizer, **changes)
    rows = Rows(tokenizer, model)
    with torch.no_grad():
        cache = model.new_cache(LENGTH)
        for number, block in enumerate(rows.blocks):
            if read == "alone" and block.start:
                before = rows.blocks[number - 1]
                model(
                    rows.clean[:, before],
                    0.0,
                    rows.mask[:, : before.stop],
                    rows.labels,
                    cache=cache,
                )
                cache.length = block.start
            new = slice(cache.length, block.stop)
            known = block.start - cache.length
            ids = torch.cat([rows.clean[:, new][:, :known], rows.noisy[:, block]], dim=1)
            times = torch.cat([torch.zeros(3, known), rows.times[:, block]], dim=1)
            # Twice: the keys that a call leaves behind the finished tokens do not matter to the next.
            for _ in range(2):
                logits = model(
                    ids, times, rows.mask[:, : block.stop], rows.labels, cache=cache
                ).logits[:, known:]
            cache.length = block.start
            close(logits[rows.real(number)], rows.block(model, number)[rows.real(number)])


def test_a_choice_of_rows_reads_its_own_cache(tokenizer):
    model = block_model(tokenizer)
    rows = Rows(tokenizer, model)
    block = rows.blocks[2]
    with torch.no_grad():
        want = rows.block(model, 2)
        cache = model.new_cache()
        model(rows.clean[:, : block.start], cache=cache)
        cache.length = block.start
        mask = rows.mask[:, : block.stop]
        chosen = torch.tensor([True, False, True])
        for part in (chosen, torch.tensor([2, 0])):
            logits = model(
                rows.noisy[:, block][part], None, mask[part], cache=cache.view(part)
            ).logits
            close(logits[0 if part is chosen else 1], want[0])
        cache.keep(chosen)
        close(
            model(rows.noisy[:, block][chosen], None, mask[chosen], cache=cache).logits[0], want[0]
        )


def test_a_later_block_never_changes_an_earlier_one_and_all_else_does(tokenizer):
    model = block_model(tokenizer)
    ids = Rows(tokenizer, model).clean[:1]
    base = model(ids).logits
    for position in range(LENGTH):
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % 256
        moved = (model(changed).logits - base).abs().amax(dim=-1)[0]
        start = position // BLOCK * BLOCK
        assert not moved[:start].any() and moved[start:].min() > 1e-6


def test_the_clean_tokens_of_its_own_and_later_blocks_are_hidden_from_a_noisy_one(tokenizer):
    model = block_model(tokenizer)
    rows = Rows(tokenizer, model)
    base = model(rows.noisy, clean_ids=rows.clean).logits
    for position in range(LENGTH):
        clean = rows.clean.clone()
        clean[0, position] = (clean[0, position] + 1) % 256
        moved = (model(rows.noisy, clean_ids=clean).logits - base).abs().amax(dim=-1)[0]
        end = position // BLOCK * BLOCK + BLOCK
        assert not moved[:end].any() and (moved[end:] > 1e-6).all()


@pytest.mark.parametrize("block_length", [LENGTH, 20])
def test_one_block_of_the_whole_text_has_the_loss_of_a_bidirectional_model(tokenizer, block_length):
    ordinary = make_denoiser(tokenizer, time_conditioning=True)
    model = block_model(tokenizer, time_conditioning=True, block_length=block_length)
    model.load_state_dict(ordinary.state_dict())
    rows = Rows(tokenizer, model)
    batch = {"input_ids": rows.clean, "attention_mask": rows.mask}
    scheduler, uniform = (
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
        torch.tensor([0.2, 0.5, 0.9]),
    )
    losses = [
        batch_bound(
            one, scheduler, batch, uniform, [torch.Generator().manual_seed(i) for i in range(3)]
        )
        for one in (ordinary, model)
    ]
    assert (losses[0] > 0).all()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def next_token_nats(model, ids, mask_token_id):
    """(L,) -log p of each token of a text (L,) after those before it, one call a token."""
    nats = []
    for position, token in enumerate(ids.tolist()):
        prefix = torch.cat([ids[:position], torch.tensor([mask_token_id])])
        logits = model(prefix.unsqueeze(0)).logits[0, -1].double()
        logits[mask_token_id] = -torch.inf
        nats.append(-logits.log_softmax(dim=-1)[token])
    return torch.stack(nats)


@torch.no_grad()
def test_blocks_of_one_token_are_an_autoregressive_model(tokenizer):
    """In one step every token is masked and weighs 1; in continuous time it is masked at rate t and weighs 1 / t."""
    model = block_model(tokenizer, block_length=1)
    ids = Rows(tokenizer, model).clean[0, :6]
    exact = next_token_nats(model, ids, tokenizer.mask_token_id).sum()
    one_step = D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=1)
    batch = {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones(1, 6)}
    bound = batch_bound(model, one_step, batch, torch.tensor([0.3]), [torch.Generator()])
    torch.testing.assert_close(bound[0].double(), exact, rtol=1e-5, atol=0)
    count = 4000
    batch = {"input_ids": ids.expand(count, -1), "attention_mask": torch.ones(count, 6)}
    continuous = D3PMAbsorbingScheduler(tokenizer.mask_token_id, min_timestep=0.1)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    bounds = batch_bound(model, continuous, batch, uniform, generators).double()
    assert (bounds.mean() - exact).abs() < 4 * bounds.std() / count**0.5 < 0.05 * exact


@pytest.mark.parametrize(
    "changes", [{}, {"time_conditioning": True, "num_classes": 3}], ids=["plain", "conditioned"]
)
def test_checkpointing_and_a_chunked_head_give_the_same_gradients(tokenizer, changes):
    gradients = []
    for way in ("plain", "checkpointing", "chunks"):
        model = block_model(tokenizer, **changes).train()
        rows = Rows(tokenizer, model)
        if way == "checkpointing":
            model.enable_gradient_checkpointing()
        inputs = {"positions": rows.noisy == tokenizer.mask_token_id, "clean_ids": rows.clean}
        inputs |= {"class_labels": rows.labels, "attention_mask": rows.mask}
        if way == "chunks":
            square = {"loss_function": lambda logits, chunk: logits.square().sum(), "chunk_size": 5}
            model(rows.noisy, rows.times, **inputs, **square).loss.backward()
        else:
            model(rows.noisy, rows.times, **inputs).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert any(g is not None and g.abs().max() > 1 for g in gradients[0])
    for other in gradients[1:]:
        for got, want in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_adapters_act_through_the_cache_too(tokenizer):
    from peft import LoraConfig

    model = block_model(tokenizer)
    rows = Rows(tokenizer, model)
    before = rows.block(model, 1)
    model.add_adapter(
        LoraConfig(
            r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
        )
    )
    want = rows.block(model, 1)
    assert (want - before).abs().max() > 1e-4
    with torch.no_grad():
        cache = model.new_cache()
        model(rows.clean[:, :BLOCK], cache=cache)
        cache.length = BLOCK
        block = rows.blocks[1]
        close(
            model(rows.noisy[:, block], None, rows.mask[:, : block.stop], cache=cache).logits, want
        )


def test_a_saved_model_keeps_its_blocks(tokenizer, tmp_path):
    model = block_model(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = TextTransformerModel.from_pretrained(tmp_path)
    rows = Rows(tokenizer, model)
    assert loaded.config.block_length == BLOCK
    assert torch.equal(rows.block(loaded, 2), rows.block(model, 2))


@torch.no_grad()
def test_a_cache_or_clean_tokens_that_do_not_fit_are_refused(tokenizer):
    model, ordinary = block_model(tokenizer), make_denoiser(tokenizer)
    ids = Rows(tokenizer, model).clean
    with pytest.raises(ValueError, match="`clean_ids` was given, but .* `block_length=None`"):
        ordinary(ids, clean_ids=ids)
    with pytest.raises(ValueError, match="`cache` was given, but .* `block_length=None`"):
        ordinary(ids, cache=model.new_cache())
    with pytest.raises(
        ValueError, match=r"`clean_ids` must be \(3, 14\) like `input_ids`.*got \(3, 12\)"
    ):
        model(ids, clean_ids=ids[:, :12])
    with torch.enable_grad(), pytest.raises(ValueError, match="`cache` carries no gradients"):
        model(ids, cache=model.new_cache())
    cache = model.new_cache(16)
    model(ids, cache=cache)
    cache.length = 6
    with pytest.raises(ValueError, match="whole blocks of 4 tokens .* got 6 of 16 in use"):
        model(ids[:, :4], cache=cache)
    cache.length = 4
    with pytest.raises(ValueError, match="room for the 14 of `input_ids`, got 4 of 16 in use"):
        model(ids, cache=cache)
    with pytest.raises(
        ValueError, match="`capacity` must be between 1 and `max_length`=32, got 33"
    ):
        model.new_cache(33)
    with pytest.raises(ValueError, match=r"`timestep` must be \(\), \(B,\) or \(3, 14\)"):
        block_model(tokenizer, time_conditioning=True)(ids, torch.zeros(3, 2))
    with pytest.raises(
        ValueError, match="`block_length` must be None or an integer of at least 1, got 0"
    ):
        block_model(tokenizer, block_length=0)
