"""The three systems of benchmarks/two_level.py: their sizes, their training by the recipes, and their pipelines."""

from pathlib import Path
from typing import Any

import torch
from common.recipes import QUIET, load_recipe, selected_options
from common.results import Record, make_folder_once
from transformers import AutoTokenizer

import text_diffusers
from long_texts.config import ONE_LEVEL, TOKENS, TWO_LEVEL, TwoLevelConfig
from text_diffusers import CodeTransformerModel, TextDiffusionPipeline, TextTransformerModel
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tokenizers import train_tokenizer

WIDTH_MULTIPLE = 2  # of the heads: a head's width is even
# Options of the benchmark that are those of all recipes, of the autoencoder's, and of the denoisers'.
SHARED_OPTIONS = (
    "dataset",
    "validation_fraction",
    "max_train_steps",
    "lr_warmup_steps",
    "checkpointing_steps",
)
CODE_OPTIONS = (
    "patch_length",
    "coarse_ratio",
    "num_fine_codes",
    "num_coarse_codes",
    "num_attention_heads",
    "window_length",
    "hidden_size",
)
DENOISER_OPTIONS = ("length", "min_length", "learning_rate", "num_attention_heads", "ema_decay")


def shared_tokenizer(options: TwoLevelConfig) -> Any:
    """The tokenizer of all systems and seeds, made once from the training texts."""

    def save(folder: Path):
        train_texts, _ = split_documents(
            load_documents(options.dataset), options.validation_fraction
        )
        train_tokenizer(train_texts["text"], options.vocab_size).save_pretrained(folder)

    return AutoTokenizer.from_pretrained(make_folder_once(options.folder / "tokenizer", save))


class System:
    """One of the systems, as it is trained with each seed.

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
        return selected_options(self.options, CODE_OPTIONS) | {
            "levels": 2 if self.name == TWO_LEVEL else 1
        }

    def denoiser_parameters(self, kind: str, width: int, tokenizer: Any) -> int:
        """Parameters of a denoiser: "coarse" or "fine" of two levels, that of "one-level", or of "tokens"."""
        options = self.options
        sizes = {
            "hidden_size": width,
            "num_layers": options.num_layers
            if kind in ("coarse", "fine")
            else options.baseline_layers,
            "num_attention_heads": options.num_attention_heads,
        }
        with torch.device("meta"):
            if kind == TOKENS:
                ids = {
                    "mask_token_id": tokenizer.mask_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                }
                model = TextTransformerModel(
                    len(tokenizer), time_conditioning=False, **sizes, **ids
                )
                return model.num_parameters()

            num_codes = options.num_coarse_codes if kind == "coarse" else options.num_fine_codes
            if kind == "fine":
                sizes["num_context_codes"] = options.num_coarse_codes
                sizes["context_ratio"] = options.coarse_ratio
            return CodeTransformerModel(num_codes + 1, **sizes).num_parameters()  # one for the mask

    def num_parameters(self, width: int, tokenizer: Any) -> int:
        """Parameters of all parts; `width` is that of the denoisers."""
        if self.name == TOKENS:
            return self.denoiser_parameters(TOKENS, width, tokenizer)

        recipe = load_recipe("train_vq_autoencoder")
        config = recipe.AutoencoderConfig(
            output_dir="", length=self.options.length, **self.code_options
        )
        count = recipe.build_model(config, len(tokenizer), tokenizer.mask_token_id).num_parameters()
        for kind in ("coarse", "fine") if self.name == TWO_LEVEL else (ONE_LEVEL,):
            count += self.denoiser_parameters(kind, width, tokenizer)
        return count

    def matched_width(self, tokenizer: Any) -> int:
        """The width of a baseline's denoiser that brings its system closest to the parameters of two levels."""
        if self.name == TWO_LEVEL:
            return self.options.hidden_size
        usual = self.options.hidden_size
        target = System(TWO_LEVEL, self.options).num_parameters(usual, tokenizer)
        target -= self.num_parameters(usual, tokenizer)  # less the other parts of the baseline
        target += self.denoiser_parameters(self.name, usual, tokenizer)

        def distance(width: int) -> int:
            return abs(self.denoiser_parameters(self.name, width, tokenizer) - target)

        step = WIDTH_MULTIPLE * self.options.num_attention_heads
        width = step
        while distance(width + step) < distance(width):
            width += step
        return width

    # Folders

    def folder(self, seed: int) -> Path:
        return self.options.folder / "models" / f"{self.name}-seed{seed}"

    def pipeline_folder(self, seed: int) -> Path:
        return self.folder(seed) if self.name == TOKENS else self.folder(seed) / "codes"

    def is_trained(self, seed: int) -> bool:
        """Whether the figures of the last part are there, which is written when all is done."""
        return (self.pipeline_folder(seed) / "metrics.json").exists()

    @property
    def trained_seed(self) -> int:
        """A seed of which it is trained, if there is one, else the first."""
        return next(filter(self.is_trained, self.options.seeds), self.options.seeds[0])

    # Training and writing

    def train(self, seed: int):
        """Train what is not trained, by the recipes; parts that were interrupted go on."""
        options = self.options
        folder = self.folder(seed)
        tokenizer = shared_tokenizer(options)
        shared = (
            selected_options(options, SHARED_OPTIONS)
            | QUIET
            | {
                "seed": seed,
                "validation_rows": 64,
                "resume_from_checkpoint": "auto",
            }
        )
        from_text = shared | {"tokenizer": str(options.folder / "tokenizer")}
        denoiser = selected_options(options, DENOISER_OPTIONS) | {
            "hidden_size": self.matched_width(tokenizer)
        }
        layers = options.num_layers if self.name == TWO_LEVEL else options.baseline_layers

        if self.name == TOKENS:
            recipe = load_recipe()
            config = recipe.D3PMConfig(
                output_dir=str(folder),
                num_layers=layers,
                max_train_minutes=options.train_minutes,
                train_batch_size=options.train_batch_size,
                **from_text,
                **denoiser,
            )
            recipe.main(config)
            return

        # 1. The autoencoder
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

        # 2. A denoiser of each level
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
                coarse_layers=layers,
                fine_layers=layers,
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

        options = self.options
        for name, part in pipe.components.items():
            if name.endswith("scheduler") and part is not None:
                sampler = (
                    getattr(text_diffusers, options.sampler) if options.sampler else type(part)
                )
                shaped = sampler.from_config(
                    part.config, temperature=options.temperature, top_p=options.top_p
                )
                setattr(pipe, name, shaped)
        return pipe


def parameters_of(pipe: Any) -> int:
    """Of all parts of a pipeline."""
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(model.num_parameters() for model in models)
