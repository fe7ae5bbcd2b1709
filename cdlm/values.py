"""The value types of component parameters, for signatures: `steps: Positive = 20`.

A recipe's value is checked against them before anything is built; `cdlm show` prints their words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Of:
    """Marks a parameter whose value is a component of this kind: in a recipe, its table."""

    kind: str


Count = Annotated[int, Ge(0)]  # 0, 1, 2, ...
Positive = Annotated[int, Gt(0)]  # 1, 2, 3, ...
Fraction = Annotated[float, Ge(0), Le(1)]  # 0 to 1, both allowed
Share = Annotated[float, Ge(0), Lt(1)]  # 0 allowed, 1 not
Part = Annotated[float, Gt(0), Lt(1)]  # neither 0 nor 1
NonNegative = Annotated[float, Ge(0)]
Above0 = Annotated[float, Gt(0)]
AnyDataset = Annotated[
    Any, Of("dataset")
]  # { use = "flickr8k", ... }; the class gets the built one
AnyEncoder = Annotated[Any, Of("encoder")]  # { use = "open_clip", ... }; as above
AnyLauncher = Annotated[Any, Of("launcher")]
