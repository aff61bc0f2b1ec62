"""Pipelines as a model of lm-eval, EleutherAI's harness of benchmarks, under the name `text_diffusers`.

lm-eval 0.4 looks for no models outside of its own package: importing this module registers the model, which
`text-diffusers lm-eval` does before it hands its arguments to lm-eval's own command line.
"""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from diffusers.utils import logging as diffusers_logging
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from transformers.utils import logging as transformers_logging

from text_diffusers.common.progress import progress_bar
from text_diffusers.common.token_ids import end_ids
from text_diffusers.common.validation import is_int, require, require_int
from text_diffusers.evaluation.harness.records import RequestRecord, RequestRecords, logger
from text_diffusers.evaluation.harness.rows import ContinuationRows, encode_text
from text_diffusers.evaluation.harness.scores import ContinuationScores, Score
from text_diffusers.evaluation.harness.writing import (
    ContextWriter,
    WritingRequest,
    seed_of,
    writing_request,
)
from text_diffusers.evaluation.written_texts import WrittenText
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.samplers import with_sampler

NAME = "text_diffusers"


@register_model(NAME)
class TextDiffusersLM(TemplateLM):
    """A pipeline as a model of lm-eval.

    A log-likelihood is minus the bound of -log p(continuation | context): the model's own is as large or larger. It is
    a Monte-Carlo estimate, whose standard error is kept in `records` and, by task, in `results["config"]`. The choices
    of one document have the same noise levels, so that their differences are closer than their errors. The end of a
    text is no part of a continuation. What is asked depends neither on the batch nor on the order of the requests.

    `is_greedy` says whether the continuation would be written one token after the other, the one that the model is
    most certain of first, each being the likeliest; see `writes_greedily`. Of noise other than masks it is always
    false.

    Args:
        pretrained: a folder, a repository of the Hub or the name of a shipped model, or a pipeline.
        lora: an adapter to load, a folder or a repository of the Hub.
        dtype: of the weights, such as "bfloat16"; by default the model's own.
        device: such as "cpu" or "cuda:0"; by default an accelerator if there is one.
        batch_size: rows in one call of the model.
        max_batch_size: only `None`: no size is found automatically.
        seed: of noise and texts.
        likelihood: "bound", or of a model whose past is causal "autoregressive": -log p of the same weights writing
            one token after the other.
        num_times: random times a continuation; more make the error smaller.
        full: the full sum over times instead, with `num_noise` draws of each.
        num_noise: draws of each term of the full sum.
        greedy: whether `is_greedy` is found out, else it is always false.
        max_length: tokens of the longest row, by default the model's; contexts are cut on the left to fit.
        class_label: by number or name, of a model that was trained with labels.
        scheduler: the sampler that writes, by its name as in `text-diffusers generate --scheduler`.
        num_inference_steps: of the sampler, where a task says nothing of it.
        max_gen_toks: the longest text in tokens, where a task says nothing of it.
        records_file: a .jsonl file to write `records` to, one object a request; what is infinite or unknown is null.
        revision, trust_remote_code: as of `from_pretrained`.

    Attributes:
        records: one for each request that was answered, in the order of tasks, documents and choices.

    Raises:
        ValueError: naming the argument, if one does not fit the pipeline, or the pipeline has no likelihood.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> from text_diffusers.evaluation.harness.model import TextDiffusersLM
        >>> lm = TextDiffusersLM("four-voices", num_times=8, device="cpu")
        >>> requests = [
        ...     Instance("loglikelihood", {"question": "i do not"}, ("i do not", choice), number)
        ...     for number, choice in enumerate([" know", " gave"])
        ... ]
        >>> (first, _), (second, _) = lm.loglikelihood(requests, disable_tqdm=True)
        >>> first > second
        True
    """

    def __init__(
        self,
        pretrained: Any = None,
        lora: str | None = None,
        dtype: Any = None,
        device: str | None = None,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        seed: int = 0,
        likelihood: str = "bound",
        num_times: int = 32,
        full: bool = False,
        num_noise: int = 2,
        greedy: bool = True,
        max_length: int | None = None,
        class_label: int | str | None = None,
        scheduler: str | None = None,
        num_inference_steps: int | None = None,
        max_gen_toks: int = 256,
        records_file: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        # 1. Check the arguments
        self.batch_size = whole_number("batch_size", batch_size)
        require(
            max_batch_size is None, "max_batch_size", "None: `batch_size` is used", max_batch_size
        )
        require_int("seed", seed, 0)
        require_int("max_gen_toks", max_gen_toks, 1)
        require_int("num_inference_steps", num_inference_steps, 1, optional=True)

        # 2. Load the pipeline, in one of the processes that a launcher started
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        if num_processes > 1:
            is_cpu = device is not None and torch.device(device).type == "cpu"
            state = PartialState(cpu=is_cpu or not torch.accelerator.is_available())
            self._rank = state.process_index
            self._world_size = state.num_processes
            device = str(state.device)
        self.pipe = loaded_pipeline(pretrained, dtype, device, revision, trust_remote_code)
        self.pipe.set_progress_bar_config(disable=True)
        if lora is not None:
            self.pipe.load_lora_weights(lora)
        self._device = self.pipe.device
        self.tokenizer = self.pipe.tokenizer

        # 3. What rows are made of, how they are scored, and how texts are written
        self.seed = seed
        self.likelihood = likelihood
        self.max_gen_toks = max_gen_toks
        self.class_label = class_label
        self.layout_length = max_length
        self.scoring = {
            "likelihood": likelihood,
            "num_times": num_times,
            "full": full,
            "num_noise": num_noise,
            "greedy": greedy,
        }
        self.writing = {"scheduler": scheduler, "num_inference_steps": num_inference_steps}
        self._layout: ContinuationRows | None = None
        self._scores: ContinuationScores | None = None
        self._writer: ContextWriter | None = None
        self._records = RequestRecords(records_file)
        self._warned = False

    # What lm-eval reads

    @property
    def max_length(self) -> int:
        """Tokens of the longest row."""
        return self.layout_length or self.pipe.max_length

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        return next(iter(end_ids(self.tokenizer)), None)

    @property
    def tokenizer_name(self) -> str:
        """Of the tokenizer and its chat template, under which lm-eval keeps requests with `--cache_requests`."""
        template = seed_of(getattr(self.tokenizer, "chat_template", None))
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{template:08x}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a context, by the chat template of the tokenizer.

        Raises:
            ValueError: if it has none, or the conversation does not suit it.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "`apply_chat_template` needs a tokenizer with a chat template; this one has none."
            )
        # Templates call errors of their own, for turns out of order and roles that they do not know.
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except Exception as error:
            raise ValueError(
                f"`apply_chat_template` needs conversations that suit the tokenizer's chat template: {error}"
            ) from error

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `results["config"]`: the pipeline, its settings, and the errors of each task."""
        models = [
            part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)
        ]
        num_parameters = [value.numel() for model in models for value in model.parameters()]
        return {
            "pipeline": type(self.pipe).__name__,
            "model_num_parameters": sum(num_parameters),
            "model_dtype": str(self.pipe.dtype),
            "seed": self.seed,
            "max_length": self.max_length,
            "class_label": self.class_label,
            "scoring": self.scoring,
            "writing": self.writing,
            "errors_of_noise": self._records.summary(),
        }

    # Several processes

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of all processes, one behind the other."""
        return gather(tensor) if self.world_size > 1 else tensor  # type: ignore[return-value]

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes, in process `dst`."""
        if self.world_size == 1:
            return [obj]
        objects: Any = gather_object([obj])
        return objects if self.rank == dst else None

    def barrier(self):
        """Wait for all processes; lm-eval does so after each kind of request, and all then have all records."""
        if self.world_size == 1:
            return
        shares: Any = gather_object([self._records.by_request])
        for records in shares:
            self._records.by_request |= records
        self._report()

    # Requests

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text without those around it, which rows have; see `encode_text`."""
        return encode_text(self.tokenizer, string)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Minus the bounds of continuations given their contexts, and whether they would be written greedily.

        Args:
            requests: `Instance`s with `args` `(context, continuation)`.
            disable_tqdm: show no bar.

        Raises:
            ValueError: if the pipeline has no likelihood, or a continuation has no token or does not fit.
        """
        encoded = []
        for request in requests:
            context, continuation = request.args
            ids = self._encode_pair(context, continuation) if context else None
            encoded.append((request.args, *(ids or ([], self.tok_encode(continuation)))))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm, instances=requests)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        instances: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        # Asked first, so that a pipeline without a likelihood is refused as such.
        scores = self.scores
        self._warn_of_greedy(scores)
        rows = []
        noise_ids = []
        for place, (texts, context, tokens) in enumerate(requests):
            start = self.layout.start_of(texts[0])
            prefix = context or self._prefix(start)
            rows.append(self.layout.row(prefix, tokens, start))
            document = getattr(instances[place], "doc", None) if instances else None
            noise_ids.append(seed_of(document or texts[0]))

        results: list[Any] = [None] * len(rows)
        for place, score in self._scored(scores, rows, noise_ids, "loglikelihood", disable_tqdm):
            results[place] = (-score.nats, bool(score.is_greedy))
            texts = requests[place][0]
            self.cache_hook.add_partial("loglikelihood", texts, results[place])
            if instances:
                self._records.keep(instances[place], "loglikelihood", score, rows[place].truncated)
        self._report()
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Minus the bounds of whole texts, which are cut into windows where they are longer than a row.

        Args:
            requests: `Instance`s with `args` `(text,)`.
            disable_tqdm: show no bar.

        Raises:
            ValueError: if the pipeline has no likelihood.
        """
        # Asked first, so that a pipeline without a likelihood is refused as such.
        scores = self.scores
        rows: list[WrittenText] = []
        noise_ids = []
        owners = []
        for place, request in enumerate(requests):
            (text,) = request.args
            prefix = self._prefix(self.layout.start)
            windows = self.layout.windows(self.tok_encode(text), prefix)
            rows += windows
            owners += [place] * len(windows)
            key = getattr(request, "doc", None) or text
            noise_ids += [seed_of(key, index) for index in range(len(windows))]

        totals = [Score(0.0, 0.0) for _ in requests]
        name = "loglikelihood_rolling"
        scored = self._scored(scores, rows, noise_ids, name, disable_tqdm, greedy=False)
        for window, score in scored:
            total = totals[owners[window]]
            total.nats += score.nats
            total.error = math.hypot(total.error, score.error)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, -total.nats)
            self._records.keep(request, "loglikelihood_rolling", total)
        self._report()
        return [-total.nats for total in totals]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts behind contexts, each cut before the first string of its `until`.

        A text depends on its context, its settings and `seed` only, and, if it is drawn, on its document: of equal
        requests each has its own text, on however many processes.

        Args:
            requests: `Instance`s with `args` `(context, gen_kwargs)`; see `writing_request`.
            disable_tqdm: show no bar.

        Raises:
            ValueError: naming the argument, if the pipeline does not take one, or leaves no room for a context.
        """
        writer = self.writer
        asked: list[WritingRequest] = []
        cut = []
        num_seen: dict[int, int] = {}
        for request in requests:
            context, gen_kwargs = request.args
            writing = writing_request(writer.pipe, context, gen_kwargs, self.max_gen_toks)
            writing.context = self.layout.cut_context(context, writing.max_new_tokens)
            cut.append(writing.context != context)

            # Copies of a request differ by their number, unless all of them are to be the likeliest.
            document = [request.task_name, request.doc_id] if writing.is_drawn else None
            key = seed_of(self.seed, document, context, gen_kwargs)
            number = num_seen.get(key, 0) if writing.is_drawn else 0
            num_seen[key] = number + 1
            writing.seed = seed_of(self.seed, document, context, gen_kwargs, number)
            asked.append(writing)

        texts: list[Any] = [None] * len(requests)
        bar = self._bar(len(requests), "generate_until", disable_tqdm)
        with bar:
            for places in self._batches_to_write(asked):
                written = writer([asked[place] for place in places])
                for place, text in zip(places, written, strict=True):
                    texts[place] = text
                    request = requests[place]
                    self.cache_hook.add_partial("generate_until", request.args, text)
                    self._records.keep(request, "generate_until", None, cut[place])
                bar.update(len(places))
        self._report()
        return texts

    # Parts

    @property
    def scores(self) -> ContinuationScores:
        """What scores rows.

        Raises:
            ValueError: if the pipeline has no likelihood.
        """
        if self._scores is None:
            self._scores = ContinuationScores(
                self.pipe, batch_size=self.batch_size, seed=self.seed, **self.scoring
            )
        return self._scores

    @property
    def layout(self) -> ContinuationRows:
        """What lays rows out."""
        if self._layout is None:
            self._layout = ContinuationRows(self.pipe, self.layout_length, self.class_label)
        return self._layout

    @property
    def writer(self) -> ContextWriter:
        """What writes texts.

        Raises:
            ValueError: if the pipeline continues no prompts.
        """
        if self._writer is None:
            takes_prompt = "prompt" in self.pipe.accepted_inputs
            takes_prompt = takes_prompt and self.pipe.kind in ("tokens", "embeddings")
            limit = "a pipeline of tokens or of word embeddings that continues a prompt"
            require(takes_prompt, "pretrained", limit, type(self.pipe).__name__)
            pipe = with_sampler(self.pipe, self.writing["scheduler"])
            num_steps = self.writing["num_inference_steps"]
            self._writer = ContextWriter(pipe, self.class_label, num_steps)
        return self._writer

    def _prefix(self, start: list[int]) -> list[int]:
        """What stands before a text without a context: a next token needs one before it, as in lm-eval."""
        if start or self.likelihood == "bound":
            return []
        prefix = self.eot_token_id
        limit = '"bound" for a tokenizer without a token for start or end'
        require(prefix is not None, "likelihood", limit, self.likelihood)
        return [prefix]  # type: ignore[list-item]

    def _scored(
        self,
        scores: ContinuationScores,
        rows: Sequence[WrittenText],
        noise_ids: Sequence[int],
        name: str,
        disable_tqdm: bool,
        greedy: bool = True,
    ) -> Iterator[tuple[int, Score]]:
        """The place and the score of each row, the longest first: what does not fit into memory shows at once."""
        sizes = [len(row.given) + len(row.tokens) for row in rows]
        order = sorted(range(len(rows)), key=lambda place: -sizes[place])
        with self._bar(len(rows), name, disable_tqdm) as bar:
            for first in range(0, len(order), self.batch_size):
                places = order[first : first + self.batch_size]
                found = scores(
                    [rows[place] for place in places],
                    [noise_ids[place] for place in places],
                    self.layout.label,
                    greedy=greedy,
                )
                yield from zip(places, found, strict=True)
                bar.update(len(places))

    def _batches_to_write(self, asked: Sequence[WritingRequest]) -> Iterator[list[int]]:
        """The places of requests that are written together: those of one group, the longest contexts first."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(asked):
            groups.setdefault(request.group, []).append(place)
        for places in groups.values():
            places.sort(key=lambda place: -len(self.tok_encode(asked[place].context)))
            for first in range(0, len(places), self.batch_size):
                yield places[first : first + self.batch_size]

    def _bar(self, total: int, name: str, disable_tqdm: bool) -> Any:
        hidden = disable_tqdm or self.rank > 0
        return progress_bar(total=total, desc=name, disable=hidden, unit="request")

    @property
    def records(self) -> list[RequestRecord]:
        return self._records.in_order()

    def _report(self):
        if self.rank == 0:
            self._records.report(self.layout.max_length)

    def _warn_of_greedy(self, scores: ContinuationScores):
        """Say once that nothing is written greedily, where that is so."""
        if scores.greedy and not scores.says_greedy and not self._warned:
            self._warned = True
            logger.warning(
                "`is_greedy` is false of all continuations: it is known of noise by masks only. Metrics that need it, "
                "such as the accuracy of lambada, say nothing."
            )


def whole_number(name: str, value: Any) -> int:
    """A number that lm-eval may pass as a string."""
    number: Any = int(value) if isinstance(value, str) and value.isdecimal() else value
    require(is_int(number, 1), name, "an integer of at least 1", value)
    return number


def loaded_pipeline(
    pretrained: Any, dtype: Any, device: str | None, revision: str | None, trust_remote_code: bool
) -> Any:
    """The pipeline that is asked for, on its device.

    Raises:
        ValueError: if it is none, or `dtype` is no type of floating-point numbers.
    """
    if isinstance(pretrained, TextPipeline):
        require(dtype is None, "dtype", "None for a pipeline, which has one", dtype)
        # A shallow copy: its settings are changed, its models shared.
        pipe: Any = copy.copy(pretrained)
        return pipe if device is None else pipe.to(device)

    is_name = isinstance(pretrained, str | os.PathLike)
    limit = "a folder, a repository, the name of a shipped model, or a pipeline of texts"
    require(is_name, "pretrained", limit, pretrained)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    arguments: dict[str, Any] = {}
    if dtype not in (None, "auto"):
        named = getattr(torch, str(dtype).removeprefix("torch."), None)
        is_type = isinstance(named, torch.dtype) and named.is_floating_point
        require(is_type, "dtype", 'None, "auto", or a floating-point type of torch', dtype)
        arguments["dtype"] = named
    if revision is not None:
        arguments["revision"] = revision
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    pipe = TextPipeline.from_pretrained(pretrained, **arguments)
    if device is None:
        device = str(torch.accelerator.current_accelerator() or "cpu")
    return pipe.to(device)
