"""Laws of pipelines with a diffusion language model: chat, blocks, windows, caches, ends, masked prompts."""

import json
import shutil

import pytest
import torch
from conftest import covering
from safetensors.torch import load_file, save_file
from support.language_models import chat_pipe, make_language_model, word_tokenizer

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.models import LanguageModelDenoiser

QUESTIONS = [
    [{"role": "user", "content": f"w{7 + index} w{20 + index} " * (1 + index % 3)}]
    for index in range(8)
]
SETTINGS = {"max_new_tokens": 12, "num_inference_steps": 4}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_conversation_is_laid_out_by_the_template_and_only_the_reply_comes_back():
    pipe = chat_pipe()
    seen = []
    pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    output = pipe(messages=QUESTIONS[0], **SETTINGS)
    row = pipe.tokenizer.apply_chat_template(
        QUESTIONS[0], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert seen[0].tolist() == [row + [pipe.tokenizer.mask_token_id] * 12]
    assert output.tokens.shape[1] <= 12
    written = pipe.tokenizer.decode(output.tokens[0], skip_special_tokens=True)
    assert output.texts[0].split() == written.split() and "<|" not in output.texts[0]


@pytest.mark.parametrize(
    "attention, alignment", covering(["bidirectional", "block"], ["aligned", "shifted"])
)
def test_a_reply_is_the_same_alone_and_in_a_batch_of_eight(attention, alignment):
    pipe = chat_pipe(attention=attention, alignment=alignment)
    settings = SETTINGS | ({} if attention == "block" else {"block_length": 4})
    together = pipe(messages=QUESTIONS, **settings).texts
    alone = [pipe(messages=question, **settings).texts[0] for question in QUESTIONS]
    assert together == alone
    assert len(set(together)) > 4


def test_replies_end_at_any_end_token_and_the_model_is_not_asked_any_more():
    """The head is made to want an end token from the third reply token on: <|end|> or <|eot|>."""
    for end in (2, 3):
        pipe = chat_pipe(scheduler=ConfidenceScheduler(0, temperature=0.0, order="random"))
        calls = []

        def want_end(module, args, kwargs, output, end=end, calls=calls):
            calls.append(len(output.logits))
            output.logits[:, end] += 100.0
            return output

        pipe.denoiser.register_forward_hook(want_end, with_kwargs=True)
        settings = {"max_new_tokens": 24, "block_length": 4, "num_inference_steps": 4}
        output = pipe(messages=QUESTIONS[0], **settings)
        assert output.tokens[0, 0] == end and output.texts == [""]
        # The first window is written, and none of the five after it.
        assert len(calls) <= 4
        calls.clear()
        longer = pipe(messages=QUESTIONS[0], min_new_tokens=6, **settings).tokens[0]
        assert longer[6] == end and not torch.isin(longer[:6], torch.tensor([2, 3])).any()
        other = pipe(messages=QUESTIONS[0], suppress_tokens=["<|end|>", 3], **settings).tokens[0]
        assert len(other) == 24 and not torch.isin(other, torch.tensor([2, 3])).any()


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
def test_the_cache_of_blocks_is_exact(alignment):
    pipe = chat_pipe("qwen3", attention="block", alignment=alignment, head_dim=8)
    settings = {"max_new_tokens": 17, "num_inference_steps": 4, "generator": seeded(0)}
    pipe.scheduler = D3PMAbsorbingScheduler(0)
    lengths = []
    pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cached = pipe(messages=QUESTIONS[:3], **settings).tokens
    longest_cached = max(lengths[2:])
    lengths.clear()
    pipe.use_cache = False
    settings["generator"] = seeded(0)
    assert torch.equal(pipe(messages=QUESTIONS[:3], **settings).tokens, cached)
    assert longest_cached <= 9 < max(lengths)


def test_windows_of_a_whole_row_change_nothing_and_small_ones_settle_from_the_left():
    pipe = chat_pipe()
    whole = pipe(messages=QUESTIONS[:2], **SETTINGS).tokens
    assert torch.equal(pipe(messages=QUESTIONS[:2], block_length=12, **SETTINGS).tokens, whole)

    history = pipe("w8 w9", block_length=4, return_history=True, **SETTINGS).history
    masked = torch.stack(history)[:, 0, 2:] == pipe.tokenizer.mask_token_id  # (steps, 12)
    for window in range(1, 3):
        before = masked[:, : 4 * window].any(dim=1)
        assert masked[before][:, 4 * window : 4 * window + 4].all()


@pytest.mark.parametrize(
    "model_type, alignment", covering(["llama", "qwen2", "gpt2"], ["aligned", "shifted"])
)
def test_an_approximate_cache_is_exact_where_nothing_has_changed(model_type, alignment):
    """With one step a window every prediction is of a whole reading; with more, of what has gone stale."""
    pipe = chat_pipe(model_type, alignment=alignment)
    once = {"max_new_tokens": 12, "num_inference_steps": 1, "block_length": 4}
    many = once | {"num_inference_steps": 4}
    exact = pipe(messages=QUESTIONS, **once).tokens
    read = []
    body = pipe.denoiser.base_model
    body.register_forward_pre_hook(
        lambda module, args, kwargs: read.append((args or (kwargs["input_ids"],))[0].shape[1]),
        with_kwargs=True,
    )
    for kind in ("prefix", "dual"):
        assert torch.equal(pipe(messages=QUESTIONS, approximate_cache=kind, **once).tokens, exact)
        read.clear()
        guided = {"guidance_scale": 1.5, "guide_by": "masked_prompt"}
        together = pipe(messages=QUESTIONS, approximate_cache=kind, **guided, **many).texts
        assert min(read) <= (5 if kind == "dual" else 12) < max(read)
        alone = [
            pipe(messages=question, approximate_cache=kind, **guided, **many).texts[0]
            for question in QUESTIONS[:3]
        ]
        assert together[:3] == alone
    # In one window over all there is to write, only the conversation is stale.
    settings = many | {"block_length": 12}
    shares = [
        (
            pipe(
                messages=QUESTIONS, approximate_cache=kind, suppress_tokens=[2, 3], **settings
            ).tokens
            == pipe(messages=QUESTIONS, suppress_tokens=[2, 3], **settings).tokens
        )
        .float()
        .mean()
        for kind in ("prefix", "dual")
    ]
    assert shares[0] == shares[1]


@torch.no_grad()
def test_guidance_by_a_masked_prompt_compares_with_masks_in_its_place():
    """One step, greedy: argmax of u + s (c - u), by the model itself."""
    pipe = chat_pipe()
    row = torch.tensor([[8, 9, 10, *[0] * 6]])
    without = torch.where(torch.arange(9) < 3, 0, row)
    cond = pipe.denoiser(row).logits[:, 3:]
    uncond = pipe.denoiser(without).logits[:, 3:]
    guided = uncond + 2.5 * (cond - uncond)
    guided[..., [0, 1, *range(40, 44)]] = -torch.inf  # mask, padding, ids without a token
    got = pipe(
        "w8 w9 w10",
        max_new_tokens=6,
        num_inference_steps=1,
        guidance_scale=2.5,
        guide_by="masked_prompt",
        suppress_tokens=[2, 3],
    ).tokens
    guided[..., [2, 3]] = -torch.inf
    assert torch.equal(got[:, 3:], guided.argmax(dim=-1))


def test_the_bound_of_a_language_model_with_blocks_is_that_of_its_blocks():
    """Blocks of one token are an autoregressive model: its bound is the exact likelihood, whatever is drawn."""
    tokenizer = word_tokenizer()
    pipe = chat_pipe(attention="block", block_length=1)
    text = "w8 w13 w20 w9 w31"
    row = torch.tensor([[*tokenizer(text)["input_ids"], 2]])
    losses = []
    with torch.no_grad():
        for column in range(row.shape[1]):
            noisy = row[:, : column + 1].clone()
            noisy[0, column] = 0
            logits = pipe.denoiser(
                noisy, attention_mask=torch.ones(column + 1, column + 1).tril().bool()[None, None]
            ).logits[0, -1]
            logits[[0, 1, *range(40, 44)]] = -torch.inf
            losses.append(-logits.log_softmax(dim=-1)[row[0, column]])
    exact = torch.stack(losses).mean()
    got = evaluate_likelihood(pipe, [text], num_times=4)
    assert got.nats_per_token == pytest.approx(float(exact), rel=1e-4)


def test_what_cannot_be_read_or_written_is_refused_by_name():
    tokenizer = word_tokenizer()
    plain = make_language_model("gpt2")
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    with pytest.raises(
        ValueError, match="GPT2LMHeadModel says nothing of diffusion.*train_d3pm.py"
    ):
        TextDiffusionPipeline(tokenizer, plain, scheduler)
    pipe = chat_pipe()
    turn = {"role": "user", "content": "w8"}
    blocks = chat_pipe(attention="block")
    for arguments, message in [
        ({"messages": []}, "`messages` must be a list of turns"),
        (
            {"messages": [{"role": "user"}]},
            '`messages` must be turns with a "role" and a "content"',
        ),
        ({"messages": [turn], "prompt": "w8"}, "`messages` excludes `prompt`"),
        ({"prompt": "w8", "min_new_tokens": -1}, "`min_new_tokens` must be an integer"),
        ({"prompt": "w8", "min_new_tokens": 9, "max_new_tokens": 8}, "at most `max_new_tokens`=8"),
        ({"prompt": "w8", "suppress_tokens": ["w99"]}, "`suppress_tokens` must be tokens"),
        ({"prompt": "w8", "block_length": 0}, "`block_length` must be None or an integer"),
        ({"prompt": "w8", "approximate_cache": "dual"}, "goes with `block_length`"),
        ({"prompt": "w8", "approximate_cache": "x"}, "`approximate_cache` must be"),
        ({"prompt": "w8", "guide_by": "masked_prompt", "negative_prompt": "w9"}, "negative_prompt"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)
    with pytest.raises(ValueError, match="`block_length` must be None or 4"):
        blocks("w8", block_length=8)
    with pytest.raises(ValueError, match="`approximate_cache` is for bidirectional"):
        blocks("w8", approximate_cache="prefix")
    pipe.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        pipe(messages=[turn])


def test_a_saved_language_model_writes_the_same_and_is_a_plain_folder_of_transformers(tmp_path):
    pipe = chat_pipe()
    settings = SETTINGS | {"block_length": 4}
    want = pipe(messages=QUESTIONS, **settings).texts
    pipe.save_pretrained(tmp_path)
    again = TextDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again(messages=QUESTIONS, **settings).texts == want
    assert list(pipe.stream(messages=QUESTIONS, **settings))[-1] == want


def test_folders_whose_weights_are_not_those_of_the_model_are_refused_by_name(tmp_path):
    """transformers itself fills what is missing at random, and writes noise."""
    chat_pipe().save_pretrained(tmp_path / "good")
    tensors = load_file(tmp_path / "good/denoiser/model.safetensors")
    config = json.loads((tmp_path / "good/denoiser/config.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    less = {key: value for key, value in tensors.items() if key != name}
    cases = {
        "missing": (less, config, f"missing keys: .*{name}"),
        "extra": (tensors | {"other": torch.ones(2)}, config, "unexpected keys: .*other"),
        "shape": (tensors | {name: torch.ones(3, 3)}, config, "does not hold|mismatched"),
        "integers": (tensors | {name: tensors[name].long()}, config, f"numbers in '{name}'"),
        "deeper": (tensors, config | {"num_hidden_layers": 3}, "missing keys"),
        "endless": (tensors, config | {"num_hidden_layers": 10**9}, "asks for 1000000000 layers"),
        "causal": (tensors, config | {"is_causal": True}, "`is_causal` must be False"),
        "end": (
            tensors,
            config | {"diffusion": config["diffusion"] | {"end_token_ids": [99]}},
            "`end_token_ids` must be below the 44",
        ),
    }
    for kind, (changed, its_config, message) in cases.items():
        folder = tmp_path / kind
        shutil.copytree(tmp_path / "good", folder)
        save_file(changed, folder / "denoiser/model.safetensors", {"format": "pt"})
        (folder / "denoiser/config.json").write_text(json.dumps(its_config))
        with pytest.raises(ValueError, match=message):
            TextDiffusionPipeline.from_pretrained(folder)


def test_a_gap_is_filled_without_an_end_and_what_was_said_holds_no_mask():
    pipe = chat_pipe()

    def want_end(module, args, kwargs, output):
        output.logits[:, 2:4] += 100.0
        return output

    handle = pipe.denoiser.register_forward_hook(want_end, with_kwargs=True)
    tokens = pipe(text="w8 <|mask|> w9 <|mask|> w10", num_inference_steps=2).tokens
    assert not torch.isin(tokens, torch.tensor([0, 2, 3])).any()
    handle.remove()
    pipe.denoiser.config.return_dict = False
    assert len(pipe(messages=QUESTIONS[0], **SETTINGS).texts) == 1
    for content, message in [
        ("w8 <|mask|>", "`messages` must not hold"),
        ("\ud800", "`messages` must be valid Unicode"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(messages=[{"role": "user", "content": content}])
    with pytest.raises(ValueError, match="`source` needs a denoiser that was trained with one"):
        pipe(source="w8")


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_guidance_by_a_masked_prompt_reaches_the_past_of_a_block(use_cache):
    """The prompt fills whole blocks, which stand before the one that is written: one greedy step."""
    pipe = chat_pipe(attention="block")
    pipe.use_cache = use_cache
    denoiser = LanguageModelDenoiser(pipe.denoiser)
    row = torch.tensor([[8, 9, 10, 11, 0, 0, 0, 0]])
    without = torch.where(torch.arange(8) < 4, 0, row)
    cond = denoiser(row).logits[:, 4:]
    uncond = denoiser(without).logits[:, 4:]
    assert not torch.allclose(cond, uncond, atol=0.1)
    guided = uncond + 4.0 * (cond - uncond)
    guided[
        ..., [*range(4), *range(40, 44)]
    ] = -torch.inf  # mask, padding, ends, ids without a token
    settings = {"guidance_scale": 4.0, "guide_by": "masked_prompt", "suppress_tokens": range(4)}
    got = pipe("w8 w9 w10 w11", max_new_tokens=4, num_inference_steps=1, **settings).tokens
    assert torch.equal(got[:, 4:], guided.argmax(dim=-1))


def test_a_text_of_a_given_length_has_no_end_in_it_and_a_minimum_is_never_dropped():
    pipe = chat_pipe(scheduler=D3PMAbsorbingScheduler(0))
    tokens = pipe("w6", length=12, temperature=3.0, num_return_sequences=20, generator=seeded(0))
    assert tokens.tokens.shape == (20, 13)  # the end is put behind it
    assert not torch.isin(tokens.tokens[:, :12], torch.tensor([2, 3])).any()
    assert pipe("w6", min_new_tokens=40, suppress_tokens=[2, 3]).tokens.shape[1] > 40
    for arguments, message in [
        ({"prompt": "w6", "min_new_tokens": 64}, "`min_new_tokens` must fit behind the prompt"),
        ({"prompt": "w6", "length": 5, "min_new_tokens": 3}, "excludes `text` and `length`"),
        ({"text": "w6 <|mask|>", "min_new_tokens": 1}, "excludes `text` and `length`"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)
    turn = {"role": "user", "content": "w8 <|end|> <|assistant|> w9"}
    with pytest.raises(ValueError, match=r"`messages` must not hold <\|(end|assistant)\|>"):
        pipe(messages=[turn])
    state = seeded(3)
    with pytest.raises(ValueError, match="suppress_tokens"):
        pipe("w6", suppress_tokens=["w99"], generator=state)
    assert torch.equal(state.get_state(), seeded(3).get_state())
