"""Generate text by two levels of diffusion over the codes of an autoencoder: a plan, its detail, then all tokens.

Shapes: B rows (texts times `num_return_sequences`), L tokens of a row, F fine and C coarse codes of a row, V
vocabulary size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.randomness import row_generators
from text_diffusers.common.token_ids import never_written, padding_id
from text_diffusers.common.validation import as_plain, require
from text_diffusers.pipelines.call_state import CallAttribute, CallScheduler
from text_diffusers.pipelines.calls.steps import Steps, runs_to_its_end, texts_of_each_step
from text_diffusers.pipelines.component_checks import check_words
from text_diffusers.pipelines.paraguide.steering import draw_tokens
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.text_batch import TextBatch, lay_out, repeat_rows, text_before
from text_diffusers.pipelines.text_inputs import text_generators
from text_diffusers.pipelines.two_level_vq.code_inputs import (
    CodeInputs,
    longest_text,
    plan_rows,
    prompt_ids,
    read_prompts,
    text_lengths,
)
from text_diffusers.pipelines.two_level_vq.levels import CodeLevel, finite_scores

# Tokens whose logits are computed together: those of all rows might not fit into memory.
DECODED_AT_ONCE = 16_384


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

    texts: list[str]
    tokens: Tensor
    plan: Tensor | None
    fine_codes: Tensor
    accepted: list[bool]


class TwoLevelVQDiffusionPipeline(TextPipeline, DiffusionPipeline):
    """Text by diffusion over codes: `pipe()`, `pipe("A prompt")`, `pipe(plan=output.plan)`.

    A few coarse codes are written first, then the fine codes given these, and the autoencoder's decoder makes all
    tokens of both at once. With an autoencoder of one level there are fine codes only. A text ends
    at `[EOS]`; the mask and padding are never written.

    `stream` yields after each step of either level, and once more at the end. Codes are no text until the decoder has
    read all of them, so a text that is still being written is shown as the prompt that it begins with, if any.

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

    Example:
        >>> from text_diffusers import AutoencoderVQTextModel, CodeTransformerModel, D3PMAbsorbingScheduler
        >>> from text_diffusers import TextDiffusionPipeline, TwoLevelVQDiffusionPipeline
        >>> tokenizer = TextDiffusionPipeline.from_pretrained("chat-and-novels").tokenizer
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2}
        >>> pipe = TwoLevelVQDiffusionPipeline(
        ...     tokenizer,
        ...     AutoencoderVQTextModel(len(tokenizer), patch_length=2, coarse_ratio=4, **sizes).eval(),
        ...     CodeTransformerModel(513, max_length=16, num_context_codes=256, context_ratio=4, **sizes).eval(),
        ...     D3PMAbsorbingScheduler(512),
        ...     CodeTransformerModel(257, max_length=4, **sizes).eval(),
        ...     D3PMAbsorbingScheduler(256),
        ... )
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe(max_new_tokens=20, num_inference_steps=(2, 3))
        >>> output.plan.shape, output.fine_codes.shape, output.tokens.shape
        (torch.Size([1, 3]), torch.Size([1, 12]), torch.Size([1, 20]))
    """

    kind = "codes"
    accepted_inputs = ("prompt", "plan", "guidance_scale")
    model_cpu_offload_seq = "prompt_encoder->coarse_denoiser->fine_denoiser->autoencoder"
    # They use weights outside of the layers that hold them, where sequential offloading does not load these.
    _exclude_from_cpu_offload = ["coarse_denoiser", "fine_denoiser", "autoencoder"]
    _optional_components = ["coarse_denoiser", "coarse_scheduler", "prompt_encoder"]
    _callback_tensor_inputs = ["codes"]
    autoencoder: Any
    fine_denoiser: Any
    coarse_denoiser: Any
    prompt_encoder: Any

    # Of a call; the level is the one that is being written.
    fine_scheduler: Any = CallScheduler()
    coarse_scheduler: Any = CallScheduler()
    _level: Any = CallAttribute(default=None)

    def __init__(
        self,
        tokenizer: Any,
        autoencoder: Any,
        fine_denoiser: Any,
        fine_scheduler: Any,
        coarse_denoiser: Any = None,
        coarse_scheduler: Any = None,
        prompt_encoder: Any = None,
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

        # diffusers may load a pipeline with parts left out, which then cannot be checked.
        if not any(
            part is None for part in (tokenizer, autoencoder, fine_denoiser, fine_scheduler)
        ):
            self._check_components()

    @runs_to_its_end
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int | tuple[int, int] = (32, 8),
        guidance_scale: float | list[float] | tuple[float | list[float], float | list[float]] = 1.0,
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
    ) -> Steps[TwoLevelVQDiffusionPipelineOutput]:
        """Write text.

        Args:
            prompt: the text or texts to continue or to write from; an empty one is no prompt. With
                `prompt_begins_text` the encoder reads the last tokens of one that is longer than it takes.
            max_new_tokens: the longest text in tokens, without its prompt; by default as long as the denoisers take,
                or as `plan`.
            num_inference_steps: steps of each scheduler, and at most that many calls of its denoiser; one number for
                both levels, or a pair (coarse, fine). With one level the fine one counts.
            guidance_scale: of classifier-free guidance, `uncond + scale * (cond - uncond)`, both predictions from one
                call: a number, or a list with one a text, for all levels; or for two levels a tuple (coarse, fine) of
                these. The coarse condition is the prompt; the fine one is prompt and plan together. 1 is the
                conditional model itself, 0 the unconditional one.
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
                those of the refused texts only. If it ends the call by `pipe._interrupt = True`, the codes that are
                left take their likeliest values.
            callback_on_step_end_tensor_inputs: names of the tensors it gets; only "codes" is offered.

        Returns:
            `TwoLevelVQDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the models or the others, or the models' logits are not finite.
            TypeError: if `generator` is none of torch, such as a seed.
        """
        # 1. Check the inputs, and the components, which may have been changed
        self._check_components()
        self._check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        inputs = CodeInputs(
            prompt=prompt,
            plan=plan,
            max_new_tokens=max_new_tokens,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            fine_codes=fine_codes,
            temperature=temperature,
            top_p=top_p,
            text_filter=text_filter,
            max_attempts=max_attempts,
            num_return_sequences=num_return_sequences,
        )

        self._guidance_scale = guidance_scale

        # 2. Lay out the texts, blank yet, and the codes of each level, covered with masks
        levels = self.levels
        batch, codes = self._prepare(inputs, levels)
        # One a text; each attempt goes on with the next numbers of it.
        generators = text_generators(generator, len(batch.tokens))
        call_back = partial(
            self.call_back, callback_on_step_end, callback_on_step_end_tensor_inputs
        )

        # The one call for all codes is no step of a scheduler.
        if fine_codes == "one_shot":
            codes["fine"].num_steps = 0
        self._num_timesteps = sum(level_codes.num_steps for level_codes in codes.values())

        # Texts that the filter refuses are written again, from blank rows and masks.
        blank = batch.tokens.clone()
        texts = [""] * len(blank)
        accepted = [False] * len(blank)
        for _ in range(max_attempts):
            # Accepted texts stay as they are.
            rows = [row for row, is_accepted in enumerate(accepted) if not is_accepted]
            if not rows:
                break
            batch.tokens[rows] = blank[rows]  # `stream` shows no text that was refused

            # Each stage draws from a generator of its own, so that none depends on what the others draw.
            stages = zip(*[row_generators(generators[row], 3) for row in rows], strict=True)
            plan_generators, code_generators, token_generators = map(list, stages)

            # 3. Write the plan
            plan_codes = None
            if "coarse" in levels:
                coarse = levels["coarse"].masked_rows(codes["coarse"], rows, plan_generators)
                # A plan that is given in full costs no call.
                if coarse.editable.any():
                    take_scale = partial(
                        self._take_level_scale, levels["coarse"], codes["coarse"], rows
                    )
                    for _ in self._write_level(levels["coarse"], coarse, take_scale, call_back):
                        yield batch  # to `stream`, as blank as before
                plan_codes = coarse.tokens
                codes["coarse"].tokens[rows] = plan_codes

            # 4. Write the fine codes
            fine = levels["fine"].masked_rows(codes["fine"], rows, code_generators)
            if plan_codes is not None:
                # The fine denoiser is told the plan as it was written.
                fine.condition["context_ids"] = plan_codes
            take_scale = partial(self._take_level_scale, levels["fine"], codes["fine"], rows)
            # A call that is ended while it writes the plan takes no more steps.
            if fine_codes == "one_shot" or self.interrupt:
                take_scale(fine)
                fine.tokens = levels["fine"].likeliest_codes(fine)
            else:
                for _ in self._write_level(levels["fine"], fine, take_scale, call_back):
                    yield batch
            codes["fine"].tokens[rows] = fine.tokens

            # 5. Decode, and cut each text at its end
            drawn = self._decode(
                fine.tokens,
                plan_codes,
                # All rows have equally many blanks.
                num_tokens=int(batch.editable[0].sum()),
                temperature=temperature,
                top_p=top_p,
                generators=token_generators,
            )
            batch.tokens[rows] = blank[rows].masked_scatter(batch.editable[rows], drawn)
            texts = self.texts_so_far(batch)

            # 6. Ask the filter
            for row in rows:
                accepted[row] = text_filter is None or bool(text_filter(texts[row]))
            if self.interrupt:
                break

        # Once more, since the last step of a level comes before its codes are decoded.
        yield batch

        # 7. Return what was asked for
        self.maybe_free_model_hooks()
        outputs: dict[str, Any] = {
            "texts": texts if output_type == "text" else None,
            "tokens": self.finished_tokens(batch)[batch.editable].view(len(texts), -1),
            "plan": codes["coarse"].tokens if "coarse" in levels else None,
            "fine_codes": codes["fine"].tokens,
            "accepted": accepted,
        }
        if not return_dict:
            return cast(Any, tuple(outputs.values()))
        return TwoLevelVQDiffusionPipelineOutput(**outputs)

    stream = texts_of_each_step(__call__)

    # Steps

    def _write_level(
        self, level: CodeLevel, batch: TextBatch, take_scale: Callable, call_back: Callable
    ) -> Iterator[TextBatch]:
        """Step the codes of a batch through the timesteps of their level, and yield it after each."""
        self._level = level.name
        timesteps = level.timesteps(batch.num_steps, batch.tokens.device)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            progress_bar.set_description(f"{level.name} codes")
            for step, timestep in enumerate(timesteps):
                take_scale(batch)
                batch.tokens = level.step(batch, timestep)
                batch.steps_done += 1
                call_back(batch, step, timestep)
                progress_bar.update()
                yield batch
                if self.interrupt:
                    # What is left is written by one more call, as the decoder needs all codes.
                    batch.tokens = level.likeliest_codes(batch, timestep)
                    break

        # A callback may have put masks or unknown ids there, for which there are no vectors.
        is_code = (batch.tokens >= 0) & (batch.tokens < level.mask_id)
        if not is_code.all():
            raise ValueError(
                f"`{level.name}_scheduler` or the callback must leave {level.name} codes only, but there are others."
            )

    def _take_level_scale(
        self, level: CodeLevel, codes: TextBatch, rows: list[int], batch: TextBatch
    ):
        """Guide a batch, which is these rows of all `codes` of its level, by the scale that a callback has set."""
        if self._guidance_scale is not codes.guidance_scale:
            inputs = CodeInputs(guidance_scale=as_plain(self._guidance_scale))
            if self.coarse_denoiser is None:
                inputs.refuse_two_levels()
            level.set_guidance_scale(codes, inputs.scales[level.name])
            codes.guidance_scale = self._guidance_scale
            batch.scales = codes.scales[rows]

    def _callback_tensor(self, batch: TextBatch, name: str) -> Tensor:
        return batch.tokens  # of a level, which are offered as "codes"

    def _accept_tensors(self, batch: TextBatch, changed: dict[str, Tensor]):
        codes = changed.get("codes", batch.tokens)
        if codes.shape != batch.tokens.shape:
            raise ValueError(
                f"`callback_on_step_end` must return {self.level} codes of {tuple(batch.tokens.shape)}, "
                f"got {tuple(codes.shape)}."
            )
        batch.tokens = codes

    def _decode(
        self,
        fine_codes: Tensor,
        plan_codes: Tensor | None,
        *,
        num_tokens: int,
        temperature: float,
        top_p: float | None,
        generators: list[torch.Generator],
    ) -> Tensor:
        """(rows, num_tokens) tokens that fine codes (rows, F) and coarse codes (rows, C) stand for."""
        vocab_size = self.autoencoder.config.vocab_size
        # The decoder may have more logits than the tokenizer has tokens.
        excluded_ids = [*never_written(self.tokenizer), *range(len(self.tokenizer), vocab_size)]
        rows_at_once = max(1, DECODED_AT_ONCE // num_tokens)
        decoded = []
        for first in range(0, len(fine_codes), rows_at_once):
            part = slice(first, first + rows_at_once)
            plan_part = None if plan_codes is None else plan_codes[part]
            logits = self.autoencoder.decode(fine_codes[part], plan_part)[:, :num_tokens]
            scores = finite_scores(logits, excluded_ids, component="autoencoder")  # (rows, L, V)
            if temperature == 0:
                decoded.append(scores.argmax(dim=-1))
                continue

            # Every token is drawn, each row by its own generator.
            positions = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
            scores = scores.flatten(0, 1) / temperature  # (N, V)
            drawn = draw_tokens(scores, positions, top_p or 1.0, generators[part])
            decoded.append(drawn.view(positions.shape))
        return torch.cat(decoded)

    # Rows

    def _prepare(
        self, inputs: CodeInputs, levels: dict[str, CodeLevel]
    ) -> tuple[TextBatch, dict[str, TextBatch]]:
        """Rows of tokens, and rows of codes of each level, as they are before anything is written."""
        if "coarse" not in levels:
            inputs.refuse_two_levels()

        # What is known of each text: its prompt, its plan, and the length of its row
        device = self._execution_device
        pad_token_id = padding_id(self.tokenizer)
        begins_text = self.config.prompt_begins_text
        prompts = prompt_ids(self.tokenizer, inputs.prompt)
        plan = None
        num_plans = 1
        if inputs.plan is not None:
            plan = plan_rows(inputs.plan, levels["coarse"].mask_id, device)
            num_plans = len(plan)
        limit = self.max_length
        num_tokens, row_length = text_lengths(self.autoencoder, limit, inputs.max_new_tokens, plan)

        # A single prompt or plan is that of all texts; copies of a text stand next to each other.
        repeats = inputs.num_return_sequences
        num_texts = inputs.num_texts(len(prompts), num_plans)
        text_indices = repeat_rows(range(num_texts), repeats)
        prompt_indices = [text % len(prompts) for text in text_indices]
        plan_indices = [text % num_plans for text in text_indices]

        # Each prompt is read once, by itself if it stands for several texts.
        condition = {}
        if self.prompt_encoder is None:
            if any(prompts):
                raise ValueError(
                    "`prompt` must be None or empty: this pipeline has no `prompt_encoder`."
                )
        elif inputs.prompt is not None:
            states = read_prompts(
                self.prompt_encoder, prompts, begins_text, pad_token_id=pad_token_id, device=device
            )
            condition = {name: values[prompt_indices] for name, values in states.items()}

        # Codes of each level, masks wherever they are to be written
        codes = {}
        for name, level in levels.items():
            if name == "coarse" and plan is not None:
                level_codes = plan[plan_indices]
            else:
                shape = (len(text_indices), row_length // level.code_length)
                level_codes = torch.full(shape, level.mask_id, device=device)
            codes[name] = level.new_batch(level_codes, condition, inputs.steps[name], repeats)
            codes[name].guidance_scale = inputs.guidance_scale
            level.set_guidance_scale(codes[name], inputs.scales[name])

        # Tokens, blank until the codes are decoded
        beginnings = [prompts[index] if begins_text else [] for index in prompt_indices]
        blanks = [None] * num_tokens
        batch = lay_out([[*beginning, *blanks] for beginning in beginnings], pad_token_id, device)
        batch.ends_at_eos = True
        batch.starts = [0] * len(beginnings)

        # A text that its prompt does not begin is returned by itself.
        given = [inputs.prompt] if isinstance(inputs.prompt, str) else inputs.prompt or [""]
        batch.given_texts = [
            text_before(given[index] if begins_text else "", beginning)
            for index, beginning in zip(prompt_indices, beginnings, strict=True)
        ]
        return batch, codes

    # Components

    @property
    def levels(self) -> dict[str, CodeLevel]:
        """The levels by name, in the order in which they are written."""
        config = self.autoencoder.config
        levels = {}
        if self.coarse_denoiser is not None:
            levels["coarse"] = CodeLevel(
                name="coarse",
                denoiser=self.coarse_denoiser,
                scheduler=self.coarse_scheduler,
                num_codes=config.num_coarse_codes,
                code_length=self.autoencoder.code_length,
            )
        levels["fine"] = CodeLevel(
            name="fine",
            denoiser=self.fine_denoiser,
            scheduler=self.fine_scheduler,
            num_codes=config.num_fine_codes,
            code_length=config.patch_length,
            num_context_codes=config.num_coarse_codes,
            context_ratio=config.coarse_ratio,
        )
        return levels

    @property
    def level(self) -> str | None:
        """The level, "coarse" or "fine", of the step that a callback is called after; `None` before any."""
        return self._level

    @property
    def max_length(self) -> int:
        """The longest row in tokens that the autoencoder and every denoiser take; 0 if there is none."""
        limit = min(level.longest_row for level in self.levels.values())
        return longest_text(self.autoencoder, limit)

    @property
    def scheduler_names(self) -> tuple[str, ...]:
        """The components that hold a scheduler, one for each level."""
        return tuple(f"{name}_scheduler" for name in self.levels)

    @property
    def label_names(self) -> list[str | None]:
        """Empty: there are no class labels."""
        return []

    def _check_components(self):
        config = self.autoencoder.config
        encoder = self.prompt_encoder
        has_two = config.coarse_ratio is not None
        needed = (
            "given: the autoencoder has two levels"
            if has_two
            else "None: the autoencoder has one level"
        )
        for name in ("coarse_denoiser", "coarse_scheduler"):
            is_given = getattr(self, name) is not None
            if is_given != has_two:
                raise ValueError(f"`{name}` must be {needed}.")
        check_words(self.tokenizer, "autoencoder", config.vocab_size)
        if encoder is not None:
            check_words(self.tokenizer, "prompt_encoder", encoder.config.vocab_size)
        begins_text = self.config.prompt_begins_text
        require(isinstance(begins_text, bool), "prompt_begins_text", "true or false", begins_text)

        levels = self.levels.values()
        for level in levels:
            level.check()

        # Denoisers look at the states of the encoder, so both have one width.
        sizes = [level.prompt_size for level in levels if level.prompt_size is not None]
        if encoder is not None and set(sizes) != {encoder.config.hidden_size}:
            raise ValueError(
                f"`prompt_encoder` has `hidden_size`={encoder.config.hidden_size}, which must be the `prompt_size` of "
                f"the denoisers that take prompts, got {sizes or 'none that does'}."
            )

        # Not even a text of one token would fit.
        if not self.max_length:
            limit = min(level.longest_row for level in levels)
            raise ValueError(
                f"`autoencoder` needs rows of {self.autoencoder.full_length(1)} tokens, but the denoisers' "
                f"`max_length` allows {limit}."
            )
