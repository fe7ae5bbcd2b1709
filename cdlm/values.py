"""The value types of component parameters, for signatures: `steps: Positive = 20`.

A recipe's value is checked against them before anything is built; `cdlm show` prints their words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Annotated, Any


@dataclass(frozen=True)
class Of:
    """Marks a parameter whose value is a component of this kind: in a recipe, its table."""

    kind: str


@dataclass(frozen=True)
class Bound:
    """Marks a number that is on one side of a limit: Bound("at least", 0)."""

    side: str
    limit: float

    def keeps(self, value: float) -> bool:
        return SIDES[self.side](value, self.limit)

    def __str__(self) -> str:
        return f"{self.side} {self.limit}"


SIDES: dict[str, Callable[[float, float], bool]] = {
    "at least": ge,
    "above": gt,
    "at most": le,
    "below": lt,
}

Count = Annotated[int, Bound("at least", 0)]  # 0, 1, 2, ...
Positive = Annotated[int, Bound("above", 0)]  # 1, 2, 3, ...
Fraction = Annotated[float, Bound("at least", 0), Bound("at most", 1)]  # 0 to 1, both allowed
Share = Annotated[float, Bound("at least", 0), Bound("below", 1)]  # 0 allowed, 1 not
Part = Annotated[float, Bound("above", 0), Bound("below", 1)]  # neither 0 nor 1
NonNegative = Annotated[float, Bound("at least", 0)]
Above0 = Annotated[float, Bound("above", 0)]
AnyDataset = Annotated[
    Any, Of("dataset")
]  # { use = "flickr8k", ... }; the class gets the built one
AnyEncoder = Annotated[Any, Of("encoder")]  # { use = "open_clip", ... }; as above
AnyLauncher = Annotated[Any, Of("launcher")]
