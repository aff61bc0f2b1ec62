"""The three systems of benchmarks/two_level.py: their sizes, their training by the recipes, and their pipelines."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import text_diffusers
from parts.common.recipes import QUIET, load_recipe, selected_options
from parts.common.results import Record, make_folder_once
from parts.two_level.config import ONE_LEVEL, TOKENS, TWO_LEVEL, TwoLevelConfig
from text_diffusers import CodeTransformerModel, TextDiffusionPipeline, TextTransformerModel
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tokenizers import train_tokenizer

# A width is this multiple of the number of heads: rotary positions turn pairs of coordinates of a head.
WIDTH_MULTIPLE = 2

# Options of the benchmark that are those of all recipes.
SHARED_OPTIONS = (
    "dataset",
    "validation_fraction",
    "max_train_steps",
    "lr_warmup_steps",
    "checkpointing_steps",
)
# Of the recipe of autoencoders.
CODE_OPTIONS = (
    "patch_length",
    "coarse_ratio",
    "num_fine_codes",
    "num_coarse_codes",
    "num_attention_heads",
    "window_length",
    "hidden_size",
)
# Of both recipes of denoisers.
DENOISER_OPTIONS = ("length", "min_length", "learning_rate", "num_attention_heads", "ema_decay")


def shared_tokenizer(options: TwoLevelConfig) -> Any:
    """The tokenizer of all systems and seeds, made once from the training texts."""

    def save(folder: Path):
        documents = load_documents(options.dataset)
        train_texts, _ = split_documents(documents, options.validation_fraction)
        train_tokenizer(train_texts["text"], options.vocab_size).save_pretrained(folder)

    return AutoTokenizer.from_pretrained(make_folder_once(options.folder / "tokenizer", save))


class System:
    """One of the systems that are compared: its sizes, its training with each seed, and its pipelines.

    Args:
        name: one of `SYSTEMS`.
    """

    def __init__(self, name: str, options: TwoLevelConfig):
        self.name = name
        self.options = options

    # Sizes

    @property
    def code_options(self) -> Record:
        """Options of the autoencoder's recipe that say which codes it learns."""
        levels = 2 if self.name == TWO_LEVEL else 1
        return selected_options(self.options, CODE_OPTIONS) | {"levels": levels}

    @property
    def num_layers(self) -> int:
        """Blocks of each denoiser: fewer where there are two."""
        options = self.options
        return options.num_layers if self.name == TWO_LEVEL else options.baseline_layers

    def denoiser_parameters(self, kind: str, width: int, tokenizer: Any) -> int:
        """Parameters of a denoiser: "coarse" or "fine" of two levels, that of "one-level", or of "tokens"."""
        options = self.options
        sizes = {
            "hidden_size": width,
            "num_layers": self.num_layers,
            "num_attention_heads": options.num_attention_heads,
        }

        # Nothing is allocated on the meta device.
        with torch.device("meta"):
            if kind == TOKENS:
                model = TextTransformerModel(
                    len(tokenizer),
                    time_conditioning=False,
                    mask_token_id=tokenizer.mask_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    **sizes,
                )
                return model.num_parameters()

            num_codes = options.num_coarse_codes if kind == "coarse" else options.num_fine_codes
            if kind == "fine":
                # It reads the plan beside its own codes.
                sizes["num_context_codes"] = options.num_coarse_codes
                sizes["context_ratio"] = options.coarse_ratio

            # One more for the mask
            return CodeTransformerModel(num_codes + 1, **sizes).num_parameters()

    def num_parameters(self, width: int, tokenizer: Any) -> int:
        """Parameters of all parts; `width` is that of the denoisers."""
        if self.name == TOKENS:
            return self.denoiser_parameters(TOKENS, width, tokenizer)

        # The autoencoder, as its recipe builds it
        recipe = load_recipe("train_vq_autoencoder")
        config = recipe.AutoencoderConfig(
            output_dir="", length=self.options.length, **self.code_options
        )
        autoencoder = recipe.build_model(config, len(tokenizer), tokenizer.mask_token_id)
        count = autoencoder.num_parameters()

        # A denoiser of each level
        kinds = ("coarse", "fine") if self.name == TWO_LEVEL else (ONE_LEVEL,)
        for kind in kinds:
            count += self.denoiser_parameters(kind, width, tokenizer)
        return count

    def matched_width(self, tokenizer: Any) -> int:
        """The width of a baseline's denoiser that brings its system closest to the parameters of two levels."""
        if self.name == TWO_LEVEL:
            return self.options.hidden_size

        # Parameters of two levels, less those of the other parts of the baseline
        usual_width = self.options.hidden_size
        target = System(TWO_LEVEL, self.options).num_parameters(usual_width, tokenizer)
        target -= self.num_parameters(usual_width, tokenizer)
        target += self.denoiser_parameters(self.name, usual_width, tokenizer)

        def distance(width: int) -> int:
            return abs(self.denoiser_parameters(self.name, width, tokenizer) - target)

        # Parameters grow with the width, so the first width that is no closer ends the search.
        step = WIDTH_MULTIPLE * self.options.num_attention_heads
        width = step
        while distance(width + step) < distance(width):
            width += step
        return width

    # Folders

    def folder(self, seed: int) -> Path:
        """Everything that a seed has trained, checkpoints included."""
        return self.options.folder / "models" / f"{self.name}-seed{seed}"

    def pipeline_folder(self, seed: int) -> Path:
        """The part of it that is a pipeline."""
        return self.folder(seed) if self.name == TOKENS else self.folder(seed) / "codes"

    def is_trained(self, seed: int) -> bool:
        """Whether the figures of the last part are there, which is written when all is done."""
        return (self.pipeline_folder(seed) / "metrics.json").exists()

    @property
    def trained_seed(self) -> int:
        """A seed with which it has been trained, if there is one, else the first: sizes and costs are those of all."""
        return next(filter(self.is_trained, self.options.seeds), self.options.seeds[0])

    # Training and writing

    def train(self, seed: int):
        """Train what is not trained, by the recipes; parts that were interrupted go on."""
        options = self.options
        folder = self.folder(seed)
        tokenizer = shared_tokenizer(options)

        # Options of all recipes, of those that read text, and of those of denoisers
        shared = selected_options(options, SHARED_OPTIONS) | QUIET
        shared |= {"seed": seed, "validation_rows": 64, "resume_from_checkpoint": "auto"}
        from_text = shared | {"tokenizer": str(options.folder / "tokenizer")}
        denoiser = selected_options(options, DENOISER_OPTIONS)
        denoiser["hidden_size"] = self.matched_width(tokenizer)

        # The token model has one part, which has all the minutes.
        if self.name == TOKENS:
            recipe = load_recipe()
            config = recipe.D3PMConfig(
                output_dir=str(folder),
                num_layers=self.num_layers,
                max_train_minutes=options.train_minutes,
                train_batch_size=options.train_batch_size,
                **from_text,
                **denoiser,
            )
            recipe.main(config)
            return

        # 1. The autoencoder, for its share of the minutes
        autoencoder_minutes = options.train_minutes * options.autoencoder_share
        if not (folder / "autoencoder" / "metrics.json").exists():
            recipe = load_recipe("train_vq_autoencoder")
            config = recipe.AutoencoderConfig(
                output_dir=str(folder / "autoencoder"),
                max_train_minutes=autoencoder_minutes,
                length=options.window_length,
                train_batch_size=options.autoencoder_batch_size,
                **from_text,
                **self.code_options,
            )
            recipe.main(config)

        # 2. A denoiser of each level, in the rest of the minutes
        minutes = options.train_minutes - autoencoder_minutes
        stages = {"fine": minutes}
        if self.name == TWO_LEVEL:
            coarse_share = options.coarse_share
            stages = {"coarse": minutes * coarse_share, "fine": minutes * (1 - coarse_share)}

        recipe = load_recipe("train_two_level")
        for stage, stage_minutes in stages.items():
            config = recipe.TwoLevelConfig(
                output_dir=str(folder / "codes"),
                autoencoder=str(folder / "autoencoder"),
                stage=stage,
                coarse_layers=self.num_layers,
                fine_layers=self.num_layers,
                max_train_minutes=stage_minutes,
                train_batch_size=getattr(options, f"{stage}_batch_size"),
                **shared,
                **denoiser,
            )
            recipe.main(config)

    def load(self, seed: int) -> Any:
        """The trained pipeline, with the samplers that the options ask for.

        Raises:
            FileNotFoundError: if it is not trained.
        """
        if not self.is_trained(seed):
            raise FileNotFoundError(
                f"`{self.folder(seed)}` is not trained: `--stage train` comes before."
            )
        pipe = TextDiffusionPipeline.from_pretrained(self.pipeline_folder(seed))
        pipe.set_progress_bar_config(disable=True)

        # All systems sample in the same way; one level has no coarse scheduler.
        options = self.options
        shape = {"temperature": options.temperature, "top_p": options.top_p}
        for name, scheduler in pipe.components.items():
            if name.endswith("scheduler") and scheduler is not None:
                sampler = type(scheduler)
                if options.sampler:
                    sampler = getattr(text_diffusers, options.sampler)
                setattr(pipe, name, sampler.from_config(scheduler.config, **shape))
        return pipe


def parameters_of(pipe: Any) -> int:
    """Parameters of all networks of a pipeline."""
    count = 0
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            count += part.num_parameters()
    return count
