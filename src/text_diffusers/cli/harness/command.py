"""`text-diffusers lm-eval`: the command line of lm-eval, which then knows the model `text_diffusers`."""

import sys

import typer

# Its help and its options are those of lm-eval.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval(context: typer.Context):
    """Score a model on benchmarks with EleutherAI's lm-eval: all arguments are those of its own command line.

    `text-diffusers lm-eval --model text_diffusers --model_args pretrained=runs/quickstart,num_times=32 --tasks piqa`

    `text-diffusers lm-eval run --help` shows them. Several processes share the work under `accelerate launch
    --num_processes 2 -m text_diffusers.cli lm-eval ...`.
    """
    # Registers the model; lm-eval looks for none outside of its own package.
    import text_diffusers.evaluation.harness.model  # noqa: F401  # isort: skip
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
