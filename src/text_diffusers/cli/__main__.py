"""`python -m text_diffusers.cli` is the command `text-diffusers`."""

from text_diffusers.cli.app import main

main()
