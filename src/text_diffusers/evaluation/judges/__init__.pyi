from .judges import Judge, LanguageModelJudge, load_named_judge, shares_origin
from .text_figures import TextFigures, repetition, text_figures
from .word_ngrams import Verdict, WordNgramJudge

__all__ = [
    "Judge",
    "LanguageModelJudge",
    "TextFigures",
    "Verdict",
    "WordNgramJudge",
    "load_named_judge",
    "repetition",
    "shares_origin",
    "text_figures",
]
