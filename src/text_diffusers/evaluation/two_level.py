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

from text_diffusers.evaluation.bounds import CONDITIONS
from text_diffusers.evaluation.likelihood import BoundEstimate, estimate_bound
from text_diffusers.training.autoencoder import small_batches
from text_diffusers.training.codes import PromptedDenoiser, code_rows


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
    """

    coarse: float | None
    fine: float
    decoder: float
    standard_error: float
    fine_with_shuffled_plans: float | None
    fine_without_plans: float | None

    @property
    def total(self) -> BoundEstimate:
        return BoundEstimate((self.coarse or 0.0) + self.fine + self.decoder, self.standard_error, [])

    def metrics(self) -> dict[str, float]:
        """The terms, for metrics.json."""
        terms = {"coarse_bound": self.coarse, "fine_bound": self.fine, "decoder_cross_entropy": self.decoder}
        terms["fine_bound_with_shuffled_plans"] = self.fine_with_shuffled_plans
        terms["fine_bound_without_plans"] = self.fine_without_plans
        return {name: nats for name, nats in terms.items() if nats is not None}

    def table(self) -> str:
        """The same, to be printed."""
        lines = [] if self.coarse is None else [f"coarse codes       {self.coarse:.3f} nats per token"]
        lines += [f"fine codes         {self.fine:.3f} nats per token"]
        if self.fine_with_shuffled_plans is not None and self.fine_without_plans is not None:
            lines[-1] += (
                f"; {self.fine_with_shuffled_plans:.3f} with the coarse codes of another text, "
                f"{self.fine_without_plans:.3f} told nothing"
            )
        return "\n".join([*lines, f"decoder            {self.decoder:.3f} nats per token"])


def estimate_two_level_bound(
    pipe: Any, rows: Dataset, num_times: int = 1, batch_size: int = 64, seed: int = 0
) -> TwoLevelBound:
    """Upper bound of -log p of rows of text, given their prompts if they have any, by Monte Carlo over the noise.

    Args:
        pipe: a `TwoLevelVQDiffusionPipeline` whose schedulers have a bound.
        rows: from `text_rows`.
        num_times, batch_size, seed: as in `estimate_bound`.
    """
    autoencoder = pipe.autoencoder

    def bound(level: str, codes: Any) -> BoundEstimate:
        model = PromptedDenoiser(getattr(pipe, f"{level}_denoiser"), pipe.prompt_encoder if prompted else None).eval()
        estimate = estimate_bound(model, getattr(pipe, f"{level}_scheduler"), codes, num_times, batch_size, seed)
        return per_token(estimate, codes, rows)

    prompted = "prompt_ids" in rows.column_names
    fine_rows = code_rows(autoencoder, rows, "fine")
    terms = [bound("fine", fine_rows), decoder_cross_entropy(autoencoder, rows)]
    coarse = shuffled = without = None
    if autoencoder.config.coarse_ratio is not None:
        terms.append(bound("coarse", code_rows(autoencoder, rows, "coarse")))
        coarse = terms[-1].bound
        shuffled = bound("fine", with_plans_of_others(fine_rows)).bound
        told = [name for name in CONDITIONS if name in fine_rows.column_names]
        without = bound("fine", fine_rows.remove_columns(told)).bound
    error = sum(term.standard_error for term in terms)
    return TwoLevelBound(coarse, terms[0].bound, terms[1].bound, error, shuffled, without)


def per_token(estimate: BoundEstimate, codes: Dataset, rows: Dataset) -> BoundEstimate:
    """A bound in nats per code of the rows `codes` in nats per counted token of the rows of text that they are of."""
    scale = len(codes) * len(codes[0]["input_ids"]) / sum(map(sum, rows["attention_mask"]))
    by_noise = [scale * nats for nats in estimate.by_noise]
    return BoundEstimate(scale * estimate.bound, scale * estimate.standard_error, by_noise)


@torch.no_grad()
def decoder_cross_entropy(autoencoder: Any, rows: Dataset) -> BoundEstimate:
    """Of the counted tokens given their codes, in nats per token; its error is that of other rows."""
    device = next(autoencoder.parameters()).device
    nats, counts = [], []  # of each row
    for batch in small_batches(rows.select_columns(["input_ids", "attention_mask"])):
        tokens, counted = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        codes = autoencoder.encode(tokens)
        logits = autoencoder.decode(codes.fine, codes.coarse).transpose(1, 2)  # (B, V, L)
        losses = F.cross_entropy(logits.float(), tokens, reduction="none") * counted
        nats.append(losses.double().sum(dim=1).cpu())
        counts.append(counted.sum(dim=1).cpu())
    row_nats, tokens_each = torch.cat(nats), torch.cat(counts)
    mean = row_nats.sum() / tokens_each.sum()
    spread = (row_nats - mean * tokens_each).std() / len(row_nats) ** 0.5 if len(row_nats) > 1 else torch.nan
    return BoundEstimate(float(mean), float(spread / tokens_each.double().mean()), [])


def with_plans_of_others(rows: Dataset) -> Dataset:
    """Rows of fine codes that are told the coarse ones of the row half the data set away: neighbours are alike."""
    plans, half = rows["context_ids"][:], max(1, len(rows) // 2)
    return rows.remove_columns("context_ids").add_column("context_ids", plans[half:] + plans[:half])
