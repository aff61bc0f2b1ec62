"""Earlier name of `text_diffusers.guidance.patterns`, kept for programs that import it."""

from text_diffusers.guidance.patterns import PatternControl, TokenTags, tag_tokens

__all__ = ["PatternControl", "TokenTags", "tag_tokens"]
