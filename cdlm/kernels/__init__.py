"""The hot operations of sampling: the nearest word, exactly, and what is done with it."""

from cdlm.kernels.nearest import nearest_token, nearest_word, round_and_step
from cdlm.kernels.remember import Remember
from cdlm.kernels.words import WordTable, prepare_table

__all__ = [
    "Remember",
    "WordTable",
    "nearest_token",
    "nearest_word",
    "prepare_table",
    "round_and_step",
]
