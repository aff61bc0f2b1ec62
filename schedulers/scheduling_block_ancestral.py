"""Ancestral sampling of absorbing diffusion under the contract of diffusers' `BlockRefinementScheduler`.

So it drives diffusers' `LLaDA2Pipeline`, which writes block after block: within a block tokens are revealed at random
times instead of by their confidence.

Shapes: B batch, L tokens of a block, V vocabulary size, N revealed positions.
"""

from typing import Any

import torch
from diffusers import BlockRefinementScheduler
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput
from torch import Tensor

from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler


class BlockAncestralScheduler(StockLoading, BlockRefinementScheduler):
    """`D3PMAbsorbingScheduler` with the linear noise schedule inside `LLaDA2Pipeline`: MDLM within each block.

    Block diffusion with this reverse process is BD3LM (https://arxiv.org/abs/2503.09573). Steps are counted upwards
    from 0 in each block, as diffusers does; step i of n starts at time 1 - i / n, and the last one reveals whatever
    is still masked. Tokens once revealed stay, so there is no editing. Arguments and everything but `step` are those
    of `BlockRefinementScheduler`; of the former only `block_length` and `num_inference_steps` matter.

    Example:
        >>> import torch
        >>> from text_diffusers import BlockAncestralScheduler
        >>> scheduler = BlockAncestralScheduler()
        >>> scheduler.set_timesteps(4)
        >>> block = torch.full((2, 6), 9)
        >>> for step in range(4):
        ...     logits = torch.randn(2, 6, 10)  # of a denoiser
        ...     block = scheduler.step(logits, step, block, mask_token_id=9, temperature=1.0).prev_sample
        >>> block.shape, bool((block == 9).any())
        (torch.Size([2, 6]), False)
    """

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [BlockRefinementScheduler, BlockAncestralScheduler]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple:
        """Reveal each masked token of the block with probability 1 / (n - i).

        Args:
            model_output: (B, L, V) logits of clean tokens.
            timestep: the index i of the step; from n on nothing changes.
            sample: (B, L) tokens, not changed.
            mask_token_id: never predicted.
            temperature, top_p, top_k: shape the predictions; at 0, or with "greedy", the most probable token is taken.
            sampling_method: "auto", "greedy" or "multinomial".
            threshold, editing_threshold, minimal_topk, prompt_mask: without effect.
            generator: for all rows.

        Returns:
            As in diffusers: `transfer_index` are the revealed positions, `sampled_probs` the shaped probabilities of
            their tokens, 0 elsewhere.
        """
        if sampling_method == "greedy":
            temperature = 0.0
        # The settings come with the call, and a scheduler is cheap to make.
        ancestral = D3PMAbsorbingScheduler(
            mask_token_id, temperature=temperature, top_k=top_k, top_p=top_p
        )
        ancestral.set_timesteps(self.num_inference_steps)

        # From step n on there is nothing left to reveal.
        prev_sample = sample
        positions = torch.zeros_like(sample, dtype=torch.bool)
        if int(timestep) < self.num_inference_steps:
            time = float(ancestral.timesteps[int(timestep)])
            positions = ancestral.select(time, sample, generator)
            logits = model_output[positions]  # (N, V)
            stepped: Any = ancestral.step(
                logits, time, sample, positions=positions, generator=generator
            )
            prev_sample = stepped.prev_sample

        # How probable the revealed tokens were.
        weights = ancestral._weights(model_output[positions])
        revealed = prev_sample[positions].long().unsqueeze(1)  # (N, 1)
        probs = weights.gather(1, revealed).squeeze(1) / weights.sum(dim=1)
        sampled_probs = torch.zeros(sample.shape, dtype=probs.dtype, device=probs.device)
        sampled_probs[positions] = probs

        # Nothing is edited, and only revealed tokens were sampled.
        fields: dict[str, Any] = {
            "prev_sample": prev_sample,
            "transfer_index": positions,
            "editing_transfer_index": torch.zeros_like(positions),
            "sampled_tokens": prev_sample,
            "sampled_probs": sampled_probs,
            "pred_logits": model_output,
        }
        output = BlockRefinementSchedulerOutput(**fields)
        return output if return_dict else output.to_tuple()
