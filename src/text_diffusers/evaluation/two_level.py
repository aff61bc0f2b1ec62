"""The bound of texts that the models of two-level diffusion reach together, in nats per token of text.

The autoencoder gives a text x one sequence of coarse codes and one of fine codes, so
-log p(x) <= -log p(coarse) - log p(fine | coarse) - log p(x | coarse, fine). Absorbing diffusion bounds the first two
terms, the third is the decoder's cross-entropy. With one level there are no coarse codes.

Shapes: B batch, V vocabulary size, L tokens of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset

from text_diffusers.data.code_rows import code_rows
from text_diffusers.data.rows import unknown_tokens
from text_diffusers.evaluation.bounds import CONDITIONS
from text_diffusers.evaluation.estimates import BoundEstimate, count_tokens, ratio_error
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.evaluation.modules import device_of
from text_diffusers.evaluation.reconstruction import small_batches
from text_diffusers.models.prompted_denoiser import PromptedDenoiser


@dataclass
class TwoLevelBound:
    """The bound of texts and its terms, in nats per counted token of text.

    Attributes:
        coarse: bound of the coarse codes; None with one level.
        fine: bound of the fine codes, given the coarse ones.
        decoder: cross-entropy of the tokens, given their codes.
        standard_error: of the sum: at most the sum of the errors of the terms, which this is.
        fine_with_shuffled_plans: bound of the fine codes, given the coarse ones of another text.
        fine_without_plans: bound of the fine codes, given neither coarse ones nor prompts: training shows no prompt
            without a plan.

    Example:
        >>> from text_diffusers.evaluation.two_level import TwoLevelBound
        >>> bound = TwoLevelBound(coarse=0.25, fine=2.0, decoder=0.5, standard_error=0.01)
        >>> bound.total.bound
        2.75
    """

    coarse: float | None
    fine: float
    decoder: float
    standard_error: float
    fine_with_shuffled_plans: float | None = None
    fine_without_plans: float | None = None

    @property
    def total(self) -> BoundEstimate:
        return BoundEstimate(
            (self.coarse or 0.0) + self.fine + self.decoder, self.standard_error, []
        )

    def metrics(self) -> dict[str, float]:
        """The terms, for metrics.json."""
        terms = {
            "coarse_bound": self.coarse,
            "fine_bound": self.fine,
            "decoder_cross_entropy": self.decoder,
            "fine_bound_with_shuffled_plans": self.fine_with_shuffled_plans,
            "fine_bound_without_plans": self.fine_without_plans,
        }
        return {name: nats for name, nats in terms.items() if nats is not None}

    def table(self) -> str:
        """The terms, a line each, to be printed."""
        lines = []
        # With one level there is no plan.
        if self.coarse is not None:
            lines.append(f"coarse codes       {self.coarse:.3f} nats per token")
        fine = f"fine codes         {self.fine:.3f} nats per token"
        if self.fine_with_shuffled_plans is not None and self.fine_without_plans is not None:
            fine += f"; {self.fine_with_shuffled_plans:.3f} with the coarse codes of another text"
            fine += f", {self.fine_without_plans:.3f} told nothing"
        decoder = f"decoder            {self.decoder:.3f} nats per token"
        return "\n".join([*lines, fine, decoder])


def estimate_two_level_bound(
    pipe: Any,
    rows: Dataset,
    num_times: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: Any = None,
) -> TwoLevelBound:
    """Upper bound of -log p of rows of text, given their prompts if they have any, by Monte Carlo over the noise.

    Args:
        pipe: a `TwoLevelVQDiffusionPipeline` whose schedulers have a bound.
        rows: from `text_rows`.
        num_times, batch_size, seed, accelerator: as in `estimate_bound`.
    """
    # Prompts count only if the rows have them; a pipeline may write without.
    autoencoder = pipe.autoencoder
    prompt_encoder = pipe.prompt_encoder if "prompt_ids" in rows.column_names else None

    def level_bound(level: str, codes: Dataset) -> BoundEstimate:
        model = PromptedDenoiser(getattr(pipe, f"{level}_denoiser"), prompt_encoder).eval()
        scheduler = getattr(pipe, f"{level}_scheduler")
        estimate = estimate_bound(model, scheduler, codes, num_times, batch_size, seed, accelerator)
        return per_token(estimate, codes, rows)

    # 1. The bound: fine codes and decoder, and with two levels the coarse codes
    fine_rows = code_rows(autoencoder, rows, "fine")
    fine = level_bound("fine", fine_rows)
    decoder = decoder_cross_entropy(autoencoder, rows)
    bound = TwoLevelBound(
        coarse=None,
        fine=fine.bound,
        decoder=decoder.bound,
        standard_error=fine.standard_error + decoder.standard_error,
    )
    if autoencoder.config.coarse_ratio is None:
        return bound
    coarse = level_bound("coarse", code_rows(autoencoder, rows, "coarse"))
    bound.coarse = coarse.bound
    bound.standard_error += coarse.standard_error

    # 2. The same fine codes with less to go by: the difference is the worth of the plans
    bound.fine_with_shuffled_plans = level_bound("fine", with_plans_of_others(fine_rows)).bound
    conditions = [name for name in CONDITIONS if name in fine_rows.column_names]
    bound.fine_without_plans = level_bound("fine", fine_rows.remove_columns(conditions)).bound
    return bound


def per_token(estimate: BoundEstimate, codes: Dataset, rows: Dataset) -> BoundEstimate:
    """A bound in nats per code of the rows `codes` in nats per counted token of the rows of text that they are of."""
    # A row of codes has another length than its row of text, and rows of text have padding.
    num_codes = len(codes) * len(codes[0]["input_ids"])
    return estimate.recounted(num_codes / count_tokens(rows))


@torch.no_grad()
def decoder_cross_entropy(autoencoder: Any, rows: Dataset) -> BoundEstimate:
    """Of the counted tokens given their codes, in nats per token; its error is that of other rows."""
    # 1. Nats and tokens of each row
    device = device_of(autoencoder)
    nats = []
    counts = []
    for batch in small_batches(rows):
        tokens = batch["input_ids"].to(device)
        counted = unknown_tokens(batch).to(device)
        codes = autoencoder.encode(tokens)
        logits = autoencoder.decode(codes.fine, codes.coarse).transpose(1, 2)  # (B, V, L)
        losses = F.cross_entropy(logits.float(), tokens, reduction="none") * counted  # (B, L)
        nats.append(losses.double().sum(dim=1).cpu())
        counts.append(counted.double().sum(dim=1).cpu())

    # 2. Per token, with the error of a ratio, which a single row leaves unknown
    row_nats = torch.cat(nats)
    row_tokens = torch.cat(counts)
    return BoundEstimate(
        float(row_nats.sum() / row_tokens.sum()), ratio_error(row_nats, row_tokens), []
    )


def with_plans_of_others(rows: Dataset) -> Dataset:
    """Rows of fine codes that are told the coarse ones of the row half the data set away: neighbours are alike."""
    plans = rows["context_ids"][:]
    half = max(1, len(rows) // 2)
    return rows.remove_columns("context_ids").add_column("context_ids", plans[half:] + plans[:half])
