"""Options of recipes that train a model further, or make a diffusion model of a language model."""

from dataclasses import dataclass
from typing import Any

from text_diffusers.models.reading import ALIGNMENTS, ATTENTIONS
from text_diffusers.training.adaptation.adapters import QUANTIZATIONS
from text_diffusers.training.adaptation.language_models import (
    check_language_model_options,
    default_learning_rate,
)
from text_diffusers.training.adaptation.starting_models import (
    kind_of_model,
    knows_no_ends,
    saved_label_prompts,
    saved_reading,
)
from text_diffusers.training.config import (
    WARMUP_SHARE,
    WARMUP_STEPS,
    option,
    refuse_parts_of_a_pipeline,
)
from text_diffusers.training.text_options import TextTrainingConfig

RATE_FROM_SCRATCH = 1e-3
STEPS_FROM_SCRATCH = 10_000
BATCH_FROM_SCRATCH = 32

# A language model knows most already, and each of its rows is dear.
LANGUAGE_BATCH = 8
PASSES = 3
FEWEST_STEPS = 100
REPORTED_ROWS = 500  # of a language model, each of which is dear

# Texts by which lengths are compared, also of a language model
LENGTH_SAMPLES = 256
LANGUAGE_LENGTH_SAMPLES = 32


@dataclass
class AdaptationConfig(TextTrainingConfig):
    """What training starts from, and what becomes of it.

    Raises:
        ValueError: if a value is outside its range, or options do not go together or with the model.

    Example:
        >>> from text_diffusers.training.adaptation.options import AdaptationConfig
        >>> AdaptationConfig(output_dir="runs/mine", report_to=["none"], model_name_or_path="chat-and-novels").kind
        'pipeline'
    """

    learning_rate: float | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        "peak learning rate; default: 1e-3 from scratch, else what suits the model",
        limit="above 0",
    )

    max_train_steps: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        f"optimizer steps; default: {STEPS_FROM_SCRATCH:,}, or for a language model {PASSES} passes over the rows, "
        f"{FEWEST_STEPS} steps at least",
        limit="above 0",
    )
    lr_warmup_steps: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        f"linear warm-up, a cosine to 0 follows; default: {WARMUP_STEPS}, but of a language model at most "
        f"{WARMUP_SHARE:.0%} of all steps or minutes",
        limit="at least 0",
    )
    train_batch_size: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        f"rows in a micro-batch of one process; default: {BATCH_FROM_SCRATCH}, or {LANGUAGE_BATCH} for a language "
        "model",
        limit="above 0",
        may_change_on_resume=True,
    )

    # The model
    model_name_or_path: str | None = option(
        None,
        "to train further: saved pipeline, causal LM, masked LM, encoder, or published diffusion model",
    )

    # How a language model is read from now on
    attention: str | None = option(
        None,
        "of a language model: bidirectional, block or causal; default: block for a causal LM, else bidirectional",
        one_of=ATTENTIONS,
    )
    alignment: str = option(
        "auto",
        "of a language model: shifted, the state before a token predicts it, aligned, or auto, as it was taught",
        one_of=("auto", *ALIGNMENTS),
    )

    report_rows: int | None = option(
        None,
        "held-out rows of the figures at the end, spread over all; default: all, or 500 of a language model",
        limit="at least 1",
        may_change_on_resume=True,
    )

    num_length_samples: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        f"texts written at the end to compare lengths; default: {LENGTH_SAMPLES}, or {LANGUAGE_LENGTH_SAMPLES} by a "
        "language model",
        limit="at least 0",
        may_change_on_resume=True,
    )

    # Its vocabulary
    prune_vocabulary: bool = option(
        False, "keep only the tokens that the texts need; a smaller model"
    )
    retrain_tokenizer: bool = option(
        False,
        "train a byte-level BPE of `vocab_size` tokens on the texts, and spell its vectors by the old ones",
    )

    # Adapters
    lora_rank: int | None = option(None, "train low-rank adapters of that model only")
    lora_alpha: float | None = option(None, "adapters weigh alpha / rank; default: the rank")
    lora_targets: list[str] | None = option(
        None, "ends of the names of the layers that get adapters; default: all linear ones"
    )
    merge_lora: bool | None = option(
        None,
        "save a whole model, adapters merged; default: if it is no saved pipeline, or changes in other ways too",
    )
    quantization: str | None = option(
        None,
        "store the frozen weights under the adapters in fewer bits: bf16, int8, or nf4 on a GPU",
        one_of=tuple(QUANTIZATIONS),
    )

    # Conversations, which columns `messages`, `conversations`, or `prompt` and `completion` hold
    chat_template: str | None = option(
        None, "chatml, or a file with a Jinja template; default: the tokenizer's own"
    )

    def __post_init__(self):
        self.kind = kind_of_model(self.model_name_or_path)
        if self.learning_rate is None:
            rate = default_learning_rate(self.kind, has_adapters=self.lora_rank is not None)
            self.learning_rate = rate or RATE_FROM_SCRATCH
        if self.train_batch_size is None:
            self.train_batch_size = (
                LANGUAGE_BATCH if self.adapts_language_model else BATCH_FROM_SCRATCH
            )
        if self.num_length_samples is None:
            is_dear = self.adapts_language_model
            self.num_length_samples = LANGUAGE_LENGTH_SAMPLES if is_dear else LENGTH_SAMPLES
        if self.report_rows is None and self.adapts_language_model:
            self.report_rows = REPORTED_ROWS
        super().__post_init__()
        self._check_model_options()

    @property
    def adapts_language_model(self) -> bool:
        """Whether a language model of transformers is trained."""
        return self.kind not in (None, "pipeline")

    def settle_steps(self, num_rows: int | None, rows_per_step: int):
        """Set the number of steps, and of those of the warm-up, where it was not asked for, by the rows of the data.

        With a budget in minutes the warm-up of a language model stays `None`: it goes by the clock.

        Args:
            num_rows: to train on; `None` of a stream.
            rows_per_step: rows of a global batch.
        """
        # A budget in minutes ends earlier.
        counts_steps = self.adapts_language_model and self.max_train_minutes is None
        if self.max_train_steps is None:
            self.max_train_steps = STEPS_FROM_SCRATCH
            if counts_steps and num_rows is not None:
                num_steps = -(-PASSES * num_rows // rows_per_step)
                self.max_train_steps = min(STEPS_FROM_SCRATCH, max(FEWEST_STEPS, num_steps))
        if self.lr_warmup_steps is None:
            if counts_steps:
                most = int(self.max_train_steps * WARMUP_SHARE)
                self.lr_warmup_steps = min(WARMUP_STEPS, most)
            elif not self.adapts_language_model:
                self.lr_warmup_steps = WARMUP_STEPS

    @property
    def packs_labels(self) -> bool:
        # A language model is told the label by a prompt at the beginning of a row.
        return self.adapts_language_model

    @property
    def known_label_prompts(self) -> list[str] | None:
        """The texts that stand for labels in the pipeline that is trained further, if it has a language model."""
        if self.kind != "language_pipeline" or self.model_name_or_path is None:
            return None
        return saved_label_prompts(self.model_name_or_path)

    @property
    def reading(self) -> dict[str, Any]:
        """What is asked of a language model's `Reading`; `None` for what suits it."""
        alignment = None if self.alignment == "auto" else self.alignment
        return {"attention": self.attention, "alignment": alignment}

    @property
    def reads_causal_past(self) -> bool:
        """Whether blocks stand over a past that is read token by token, from a first one that is given."""
        if self.attention not in (None, "block"):
            return False
        if self.kind == "language_pipeline" and self.model_name_or_path is not None:
            saved = saved_reading(self.model_name_or_path)
            has_blocks = saved.get("attention") == "block"
            return saved.get("past") == "causal" if has_blocks else self.attention == "block"
        return self.kind == "causal_lm" or (self.kind == "masked_lm" and self.attention == "block")

    @property
    def learns_next_tokens_first(self) -> bool:
        """Whether blocks are new to a model that never predicted next tokens: to an encoder.

        Aligned, blocks of one token are no next tokens, and no cheaper than others.
        """
        is_shifted = self.alignment != "aligned"
        return self.kind == "masked_lm" and is_shifted and self.reads_causal_past

    @property
    def gives_ends(self) -> bool:
        """Whether rows show a masked LM where their text begins and ends, so that it goes on predicting no ends.

        That takes a text a row. Behind a label or source, and in blocks or shifted, it learns where texts end.
        """
        # A source is an option of some recipes.
        is_alone = not (self.packing or self.label_column or getattr(self, "source_column", None))
        reads_as_before = self.attention in (None, "bidirectional") and self.alignment != "shifted"
        return is_alone and reads_as_before and knows_no_ends(self.model_name_or_path)

    @property
    def changes_model(self) -> bool:
        """Whether more of a model changes than adapters can tell."""
        # Lengths of blocks are an option of some recipes.
        block_length = getattr(self, "block_length", None)
        asked = (self.attention, block_length, self.chat_template)
        return (
            self.kind in ("causal_lm", "masked_lm")
            or any(value is not None for value in asked)
            or self.alignment != "auto"
            or self.prune_vocabulary
            or self.retrain_tokenizer
            or (knows_no_ends(self.model_name_or_path) and not self.gives_ends)
        )

    @property
    def merges_adapters(self) -> bool:
        """Whether adapters are merged into the model that is saved."""
        return self.changes_model if self.merge_lora is None else self.merge_lora

    def _check_adapters(self):
        # Adapters alone are no model: they need the weights under them.
        if self.lora_rank is not None and (self.lora_rank < 1 or not self.model_name_or_path):
            raise ValueError(
                "`lora_rank` must be at least 1 and needs a model to adapt, got "
                f"{self.lora_rank!r} with `model_name_or_path`={self.model_name_or_path!r}."
            )
        for name in ("lora_alpha", "lora_targets", "merge_lora", "quantization"):
            if getattr(self, name) and self.lora_rank is None:
                raise ValueError(f"`{name}` goes with `lora_rank`, got {getattr(self, name)!r}.")
        if self.lora_rank and self.changes_model and not self.merges_adapters:
            raise ValueError(
                "`merge_lora` must be true where a model is no saved pipeline, or is read or spelled anew: adapters "
                "alone cannot tell that."
            )
        if self.quantization and not self.adapts_language_model:
            raise ValueError(
                "`quantization` needs a language model of transformers in `model_name_or_path`, got "
                f"{self.model_name_or_path!r}."
            )

    def _check_model_options(self):
        """Refuse options that go with another model than there is."""
        if self.adapts_language_model:
            check_language_model_options(self)
        elif self.attention is not None or self.alignment != "auto":
            raise ValueError(
                "`attention` and `alignment` must be left out without a language model of transformers in "
                f"`model_name_or_path`, got {self.attention!r} and {self.alignment!r}."
            )
        if self.prune_vocabulary and self.retrain_tokenizer:
            raise ValueError("`prune_vocabulary` and `retrain_tokenizer` exclude each other.")
        changes_vocabulary = self.prune_vocabulary or self.retrain_tokenizer
        if changes_vocabulary and not self.adapts_language_model:
            raise ValueError(
                "`prune_vocabulary` and `retrain_tokenizer` need a language model of transformers in "
                f"`model_name_or_path`, got {self.model_name_or_path!r}."
            )
        self._refuse_settled_options()

        self._check_adapters()

    def _refuse_settled_options(self):
        """Refuse options of what the model in `model_name_or_path` has settled."""
        if self.kind is None:
            return
        allowed: set[str] = set()
        if self.retrain_tokenizer:
            allowed.add("vocab_size")
        # A language model by itself has no names of labels yet, and learns to write in blocks.
        if self.kind in ("causal_lm", "masked_lm"):
            allowed.add("label_names")
        if self.adapts_language_model:
            allowed |= {"block_length", "dropout"}

        refuse_parts_of_a_pipeline(self, allowed=allowed)
