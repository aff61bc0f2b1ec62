"""Generate text by two levels of diffusion over the codes of an autoencoder: a plan, its detail, then all tokens.

Shapes: B rows (texts times `num_return_sequences`), L tokens of a row, F fine and C coarse codes of a row, P prompt
tokens, E width of the prompt's states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, never_written
from text_diffusers.pipelines.component_checks import check_words
from text_diffusers.pipelines.guidance import scales_by_row
from text_diffusers.pipelines.paraguide.steering import draw_tokens
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.two_level_vq.drafts import (
    Drafts,
    check_request,
    in_three,
    longest_text,
    plan_rows,
    prompt_ids,
    read_prompts,
    text_lengths,
    texts_asked_for,
)
from text_diffusers.pipelines.two_level_vq.levels import CodeCanvas, CodeCondition, CodeLevel, finite_scores

DECODED_AT_ONCE = 16_384  # tokens


@dataclass
class TwoLevelVQDiffusionPipelineOutput(BaseOutput):
    """Output of `TwoLevelVQDiffusionPipeline`.

    Attributes:
        texts: B strings without special tokens; `None` with `output_type="tokens"`.
        tokens: (B, max_new_tokens) ids of what was written, without the prompt, padded after the end of a text.
        plan: (B, C) coarse codes; `None` with one level.
        fine_codes: (B, F).
        accepted: whether `text_filter` let each text pass; all true without one.
    """

    texts: list[str] | None
    tokens: Tensor
    plan: Tensor | None
    fine_codes: Tensor
    accepted: list[bool]


class TwoLevelVQDiffusionPipeline(TextPipeline, DiffusionPipeline):
    """Text by diffusion over codes: `pipe()`, `pipe("A prompt")`, `pipe(plan=output.plan)`.

    A few coarse codes are written first, then the fine codes given these, and the autoencoder's decoder makes all
    tokens of both at once. With an autoencoder of one level there are fine codes only. A text ends
    at `[EOS]`; the mask and padding are never written.

    Args:
        tokenizer: any transformers tokenizer.
        autoencoder: an `AutoencoderVQTextModel`, or what has its `config`, `code_length`, `full_length` and `decode`.
        fine_denoiser, coarse_denoiser: each a `CodeTransformerModel`, or what has its `config` and is called like it.
        fine_scheduler, coarse_scheduler: each a token scheduler of absorbing noise, such as `D3PMAbsorbingScheduler`,
            whose mask is the last id of its denoiser; or diffusers' `BlockRefinementScheduler`.
        prompt_encoder: a `PromptEncoderModel`, or any encoder of transformers over the same tokens, such as
            `BertModel`, for denoisers that take its states.
        prompt_begins_text: whether texts continue their prompts, and are returned with them; else they are written
            from them.

    Raises:
        ValueError: if the components disagree.
    """

    model_cpu_offload_seq = "prompt_encoder->coarse_denoiser->fine_denoiser->autoencoder"
    # They use weights outside of the layers that hold them, where sequential offloading does not load these.
    _exclude_from_cpu_offload = ["coarse_denoiser", "fine_denoiser", "autoencoder"]
    _optional_components = ["coarse_denoiser", "coarse_scheduler", "prompt_encoder"]
    _callback_tensor_inputs = ["codes"]
    autoencoder: Any
    fine_denoiser: Any
    fine_scheduler: Any
    coarse_denoiser: Any
    coarse_scheduler: Any
    prompt_encoder: Any

    def __init__(
        self,
        tokenizer,
        autoencoder,
        fine_denoiser,
        fine_scheduler,
        coarse_denoiser=None,
        coarse_scheduler=None,
        prompt_encoder=None,
        prompt_begins_text: bool = False,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            autoencoder=autoencoder,
            fine_denoiser=fine_denoiser,
            fine_scheduler=fine_scheduler,
            coarse_denoiser=coarse_denoiser,
            coarse_scheduler=coarse_scheduler,
            prompt_encoder=prompt_encoder,
        )
        self.register_to_config(prompt_begins_text=prompt_begins_text)
        self._level: str | None = None
        if not any(part is None for part in (tokenizer, autoencoder, fine_denoiser, fine_scheduler)):
            self._check_components()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        max_new_tokens: int | None = None,
        num_coarse_steps: int = 32,
        num_fine_steps: int = 8,
        coarse_guidance_scale: float | list[float] = 1.0,
        fine_guidance_scale: float | list[float] = 1.0,
        plan: Any = None,
        fine_codes: str = "diffusion",
        temperature: float = 0.0,
        top_p: float | None = None,
        text_filter: Callable[[str], bool] | None = None,
        max_attempts: int = 3,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
    ) -> TwoLevelVQDiffusionPipelineOutput | tuple:
        """Write text.

        Args:
            prompt: the text or texts to continue or to write from; an empty one is no prompt. With
                `prompt_begins_text` the encoder reads the last tokens of one that is longer than it takes.
            max_new_tokens: the longest text in tokens, without its prompt; by default as long as the denoisers take,
                or as `plan`.
            num_coarse_steps, num_fine_steps: steps of each scheduler, and at most that many calls of its denoiser.
            coarse_guidance_scale, fine_guidance_scale: one, or one a text, of classifier-free guidance,
                `uncond + scale * (cond - uncond)`, both predictions from one call. The coarse condition is the prompt;
                the fine one is prompt and plan together. 1 is the conditional model itself, 0 the unconditional one.
            plan: (texts, C) coarse codes, or (1, C) for all texts; -1 or the id of their mask where they are to be
                written. The coarse denoiser is not called if all are given.
            fine_codes: "diffusion", or "one_shot" to take the likeliest code everywhere from one call.
            temperature: of the decoder; 0 takes the likeliest token everywhere.
            top_p: the decoder draws among the likeliest tokens that together reach this mass.
            text_filter: whether a text, as it would be returned, may be; one that may not is written again, its plan
                too where that was not given, by the next numbers of its own generator.
            max_attempts: how often a text is written at most; the last is returned, and not `accepted`.
            num_return_sequences: texts for each prompt or plan.
            generator: one generator, or one for each returned text. A text depends on its own generator, prompt and
                plan only, and its fine codes and tokens do not depend on whether its plan was given or written.
            output_type: "text" or "tokens".
            return_dict: return `TwoLevelVQDiffusionPipelineOutput`, else a tuple
                `(texts, tokens, plan, fine_codes, accepted)`.
            callback_on_step_end: called after each step of each level as `f(pipe, step, timestep, tensors)`, with
                `pipe.level` "coarse" or "fine"; may return new "codes" of that level. In a further attempt they are
                those of the refused texts only.
            callback_on_step_end_tensor_inputs: names of the tensors it gets; only "codes" is offered.

        Returns:
            `TwoLevelVQDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the models or the others, or the models' logits are not finite.
        """
        # 1. Check the inputs, and the components, which may have been changed
        self._check_components()
        counts = {"num_coarse_steps": num_coarse_steps, "num_fine_steps": num_fine_steps}
        counts |= {"max_attempts": max_attempts, "num_return_sequences": num_return_sequences}
        check_request(counts, prompt, max_new_tokens, fine_codes, temperature, top_p, text_filter)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        # 2. Encode the prompts and cover the codes that are to be written with masks
        scales = {"coarse": coarse_guidance_scale, "fine": fine_guidance_scale}
        drafts = self._prepare(prompt, plan, max_new_tokens, scales, num_return_sequences)
        generators = self._row_generators(generator, len(drafts.tokens))
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        fine_steps = num_fine_steps if fine_codes == "diffusion" else None
        for _ in range(max_attempts):
            rows = drafts.refused()
            if not rows:
                break
            draws = zip(*(in_three(generators[row]) for row in rows), strict=True)
            plan_draws, code_draws, token_draws = (list(stage) for stage in draws)
            # 3. Write the plan
            coarse = self._write_plan(drafts, rows, num_coarse_steps, plan_draws, callback)
            # 4. Write the fine codes
            fine = self._write_fine_codes(drafts, rows, coarse, fine_steps, code_draws, callback)
            # 5. Decode and cut each text at its end
            self._decode(drafts, rows, fine, coarse, temperature, top_p, token_draws)
            # 6. Ask the filter
            for row in rows:
                drafts.accepted[row] = text_filter is None or bool(text_filter(drafts.texts[row]))
        # 7. Return what was asked for
        self.maybe_free_model_hooks()
        texts = drafts.texts if output_type == "text" else None
        output = (texts, drafts.tokens, drafts.plan, drafts.fine_codes, drafts.accepted)
        return TwoLevelVQDiffusionPipelineOutput(*output) if return_dict else output

    @property
    def level(self) -> str | None:
        """The level, "coarse" or "fine", of the step that a callback is called after; `None` before any."""
        return self._level

    def _write_plan(
        self, drafts: Drafts, rows: list[int], num_steps: int, generators: list[torch.Generator], callback: tuple
    ) -> Tensor | None:
        """(rows, C) coarse codes; `None` with one level."""
        if drafts.coarse is None or drafts.plan is None:
            return None
        canvas = drafts.coarse.rows(rows)
        if canvas.editable.any():
            self._write("coarse", canvas, num_steps, generators, callback)
        drafts.plan[rows] = canvas.codes
        return canvas.codes

    def _write_fine_codes(
        self,
        drafts: Drafts,
        rows: list[int],
        coarse: Tensor | None,
        num_steps: int | None,
        generators: list[torch.Generator],
        callback: tuple,
    ) -> Tensor:
        """(rows, F) fine codes given the coarse ones (rows, C); without steps the likeliest."""
        canvas = drafts.fine.rows(rows)
        canvas.condition = replace(canvas.condition, context_ids=coarse)
        if num_steps is None:
            self._levels()["fine"].write_at_once(canvas)
        else:
            self._write("fine", canvas, num_steps, generators, callback)
        drafts.fine_codes[rows] = canvas.codes
        return canvas.codes

    def _write(
        self, name: str, canvas: CodeCanvas, num_steps: int, generators: list[torch.Generator], callback: tuple
    ):
        """Step `canvas.codes` of a level through its timesteps, calling back after each."""
        level, (call_back, tensors) = self._levels()[name], callback
        self._level = name
        timesteps = level.timesteps(num_steps, canvas.codes.device)
        with self.progress_bar(total=len(timesteps)) as bar:
            bar.set_description(f"{name} codes")
            for step, timestep in enumerate(timesteps):
                level.step(canvas, timestep, generators)
                if call_back is not None:
                    offered = {tensor: getattr(canvas, tensor) for tensor in tensors}
                    codes = (call_back(self, step, timestep, offered) or {}).get("codes", canvas.codes)
                    if codes.shape != canvas.codes.shape:
                        shapes = f"{tuple(canvas.codes.shape)}, got {tuple(codes.shape)}"
                        raise ValueError(f"`callback_on_step_end` must return {name} codes of {shapes}.")
                    canvas.codes = codes
                bar.update()
        if not ((canvas.codes >= 0) & (canvas.codes < level.mask_id)).all():
            raise ValueError(f"`{name}_scheduler` or the callback must leave {name} codes only, but there are others.")

    def _decode(
        self,
        drafts: Drafts,
        rows: list[int],
        fine: Tensor,
        coarse: Tensor | None,
        temperature: float,
        top_p: float | None,
        generators: list[torch.Generator],
    ):
        """Write the tokens and texts of some rows, by their fine codes (rows, F) and coarse codes (rows, C)."""
        tokenizer, length = self.tokenizer, drafts.tokens.shape[1]
        parts = []
        never = [*never_written(tokenizer), *range(len(tokenizer), self.autoencoder.config.vocab_size)]
        at_once = max(1, DECODED_AT_ONCE // length)  # the logits of all rows might not fit into memory
        for some in (slice(first, first + at_once) for first in range(0, len(rows), at_once)):
            logits = self.autoencoder.decode(fine[some], None if coarse is None else coarse[some])[:, :length]
            scores = finite_scores(logits, never, "autoencoder")  # (rows, L, V)
            if temperature == 0:
                parts.append(scores.argmax(dim=-1))
                continue
            everywhere = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
            drawn = draw_tokens(scores.flatten(0, 1) / temperature, everywhere, top_p or 1.0, generators[some])
            parts.append(drawn.view(everywhere.shape))
        tokens = torch.cat(parts)
        ends = tokens == next(iter(end_ids(tokenizer)), -1)
        tokens = tokens.masked_fill(ends.cumsum(dim=1) - ends.long() > 0, tokenizer.pad_token_id or 0)
        drafts.tokens[rows] = tokens
        whole = [
            drafts.prompts[row] * self.config.prompt_begins_text + ids
            for row, ids in zip(rows, tokens.tolist(), strict=True)
        ]
        for row, text in zip(rows, tokenizer.batch_decode(whole, skip_special_tokens=True), strict=True):
            drafts.texts[row] = text

    def _prepare(
        self, prompt: Any, plan: Any, max_new_tokens: int | None, scales: dict[str, Any], repeats: int
    ) -> Drafts:
        """The canvases of each row, and places for what is to be written."""
        device, levels = self._execution_device, self._levels()
        if "coarse" not in levels and (plan is not None or scales["coarse"] != 1):
            raise ValueError("`plan` and `coarse_guidance_scale` must be left as they are: there is one level only.")
        prompts, given = prompt_ids(self.tokenizer, prompt), None
        if plan is not None:  # (texts, C), or (1, C) for all
            given = plan_rows(plan, levels["coarse"].mask_id, device)
        longest_row = min(level.longest_row for level in levels.values())
        plan_length = None if given is None else given.shape[1]
        new_tokens, length = text_lengths(self.autoencoder, longest_row, max_new_tokens, plan_length)
        sizes = {"prompt": len(prompts), "plan": 1 if given is None else len(given)}
        count = texts_asked_for(sizes, scales)
        texts = [text for text in range(count) for _ in range(repeats)]
        prompt_of, plan_of = ([text if size > 1 else 0 for text in texts] for size in sizes.values())
        told = self._read(prompt, prompts).rows(prompt_of)
        canvases = {}
        for name, level in levels.items():
            known = given[plan_of] if name == "coarse" and given is not None else None
            by_row = scales_by_row(scales[name], count, repeats, f"{name}_guidance_scale")
            canvases[name] = level.canvas(length, known, told, by_row, device)
        coarse, fine = canvases.get("coarse"), canvases["fine"]
        return Drafts(
            prompts=[prompts[row] for row in prompt_of],
            coarse=coarse,
            fine=fine,
            plan=None if coarse is None else coarse.codes.clone(),
            fine_codes=fine.codes.clone(),
            tokens=torch.zeros(len(texts), new_tokens, dtype=torch.long, device=device),
            texts=[""] * len(texts),
            accepted=[False] * len(texts),
        )

    def _read(self, prompt: Any, prompts: list[list[int]]) -> CodeCondition:
        """What the denoisers are told of each prompt."""
        if prompt is None:
            return CodeCondition()
        if self.prompt_encoder is None:
            raise ValueError("`prompt` must be None: this pipeline has no `prompt_encoder`.")
        keep_last, padding = self.config.prompt_begins_text, self.tokenizer.pad_token_id or 0
        return read_prompts(self.prompt_encoder, prompts, keep_last, padding, self._execution_device)

    def _levels(self) -> dict[str, CodeLevel]:
        """The levels in the order in which they are written."""
        config, levels = self.autoencoder.config, {}
        if self.coarse_denoiser is not None:
            parts = self.coarse_denoiser, self.coarse_scheduler
            levels["coarse"] = CodeLevel("coarse", *parts, self.autoencoder.code_length)
        parts = self.fine_denoiser, self.fine_scheduler
        above = config.num_coarse_codes, config.coarse_ratio
        levels["fine"] = CodeLevel("fine", *parts, config.patch_length, *above)
        return levels

    def _check_components(self):
        config, encoder = self.autoencoder.config, self.prompt_encoder
        two = config.coarse_ratio is not None
        for name, part in (("coarse_denoiser", self.coarse_denoiser), ("coarse_scheduler", self.coarse_scheduler)):
            if (part is not None) != two:
                need = "must be given" if two else "must be None"
                raise ValueError(f"`{name}` {need}: the autoencoder has {'two levels' if two else 'one level'}.")
        for name, part in (("autoencoder", self.autoencoder), ("prompt_encoder", encoder)):
            if part is not None:
                check_words(self.tokenizer, name, part.config.vocab_size)
        if not isinstance(self.config.prompt_begins_text, bool):
            raise ValueError(f"`prompt_begins_text` must be true or false, got {self.config.prompt_begins_text!r}.")
        levels = self._levels()
        for name, level in levels.items():
            level.check(getattr(config, f"num_{name}_codes"))
        sizes = [level.prompt_size for level in levels.values() if level.prompt_size is not None]
        if encoder is not None and (not sizes or set(sizes) != {encoder.config.hidden_size}):
            raise ValueError(
                f"`prompt_encoder` has `hidden_size`={encoder.config.hidden_size}, which must be the `prompt_size` of "
                f"the denoisers that take prompts, got {sizes or 'none that does'}."
            )
        shortest = min(level.longest_row for level in levels.values())
        if not longest_text(self.autoencoder, shortest):
            raise ValueError(
                f"`autoencoder` needs rows of {self.autoencoder.full_length(1)} tokens, but the denoisers' "
                f"`max_length` allows {shortest}."
            )
