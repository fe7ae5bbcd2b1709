"""How captions may begin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.protocols import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Component:
    """Every caption begins with one of these words; those that the vocabulary lacks are left out.

    Shapes: -> L V.   Raises CdlmError where it lacks them all, or cuts them into pieces.
    """

    words: tuple[str, ...] = ("a", "an", "the", "two")

    def allowed(self, tokenizer: Tokenizer, length: int) -> Tensor:
        """Anything anywhere, but at the first place."""
        ids, _ = tokenizer.encode(self.words, 2)
        first = ids[:, 0].tolist()
        known = [i for i, said in zip(first, tokenizer.decode(ids), strict=True) if said]
        whole = [i for i in known if tokenizer.decode(torch.tensor([[i]]))[0] in self.words]
        if not whole:
            raise CdlmError(f"none of {', '.join(self.words)} is a word of the vocabulary")
        allowed = torch.ones(length, len(tokenizer), dtype=torch.bool)
        allowed[0] = False
        allowed[0, whole] = True
        return allowed
