"""A pipeline under evaluation: its bounds, the texts that it writes, and their distances from real ones.

Shapes: N texts, E width of an embedding.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from text_diffusers.cli.evaluation.records import (
    DistancesFromReal,
    EvaluationRecord,
    RealFigures,
    WrappedEvaluation,
    WrittenFigures,
)
from text_diffusers.cli.evaluation.text_bounds import (
    Evaluation,
    JudgedTexts,
    check_bound_exists,
    evaluate_texts,
    evaluate_wrapped,
)
from text_diffusers.cli.evaluation.written_texts import (
    WrittenTexts,
    cut_texts,
    requests_for,
    save_texts,
    write,
)
from text_diffusers.common.json_files import read_object
from text_diffusers.data.rows import encode_texts
from text_diffusers.evaluation.distances.sentence_embeddings import sentence_embeddings
from text_diffusers.evaluation.distances.text_distances import text_distances
from text_diffusers.evaluation.estimates import share_of_process, total_over_processes
from text_diffusers.evaluation.judges.judges import Judge, shares_origin
from text_diffusers.evaluation.judges.text_figures import TextFigures, length_figure, text_figures
from text_diffusers.evaluation.modules import device_of
from text_diffusers.evaluation.protocols.wrapped_rows import given_before_rows, wrap_texts

KIN = (
    "the judge seems to be the model itself, or what it was made from: it finds its own texts probable, so its "
    "perplexity says little"
)


class Session:
    """A pipeline that is evaluated, with its judge and encoder, and the processes that share the work.

    Args:
        options: `EvaluationOptions`.
        pipe: any pipeline of texts.
        judge: of written texts, or `None`.
        encoder: `(model, tokenizer)` of the distances, or `None`.
        accelerator: of several processes, or `None`.
        is_main: whether this process speaks.
    """

    def __init__(
        self,
        options: Any,
        pipe: Any,
        judge: Judge | None,
        encoder: tuple[Any, Any] | None,
        accelerator: Any,
        is_main: bool,
    ):
        self.options = options
        self.pipe = pipe
        self.judge = judge
        self.encoder = encoder
        self.accelerator = accelerator
        self.is_main = is_main
        self.progress = is_main and sys.stderr.isatty()
        self.sampling: Any = {
            "num_times": options.num_times,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "progress": self.progress,
            "accelerator": accelerator,
        }

        # The denoiser before an autoencoder or an encoder of prompts
        components = sorted(pipe.components.items(), key=lambda part: "denoiser" not in part[0])
        models = [part for _, part in components if isinstance(part, torch.nn.Module)]
        self.denoiser = models[0]

    @property
    def dtype(self) -> str:
        """Of the denoiser's weights, such as "float32"."""
        return str(next(self.denoiser.parameters()).dtype).removeprefix("torch.")

    # --- bounds

    def bound(
        self, judged: JudgedTexts | None, wrapped_texts: list[str]
    ) -> tuple[Evaluation | WrappedEvaluation | None, str | None]:
        """`(bound, reason)` of the data set: the reason says why there is none, where more than it was asked for.

        Args:
            judged: texts, each by itself; `None` if all are joined.
            wrapped_texts: to be joined.

        Raises:
            ValueError: if the pipeline has no bound, and nothing else was asked for.
        """
        try:
            check_bound_exists(self.pipe)
        except ValueError as error:
            if not self.options.judges_texts:
                raise
            return None, str(error)
        if judged is None:
            return self.wrapped_bound(wrapped_texts, self.options.wrap), None
        conditions: Any = judged.conditions
        evaluation = evaluate_texts(self.pipe, judged.texts, **self.sampling, **conditions)
        return evaluation, None

    def wrapped_bound(self, texts: list[str], length: int) -> WrappedEvaluation:
        """The bound of rows of joined texts."""
        options = self.options
        wrapped = wrap_texts(
            texts,
            self.pipe.tokenizer,
            length,
            ends=options.wrap_ends,
            framed=options.wrap_frame,
            given=given_before_rows(self.pipe),
            max_rows=options.max_texts,
        )
        facts = {
            "length": length,
            "ends": options.wrap_ends,
            "framed": options.wrap_frame,
            "num_given": wrapped.num_given,
            "num_rows": len(wrapped.rows),
            "num_rows_in_all": wrapped.num_rows_in_all,
            "num_dropped_tokens": wrapped.num_dropped,
        }
        return WrappedEvaluation(evaluate_wrapped(self.pipe, wrapped, **self.sampling), facts)

    # --- texts

    def measure_written(
        self,
        record: EvaluationRecord,
        judged: JudgedTexts | None,
        texts: list[str] | None,
        real_texts: list[str],
    ):
        """Put into the record: figures of written texts, of as many real ones, and the distances between both.

        Args:
            judged: from whose prompts, sources, labels or conversations texts are written.
            texts: written ones; `None` lets the pipeline write.
            real_texts: real ones, spread over their source.
        """
        # 1. The texts by themselves
        written = WrittenTexts(texts, None) if texts is not None else self.write(judged)
        tokens = self.tokens_of(written.texts)
        figures = WrittenFigures(self.figures_of(written.texts, tokens))
        if written.seconds is not None:
            figures.tokens_per_second = sum(map(len, tokens)) / written.seconds
        figures.judge_is_kin = self.judge_is_kin()
        if figures.judge_is_kin and self.is_main:
            typer.echo(f"text-diffusers: warning: {KIN}", err=True)
        record.written = figures
        if not real_texts:
            return

        # 2. As many real ones, first every other of them: the rest is for the floor of the distances
        count = len(written.texts)
        first_half = real_texts[::2]
        second_half = real_texts[1::2]
        beside, num_cut = cut_texts(self.pipe, [*first_half, *second_half][:count])
        real_tokens = self.tokens_of(beside)
        record.real = RealFigures(self.figures_of(beside, real_tokens), num_cut)
        figures.length_distance = length_figure(
            [len(ids) for ids in tokens], [len(ids) for ids in real_tokens], self.options.seed
        )
        if self.encoder is None:
            return

        # 3. Distances, of as many texts everywhere: most depend on the number
        count = min(count, len(second_half))
        embeddings = []
        for part in (written.texts, first_half, second_half):
            read = part if part is written.texts else cut_texts(self.pipe, part[:count])[0]
            embeddings.append(self.embeddings_of(read[:count]))
        record.distances = DistancesFromReal(
            written=text_distances(embeddings[0], embeddings[1], seed=self.options.seed),
            floor=text_distances(embeddings[2], embeddings[1], seed=self.options.seed),
            encoder=self.options.encoder_name,
        )

    def write(self, judged: JudgedTexts | None) -> WrittenTexts:
        """Texts of the pipeline, which are kept in a file, if one is named, before they are judged."""
        options = self.options
        requests = requests_for(judged.conditions if judged is not None else {}, options.generate)
        written = write(
            self.pipe,
            requests,
            options.num_inference_steps,
            options.batch_size,
            options.seed,
            self.progress,
            self.accelerator,
        )
        if options.save_texts is not None and self.is_main:
            save_texts(options.save_texts, written.texts, requests)
        return written

    def tokens_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts by the pipeline's tokenizer, without ends."""
        return encode_texts(self.pipe.tokenizer, list(texts))

    def figures_of(self, texts: Sequence[str], tokens: list[list[int]]) -> TextFigures:
        """Figures of texts by themselves; those of the judge too, if there is one."""
        if self.judge is None:
            return text_figures(texts, tokens)

        # Each process judges some of the texts.
        table = torch.zeros(len(texts), 2, dtype=torch.float64)
        places: list[int] = list(share_of_process(range(len(texts)), self.accelerator))
        if places:
            nats, counts = self.judge.text_nats([texts[place] for place in places])
            table[places] = torch.stack([nats, counts.double()], dim=1)
        nats, counts = self.total(table).unbind(dim=1)
        return text_figures(texts, tokens, (nats, counts.long()), self.judge.unit)

    def embeddings_of(self, texts: Sequence[str]) -> Tensor:
        """(N, E) sentence embeddings; each process computes those of some of the texts."""
        assert self.encoder is not None
        places: list[int] = list(share_of_process(range(len(texts)), self.accelerator))
        # A process without a text reads one for the width.
        part = sentence_embeddings([texts[place] for place in places or [0]], *self.encoder)
        table = torch.zeros(len(texts), part.shape[1])
        if places:
            table[places] = part
        return self.total(table)

    def total(self, values: Tensor) -> Tensor:
        """The sum of values over the processes."""
        return total_over_processes(values, device_of(self.denoiser), self.accelerator)

    def judge_is_kin(self) -> bool:
        """Whether the judge seems to be the model, or the one that its training began with."""
        if self.judge is None:
            return False
        note = Path(self.options.model) / "training_config.json"
        origins = [self.options.model]
        if note.is_file():
            origins.append(read_object(note).get("options", {}).get("model_name_or_path"))
        if self.options.judge in origins:
            return True
        return shares_origin(self.denoiser, self.pipe.tokenizer, self.judge)
