"""ConfidenceScheduler writes what the authors' own samplers wrote, token for token, with stock transformers models.

The golden folders hold small random checkpoints in the layouts in which diffusion language models are published, and
the tokens that their authors' code wrote with them. Here transformers' own classes run the weights, under renamed keys
and a mask that is given in full, and a plain loop over blocks calls the scheduler.

Shapes: B batch, L length, V vocabulary size, D width.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import BlockRefinementScheduler
from safetensors.torch import load_file
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from text_diffusers import ConfidenceScheduler
from text_diffusers.pipelines.scheduler_adapters import StockTokenScheduler

PUBLISHED = Path(__file__).parent.parent / "golden/published"

# Published keys of the sizes, and those of transformers.
SHARED_KEYS = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "head_dim",
        "tie_word_embeddings",
    )
}
LLADA_KEYS = {
    "embedding_size": "vocab_size",
    "d_model": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "weight_tying": "tie_word_embeddings",
}
LLADA2_KEYS = {
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
} | {
    name: name
    for name in (
        "use_qk_norm",
        "moe_intermediate_size",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
        "first_k_dense_replace",
        "norm_topk_prob",
        "partial_rotary_factor",
    )
}

# Published names of weights, and those of transformers.
LLADA_NAMES = {
    r"model\.transformer\.ff_out\.": "lm_head.",
    r"model\.transformer\.wte\.": "model.embed_tokens.",
    r"model\.transformer\.ln_f\.": "model.norm.",
    r"model\.transformer\.blocks\.": "model.layers.",
    r"\.attn_norm\.": ".input_layernorm.",
    r"\.ff_norm\.": ".post_attention_layernorm.",
    r"\.attn_out\.": ".self_attn.o_proj.",
    r"\.([qkv]_proj)\.": r".self_attn.\1.",
    r"\.ff_proj\.": ".mlp.gate_proj.",
    r"\.up_proj\.": ".mlp.up_proj.",
    r"\.ff_out\.": ".mlp.down_proj.",
}
LLADA2_NAMES = {
    r"word_embeddings": "embed_tokens",
    r"attention\.dense": "self_attn.o_proj",
    r"attention\.(query|key)_layernorm": lambda found: f"self_attn.{found[1][0]}_norm",
    r"expert_bias": "e_score_correction_bias",
}
DIFFUGPT_NAMES = {
    r"^denoise_model\.": "transformer.",
    r"^embed_tokens\.": "transformer.wte.",
}


# Stock models with the published weights


def read_folder(family):
    """The configuration, and the weights by their published names."""
    folder = PUBLISHED / family
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    weights = {name: weight.float() for name, weight in weights.items()}
    return json.loads((folder / "config.json").read_text()), weights


def renamed(weights, names):
    result = {}
    for name, weight in weights.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        result[name] = weight
    return result


def picked(config, keys):
    """The entries of a configuration under transformers' names."""
    return {ours: config[theirs] for theirs, ours in keys.items() if theirs in config}


def filled(model, weights):
    """The model with these weights; only a tied head may be missing."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= set(model._tied_weights_keys)
    return model.eval()


def llada_model(family):
    config, weights = read_folder(family)
    model = LlamaForCausalLM(LlamaConfig(**picked(config, LLADA_KEYS)))
    return filled(model, renamed(weights, LLADA_NAMES))


def llama_model(family):
    config, weights = read_folder(family)
    return filled(LlamaForCausalLM(LlamaConfig(**picked(config, SHARED_KEYS))), weights)


def qwen2_model(family):
    config, weights = read_folder(family)
    return filled(Qwen2ForCausalLM(Qwen2Config(**picked(config, SHARED_KEYS))), weights)


def qwen3_model(family):
    config, weights = read_folder(family)
    return filled(Qwen3ForCausalLM(Qwen3Config(**picked(config, SHARED_KEYS))), weights)


def modernbert_model(family):
    config, weights = read_folder(family)
    config = {name: value for name, value in config.items() if name not in ("dtype", "model_type")}
    return filled(ModernBertForMaskedLM(ModernBertConfig(**config)), weights)


def gpt2_model(family):
    config, weights = read_folder(family)
    sizes = {name: config[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer")}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_head=config["n_head"]))
    return filled(model, renamed(weights, DIFFUGPT_NAMES))


def llada2_model(family):
    config, weights = read_folder(family)
    settings = picked(config, SHARED_KEYS | LLADA2_KEYS)
    weights = renamed(weights, LLADA2_NAMES)

    # One matrix of queries, keys and values, and one for each expert.
    heads = [config["num_attention_heads"], *[config["num_key_value_heads"]] * 2]
    rows = [count * config["head_dim"] for count in heads]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        fused = weights.pop(f"{stem}.attention.query_key_value.weight")
        for name, part in zip("qkv", fused.split(rows), strict=True):
            weights[f"{stem}.self_attn.{name}_proj.weight"] = part
        if layer < config["first_k_dense_replace"]:
            continue

        experts = {"gate": [], "up": [], "down": []}
        for expert in range(config["num_experts"]):
            for name, matrices in experts.items():
                matrices.append(weights.pop(f"{stem}.mlp.experts.{expert}.{name}_proj.weight"))
        gate, up, down = (torch.stack(matrices) for matrices in experts.values())
        weights[f"{stem}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        weights[f"{stem}.mlp.experts.down_proj"] = down
    return filled(Glm4MoeForCausalLM(Glm4MoeConfig(**settings)), weights)


MODELS = {
    "llada": llada_model,
    "illada": llada_model,
    "dream": qwen2_model,
    "a2d_qwen3": qwen3_model,
    "sdar": qwen3_model,
    "llada2": llada2_model,
    "modernbert_mdlm": modernbert_model,
    "diffugpt": gpt2_model,
    "diffullama": llama_model,
}
SHIFTED = ("dream", "diffugpt", "diffullama")


@pytest.fixture(scope="module")
def models():
    """Stock models by family, each built when it is first asked for."""
    built = {}

    def get(family):
        if family not in built:
            built[family] = MODELS[family](family)
        return built[family]

    return get


def additive(allowed):
    """(B, 1, L, L) what transformers adds to the scores, from (B, L, L) bool: who may see whom."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape).masked_fill(~allowed, lowest).unsqueeze(1)


@torch.no_grad()
def predict(model, family, tokens, real, block_length=None):
    """(B, L, V) logits, aligned with the tokens.

    Args:
        real: (B, L) bool, what is not a pad.
        block_length: of block-causal attention.
    """
    if family == "modernbert_mdlm":
        return model(tokens, attention_mask=real.long()).logits

    length = tokens.shape[1]
    block = torch.arange(length) // (block_length or length)
    allowed = (block.unsqueeze(1) >= block) & real.unsqueeze(1)  # (B, L, L)
    inputs = {"attention_mask": additive(allowed)}
    # LLaDA counts positions from the first pad, the others from the first token.
    if family in ("dream", "a2d_qwen3"):
        inputs["position_ids"] = (real.long().cumsum(dim=1) - 1).clamp(min=0)

    logits = model(tokens, **inputs).logits
    if family in SHIFTED:
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    return logits


def write(scheduler, logits_of, tokens, blocks, steps):
    """(B, L) tokens after a run of `steps` for each of `blocks` (B, L), from left to right."""
    for block in blocks:
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            positions = scheduler.select(timestep, tokens) & block
            if not positions.any():
                continue
            output = scheduler.step(
                logits_of(tokens)[positions], timestep, tokens, positions=positions
            )
            tokens = output.prev_sample
    return tokens


def column_blocks(shape, start, block_length):
    """(B, L) bool of each block of columns from `start` on."""
    block = (torch.arange(shape[1]) - start).div(block_length, rounding_mode="floor")
    block = block.expand(shape)
    return [block == index for index in range(int(block.max()) + 1)]


def cases(*families, sampler=None):
    """`(family, case)` of the golden runs, of one sampler if it is named."""
    for family in families:
        golden = json.loads((PUBLISHED / family / "golden.json").read_text())
        for case in golden["generation"]:
            if sampler is None or case["sampler"] == sampler:
                yield pytest.param(family, case, id=f"{family}, {case['name']}")


def canvas(prompts, num_new, mask_token_id):
    """(B, L) the prompts, all of one length, and masks."""
    prompts = torch.tensor(prompts)
    return torch.nn.functional.pad(prompts, (0, num_new), value=mask_token_id)


def guided(logits_of, tokens, given, scale, mask_token_id):
    """(B, L, V) logits guided away from those without the prompt, where `given` (B, L) is true."""
    cond = logits_of(tokens)
    if scale == 0:
        return cond
    uncond = logits_of(tokens.masked_fill(given, mask_token_id))
    return uncond + (scale + 1) * (cond - uncond)


@pytest.mark.parametrize(("family", "case"), cases("llada", "illada"))
def test_llada(models, family, case):
    options = case["options"]
    mask = options["mask_id"]
    tokens = canvas(case["prompt_ids"], options["gen_length"], mask)
    real = canvas(case["attention_mask"], options["gen_length"], 1).bool()
    given = tokens != mask

    prompt_length = len(case["prompt_ids"][0])
    blocks = column_blocks(tokens.shape, prompt_length, options["block_length"])
    scheduler = ConfidenceScheduler(mask, temperature=0.0, quota="even", allow_mask=True)

    def logits_of(tokens):
        return predict(models(family), family, tokens, real)

    written = write(
        scheduler,
        lambda tokens: guided(logits_of, tokens, given, options["cfg_scale"], mask),
        tokens,
        blocks,
        options["steps"] // len(blocks),
    )
    assert written.tolist() == case["output_ids"]


DREAM_ORDERS = {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}


@pytest.mark.parametrize(("family", "case"), cases("dream"))
def test_dream(models, family, case):
    options = case["options"]
    mask = options["mask_token_id"]
    tokens = canvas(case["prompt_ids"], options["max_new_tokens"], mask)
    real = canvas(case["attention_mask"], options["max_new_tokens"], 1).bool()
    scheduler = ConfidenceScheduler(
        mask,
        temperature=options["temperature"],
        order=DREAM_ORDERS[options["alg"]],
        quota="truncated",
        grid_end=options["eps"],
        allow_mask=True,
    )

    scheduler.set_timesteps(options["steps"])
    masks_left = []
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens)
        logits = predict(models(family), family, tokens, real)[positions]
        tokens = scheduler.step(logits, timestep, tokens, positions=positions).prev_sample
        masks_left.append((tokens == mask).sum(dim=1).tolist())
    assert masks_left == case["masks_left_after_each_step"]
    assert tokens.tolist() == case["output_ids"]


# The id of the mask in both folders, which their configurations do not say.
DLLM_MASK = 90


@pytest.mark.parametrize(("family", "case"), cases("a2d_qwen3", "modernbert_mdlm", sampler="mdlm"))
def test_masked_diffusion_of_dllm(models, family, case):
    options = case["options"]
    mask = DLLM_MASK
    end = read_folder(family)[0]["eos_token_id"]

    # Each row is its prompt, its masks, and ends of text up to the longest.
    prompts = [torch.tensor(prompt) for prompt in case["prompt_ids"]]
    num_new = options["max_new_tokens"]
    length = max(len(prompt) for prompt in prompts) + num_new
    tokens = torch.full((len(prompts), length), end)
    real = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + num_new] = mask
        real[row, : len(prompt) + num_new] = True
    given = (tokens != mask) & real

    starts = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    place = torch.arange(length) - starts  # (B, L)
    num_blocks = num_new // options["block_size"]
    blocks = [place // options["block_size"] == block for block in range(num_blocks)]
    scheduler = ConfidenceScheduler(mask, temperature=0.0, quota="rounded", allow_mask=True)

    def logits_of(tokens):
        return predict(models(family), family, tokens, real)

    scale = options.get("cfg_scale", 0.0)
    written = write(
        scheduler,
        lambda tokens: guided(logits_of, tokens, given, scale, mask),
        tokens,
        blocks,
        options["steps"] // num_blocks,
    )
    assert written.tolist() == case["output_ids"]


@pytest.mark.parametrize(("family", "case"), cases("a2d_qwen3", sampler="bd3lm"))
def test_block_diffusion_of_dllm(models, family, case):
    options = case["options"]
    mask = DLLM_MASK
    pad = read_folder(family)[0]["pad_token_id"]
    block_length = options["block_size"]

    # Prompts end where a block ends, with pads before them.
    longest = max(len(prompt) for prompt in case["prompt_ids"])
    prompt_length = -(-longest // block_length) * block_length
    prompts = [[pad] * (prompt_length - len(prompt)) + prompt for prompt in case["prompt_ids"]]
    tokens = canvas(prompts, options["max_new_tokens"], mask)
    real = tokens != pad

    blocks = column_blocks(tokens.shape, prompt_length, block_length)
    scheduler = ConfidenceScheduler(mask, temperature=0.0, quota="rounded", allow_mask=True)
    written = write(
        scheduler,
        lambda tokens: predict(models(family), family, tokens, real, block_length),
        tokens,
        blocks,
        -(-options["steps"] // len(blocks)),
    )
    assert written.tolist() == case["output_ids"]


@pytest.mark.parametrize(("family", "case"), cases("sdar"))
def test_sdar(models, family, case):
    options = case["options"]
    mask, block_length = options["mask_id"], options["block_length"]
    prompt_length = len(case["prompt_ids"][0])
    length = -(-(prompt_length + options["gen_length"]) // block_length) * block_length
    tokens = canvas(case["prompt_ids"], length - prompt_length, mask)
    real = torch.ones(tokens.shape, dtype=torch.bool)

    is_sequential = options["remasking_strategy"] == "sequential"
    scheduler = ConfidenceScheduler(
        mask,
        temperature=options["temperature"],
        top_k=options["top_k"],
        order="left_to_right" if is_sequential else "confidence",
        threshold=options.get("confidence_threshold"),
        quota="even",
        allow_mask=True,
    )
    written = write(
        scheduler,
        lambda tokens: predict(models(family), family, tokens, real, block_length),
        tokens,
        column_blocks(tokens.shape, 0, block_length),
        options["denoising_steps"],
    )
    assert written.tolist() == case["output_ids"]


def until_end(tokens, start, num_new, end):
    """The answer as LLaDA2 gives it: at most `num_new` tokens, up to the first end."""
    answer = tokens[0, start : start + num_new].tolist()
    return answer[: answer.index(end) + 1] if end in answer else answer


def llada2_canvas(case):
    """(1, L) the prompt and masks up to the end of the last block."""
    options = case["options"]
    block_length = options["block_length"]
    prompt_length = len(case["prompt_ids"][0])
    length = -(-(prompt_length + options["gen_length"]) // block_length) * block_length
    return canvas(case["prompt_ids"], length - prompt_length, options["mask_id"])


@pytest.mark.parametrize(("family", "case"), cases("llada2", sampler="llada2.0"))
def test_llada2(models, family, case):
    options = case["options"]
    tokens = llada2_canvas(case)
    real = torch.ones(tokens.shape, dtype=torch.bool)
    block_length = options["block_length"]
    scheduler = ConfidenceScheduler(
        options["mask_id"],
        temperature=0.0,
        threshold=options["threshold"],
        quota="even",
        allow_mask=True,
    )
    written = write(
        scheduler,
        lambda tokens: predict(models(family), family, tokens, real, block_length),
        tokens,
        column_blocks(tokens.shape, 0, block_length),
        options["steps"],
    )
    prompt_length = len(case["prompt_ids"][0])
    answer = until_end(written, prompt_length, options["gen_length"], options["eos_id"])
    assert [answer] == case["output_ids"]


def block_refinement(options, editing_threshold):
    """diffusers' scheduler as the pipeline takes it, greedy."""
    scheduler = BlockRefinementScheduler(
        threshold=options["threshold"], editing_threshold=editing_threshold
    )
    scheduler.register_to_config(temperature=0.0)
    return StockTokenScheduler(scheduler, options["mask_id"], vocab_size=96)


def open_blocks(tokens, options):
    """(1, L) bool of each block, without the prompt."""
    blocks = column_blocks(tokens.shape, 0, options["block_length"])
    return [block & (tokens == options["mask_id"]) for block in blocks]


@pytest.mark.parametrize(("family", "case"), cases("llada2", sampler="llada2.1"))
def test_llada2_1_with_the_scheduler_of_diffusers(models, family, case):
    """A round after which nothing changes is the last of theirs; here the others follow, and change nothing."""
    options = case["options"]
    tokens = llada2_canvas(case)
    real = torch.ones(tokens.shape, dtype=torch.bool)
    written = write(
        block_refinement(options, options["editing_threshold"]),
        lambda tokens: predict(models(family), family, tokens, real, options["block_length"]),
        tokens,
        open_blocks(tokens, options),
        options["block_length"] + options["max_post_steps"],
    )
    prompt_length = len(case["prompt_ids"][0])
    answer = until_end(written, prompt_length, options["gen_length"], options["eos_id"])
    assert [answer] == case["output_ids"]


def edit_by_definition(logits_of, tokens, block, options, editing_threshold):
    """(1, L) tokens after a round of LLaDA2.1 in the open positions of a block, `block` (1, L)."""
    logits = logits_of(tokens)
    logits[..., options["mask_id"]] = -torch.inf
    confidence, candidates = logits.softmax(dim=-1).max(dim=-1)
    masked = block & (tokens == options["mask_id"])

    settled = masked & (confidence > options["threshold"])
    if masked.any() and not settled.any():
        settled[0, confidence.masked_fill(~masked, -1).argmax()] = True
    edited = block & ~masked & (confidence > editing_threshold)
    return torch.where(settled | edited, candidates, tokens)


@pytest.mark.parametrize("editing_threshold", [0.1, 0.2])
def test_editing_by_the_scheduler_of_diffusers_is_that_of_llada2_1(models, editing_threshold):
    """The golden run writes the same tokens without editing, so here the thresholds are lower."""
    family = "llada2"
    generation = json.loads((PUBLISHED / family / "golden.json").read_text())["generation"]
    case = generation[-1]
    options = case["options"]
    num_rounds = options["block_length"] + options["max_post_steps"]
    start = llada2_canvas(case)
    real = torch.ones(start.shape, dtype=torch.bool)
    blocks = open_blocks(start, options)

    def logits_of(tokens):
        return predict(models(family), family, tokens, real, options["block_length"])

    want = start
    for block in blocks:
        for _ in range(num_rounds):
            want = edit_by_definition(logits_of, want, block, options, editing_threshold)
    scheduler = block_refinement(options, editing_threshold)
    assert torch.equal(write(scheduler, logits_of, start, blocks, num_rounds), want)
    unedited = write(block_refinement(options, None), logits_of, start, blocks, num_rounds)
    assert not torch.equal(unedited, want)


@pytest.mark.parametrize(("family", "case"), cases("diffugpt", "diffullama"))
def test_one_step_of_an_adapted_model(models, family, case):
    mask = case["options"]["mask_token_id"]
    given = torch.tensor(case["src_mask"]).bool()
    tokens = torch.tensor(case["prompt_ids"]).masked_fill(~given, mask)
    real = torch.ones_like(given)
    scheduler = ConfidenceScheduler(mask, temperature=0.0, allow_mask=True)
    written = write(
        scheduler,
        lambda tokens: predict(models(family), family, tokens, real),
        tokens,
        [~given],
        case["options"]["diffusion_steps"],
    )
    assert written[:, 1:].tolist() == case["output_ids"]
