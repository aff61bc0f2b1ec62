"""Earlier name of `text_diffusers.hub.model_card`, kept for programs that import it."""

from text_diffusers.hub.model_card import model_card

__all__ = ["model_card"]
