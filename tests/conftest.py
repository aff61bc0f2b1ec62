"""Fixtures. Nothing here or in the tests reaches the network."""

import gc
import itertools
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from datasets import Dataset  # noqa: E402

from text_diffusers import (  # noqa: E402
    D3PMAbsorbingScheduler,
    EmbeddingTransformerModel,
    TextDiffusionPipeline,
    TextTransformerModel,
)
from text_diffusers.data.rows import ShuffledRows, tokenize
from text_diffusers.data.tokenizers import train_tokenizer  # noqa: E402
from text_diffusers.evaluation.bounds import batch_bound  # noqa: E402
from text_diffusers.training.config import TrainingConfig  # noqa: E402
from text_diffusers.training.loop import TrainingLoop  # noqa: E402
from text_diffusers.training.runtime import make_accelerator  # noqa: E402

SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "the dog sat on the cat and the cat was not happy",
    "a bird sang in the tree while the cat slept",
    "she was late for the train and ran all the way",
]


def slow(*values):
    """Parameters of a case that is left to `make test-slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def mostly_slow(values, fast):
    """Parameters of a test: those of `values` that are in `fast`, and as slow ones all the others."""
    cases = []
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        cases.append(pytest.param(*parts) if value in fast else slow(*parts))
    return cases


def covering(*lists):
    """Parameters of all combinations: so many are fast that each value of each list is, and all others slow."""
    lists = [list(values) for values in lists]
    longest = max(len(values) for values in lists)
    places = itertools.product(*(range(len(values)) for values in lists))
    fast = {tuple(n % len(values) for values in lists) for n in range(longest)}
    cases = []
    for place in places:
        values = [values[index] for values, index in zip(lists, place, strict=True)]
        cases.append(pytest.param(*values) if place in fast else slow(*values))
    return cases


@pytest.fixture(autouse=True)
def one_thread():
    """Recipes set the number of threads of the process, and a test after them would have as many."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state in singletons, which would carry one test's precision into the next."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=300)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES * 40) + "\n", encoding="utf-8")
    return path


def make_denoiser(tokenizer, **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_length": 32,
    }
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = TextTransformerModel(**sizes | ids | changes)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_embedding_model(tokenizer, **changes):
    torch.manual_seed(0)
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_length": 32,
    }
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = EmbeddingTransformerModel(**{"vocab_size": len(tokenizer)} | sizes | ids | changes)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def denoiser(tokenizer):
    return make_denoiser(tokenizer)


@pytest.fixture
def pipe(tokenizer, denoiser):
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make_loop(tokenizer, tmp_path):
    """Makes a training loop; `dropout` shows whether the model's own randomness is reproduced too."""
    rows = tokenize(Dataset.from_dict({"text": SENTENCES * 30}), tokenizer, length=16)

    def make(folder="run", dropout=0.1, evaluate=None, write=None, **changes):
        settings = {
            "max_train_steps": 8,
            "train_batch_size": 16,
            "lr_warmup_steps": 2,
            "report_to": ["none"],
        }
        settings |= {"validation_steps": 0, "checkpointing_steps": 0, "num_cpu_threads": 1}
        again = {"overwrite_output_dir": "resume_from_checkpoint" not in changes}
        config = TrainingConfig(output_dir=str(tmp_path / folder), **settings | again | changes)
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)

        def loss_function(model, batch, uniform, generators):
            return batch_bound(model, scheduler, batch, uniform, generators).sum()

        model = make_denoiser(tokenizer, dropout=dropout)
        count = config.train_batch_size * config.gradient_accumulation_steps
        order = ShuffledRows(rows, rows_per_step=count, seed=config.seed)
        return TrainingLoop(
            config, make_accelerator(config), model, loss_function, order, evaluate, write
        )

    return make


def pytest_collection_finish():
    """Leave what is imported by now out of every later garbage collection, which would walk through all of it."""
    gc.collect()
    gc.freeze()
