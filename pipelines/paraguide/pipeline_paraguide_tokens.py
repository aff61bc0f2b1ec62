"""ParaGuide over tokens: paraphrases by masked or uniform diffusion, steered as in `pipeline_paraguide`.

Shapes: B rows (texts times `num_return_sequences`), L sequence length, V vocabulary size, N open tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import never_written
from text_diffusers.common.validation import check_strings
from text_diffusers.pipelines.guidance import check_interval, guide, guided_condition
from text_diffusers.pipelines.paraguide.steering import Steering, draw_tokens, without_tokens
from text_diffusers.pipelines.text_batch import GuidedCanvas, written_ends
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipelineOutput
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion_cfg import TextDiffusionCFGPipeline


@dataclass
class SteeredCanvas(GuidedCanvas):
    """A canvas with what steers it."""

    steering: Steering = field(default_factory=Steering)


class TokenParaGuidePipeline(TextDiffusionCFGPipeline):
    """Paraphrases by diffusion over tokens: `pipe(source, controls=[CleanClassifierGuidance(...)])`.

    ParaGuide with the noise of tokens, which is ours. Under absorbing noise a revealed token is its own clean
    estimate, since a masked model says nothing of it, and the fresh noise may mask it again; under other kernels every
    token is predicted and drawn in each step. Classifier-free guidance, which strengthens the source, acts on the
    logits before the drift.

    The tokens of one step are drawn independently of each other, given those that were seen, and noised afresh. So
    the texts of an exact model, without a drift and with `top_p=1`, have the distribution of the data where tokens are
    independent, and otherwise near it as the number of steps grows.

    Args:
        tokenizer, lengths: as in `TextDiffusionPipeline`.
        denoiser: trained with `--source_column` to write a paraphrase of the source.
        scheduler: a token scheduler of this package, which is asked for its noise and its timesteps only; its own
            temperature, top_k and top_p are not used.
    """

    @torch.no_grad()
    def __call__(
        self,
        source: str | list[str],
        controls: Any = None,
        strength: float = 200.0,
        drift_steps: int = 3,
        temperature: float = 3.0,
        top_p: float = 0.8,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 200,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> TextDiffusionPipelineOutput | tuple:
        """Write paraphrases.

        Args:
            source, controls, strength, drift_steps, temperature, top_p: as in `ParaGuidePipeline`.
            negative_prompt, guidance_scale, guidance_start, guidance_stop, max_new_tokens, num_inference_steps,
                num_return_sequences, generator, output_type, return_dict, return_history, callback_on_step_end,
                callback_on_step_end_tensor_inputs: as in `TextDiffusionCFGPipeline`.

        Returns:
            `TextDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or predictions or gradients are not
                finite.
        """
        # 1. Check the inputs
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        steering = Steering(controls, strength, drift_steps, temperature, top_p)
        # 2. Encode the source and cover what is to be written with pure noise
        guidance = (negative_prompt, guidance_scale, (guidance_start, guidance_stop))
        texts = (max_new_tokens, num_return_sequences, generator)
        canvas, generators = self._begin_steered(source, steering, num_inference_steps, *guidance, *texts)
        # 3. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 4. Cut each text at its end and decode
        return self._decode(canvas, history, output_type, return_dict)

    @torch.no_grad()
    def stream(
        self,
        source: str | list[str],
        controls: Any = None,
        strength: float = 200.0,
        drift_steps: int = 3,
        temperature: float = 3.0,
        top_p: float = 0.8,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 200,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[list[str]]:
        """Yield the B texts after every step, the last of them finished; arguments and errors of `__call__`."""
        steering = Steering(controls, strength, drift_steps, temperature, top_p)
        guidance = (negative_prompt, guidance_scale, (guidance_start, guidance_stop))
        texts = (max_new_tokens, num_return_sequences, generator)
        yield from self._frames(*self._begin_steered(source, steering, num_inference_steps, *guidance, *texts))

    def _begin_steered(
        self,
        source: Any,
        steering: Steering,
        num_inference_steps: int,
        negative_prompt: Any,
        guidance_scale: float | list[float],
        interval: tuple[float, float],
        max_new_tokens: int | None,
        num_return_sequences: int,
        generator: Any,
    ) -> tuple[SteeredCanvas, list[torch.Generator]]:
        """The canvas at time 1 and one generator a row, if the inputs fit."""
        check_strings("source", source)
        self._check_inputs(None, None, None, num_return_sequences, max_new_tokens)
        self._check_controls(steering.controls, None, max_new_tokens)
        self._check_kernel()
        check_interval(*interval)
        guide_by = guided_condition(None, None, source, None, negative_prompt, None)
        self._token_scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        canvas, generators = self._prepare(
            prompt=None,
            text=None,
            mask=None,
            class_labels=None,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
            generator=generator,
            source=source,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            interval=interval,
            guide_by=guide_by,
            controls=steering.controls,
        )
        return SteeredCanvas(**vars(canvas), steering=steering), generators

    def _step(self, canvas: SteeredCanvas, timestep: float, generators: list[torch.Generator]):
        """Draw clean tokens at `timestep`, and noise them for the next, less noisy time."""
        scheduler, positions = self._token_scheduler, self._open(canvas)
        cond, uncond = self._predict_both(canvas, timestep, positions)  # (N, V)
        logits = cond if uncond is None else guide(cond, uncond, self._scales(canvas)[positions.nonzero()[:, 0]])
        logits = self._clean_logits(canvas, logits, timestep, positions)
        state = self._state(canvas, timestep, positions, positions)
        logits = canvas.steering.steer(logits, state, written_ends(canvas), self._eos_token_id)
        drawn = draw_tokens(logits, positions, canvas.steering.top_p, generators)
        canvas.tokens = canvas.tokens.masked_scatter(positions, drawn)
        canvas.steps_done += 1
        if canvas.steps_done < len(scheduler.timesteps):
            following = scheduler.timesteps[canvas.steps_done].item()
            noisy = scheduler.add_noise(canvas.tokens, following, generators)
            canvas.tokens = torch.where(canvas.editable, noisy, canvas.tokens)

    def _clean_logits(self, canvas: SteeredCanvas, logits: Tensor, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) logits of p(x_0 | x_t) at the positions, of tokens that a text may have only."""
        scheduler = self._token_scheduler
        noised_from = scheduler.config.get("vocab_size") or logits.shape[-1]
        logits = without_tokens(logits, [*never_written(self.tokenizer), *range(noised_from, logits.shape[-1])])
        if self._leaves_itself_out:  # q(x_t | x_0) of uniform noise is the same in both directions
            said = scheduler.transition(canvas.tokens[positions], timestep).log().to(logits)
            logits = torch.cat([logits[:, :noised_from] + said, logits[:, noised_from:]], dim=-1)
        return logits

    @property
    def _leaves_itself_out(self) -> bool:
        """Whether what the model predicts of a token leaves out what its noisy value says."""
        scheduler = self._token_scheduler
        return scheduler.corruption != "absorbing" and scheduler.config.get("reverse_rule") == "plug_in"

    def _check_kernel(self):
        scheduler, name = self._token_scheduler, type(self.scheduler).__name__
        if not hasattr(scheduler, "add_noise"):
            raise ValueError(
                "`scheduler` must have `add_noise`, with which every step ends, such as D3PMAbsorbingScheduler or "
                f"D3PMUniformScheduler, got {name}."
            )
        if self._leaves_itself_out and scheduler.corruption != "uniform":
            raise ValueError(
                f'`scheduler` must have `reverse_rule="marginal"` or uniform noise, got {name} with "plug_in".'
            )
