"""Published checkpoints written as ordinary pipeline folders, which transformers and diffusers read by themselves."""

from pathlib import Path
from typing import Any

from text_diffusers.common.validation import require
from text_diffusers.hub.card_text import code, escaped, fenced
from text_diffusers.hub.published.loader import Published
from text_diffusers.hub.published.pipeline import assemble, load_parts
from text_diffusers.hub.published.repository import commit_of


def convert(
    pretrained_model_name_or_path: str | Path,
    folder: str | Path,
    dtype: Any = None,
    *,
    tokenizer: Any = None,
    scheduler: Any = None,
    **kwargs: Any,
) -> Any:
    """Write a published checkpoint as a folder of a pipeline, with a model card that says where it is from.

    `TextDiffusionPipeline.from_pretrained` loads the folder; a language model in it is one of transformers.

    Args:
        pretrained_model_name_or_path: a folder, or a repository on the Hub.
        folder: to be written, new or empty.
        dtype: of the weights; by default that in which most of them are stored.
        tokenizer, scheduler: in the place of those of the checkpoint.
        kwargs: further ones of `load_published_pipeline`.

    Returns:
        The pipeline.

    Raises:
        OSError: if a file is missing or cannot be had or written.
        ValueError: if the folder is not empty, or the checkpoint cannot be loaded, see `load_published_pipeline`.
    """
    target = Path(folder)
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(is_free, "folder", "new or empty", str(folder))

    published, tokenizer = load_parts(
        pretrained_model_name_or_path, tokenizer, dtype=dtype, **kwargs
    )
    pipeline = assemble(published, tokenizer, scheduler)
    pipeline.save_pretrained(target)
    card = converted_card(published, type(pipeline).__name__)
    (target / "README.md").write_text(card, encoding="utf-8")
    return pipeline


def converted_card(published: Published, pipeline: str) -> str:
    """README.md of a converted checkpoint."""
    licence = published.blueprint.licence
    # A folder is no name on the Hub, which the front matter would link to.
    is_repository = not Path(published.name).is_dir()
    source = (
        code(published.name) if is_repository else f"the folder {code(Path(published.name).name)}"
    )
    commit = commit_of(published.folder)
    at = f" at commit {code(commit)}" if commit else ""

    front_matter = ["---", "library_name: diffusers", "pipeline_tag: text-generation"]
    if licence is not None:
        front_matter.append(f"license: {licence}")
    if is_repository:
        front_matter.append(f"base_model: {published.name}")
    front_matter += ["tags:", "- text-diffusion", "---"]

    terms = (
        f"Of the weights: {code(licence)}, as their authors state."
        if licence is not None
        else "Of the weights: unknown here. Ask where they were published before you pass them on."
    )
    usage = "\n".join(
        [
            f"from text_diffusers import {pipeline}",
            "",
            f'pipe = {pipeline}.from_pretrained("FOLDER OR REPOSITORY")',
        ]
    )
    sections = [
        "\n".join(front_matter),
        f"# {escaped(published.blueprint.family)}, converted",
        f"The weights of {source}{at}, of the family {escaped(published.blueprint.family)}, in the layout of "
        "text-diffusers. Nothing was trained.",
        fenced(usage, "python"),
        f"## Licence\n\n{terms}",
    ]
    return "\n\n".join(sections) + "\n"
