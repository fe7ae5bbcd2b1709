"""A tokenizer of letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class Component:
    """Every character of a lower-case caption is a token: no caption is outside the vocabulary.

    0 pads, 1 ends, 2 stands for characters that no training caption had.
    Shapes: captions -> ids B L, mask B L.   Captions are four to five times as long as in words.
    """

    pad = 0
    end = 1
    unknown = 2

    def __init__(self) -> None:
        self._become("")

    def fit(self, captions: Sequence[str]) -> None:
        """Learn which characters there are."""
        self._become("".join(sorted(set("".join(captions).lower()))))

    def _become(self, letters: str) -> None:
        self._letters = letters
        self._ids = {letter: i for i, letter in enumerate(letters, start=3)}

    def __len__(self) -> int:
        return 3 + len(self._letters)

    def encode(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """The beginning of each caption, an end token, and padding."""
        ids = torch.full((len(captions), length), self.pad)
        used = torch.zeros(len(captions), dtype=torch.int64)
        for row, caption in enumerate(captions):
            said = [self._ids.get(letter, self.unknown) for letter in caption.lower()]
            said = [*said[: length - 1], self.end]
            ids[row, : len(said)] = torch.tensor(said)
            used[row] = len(said)
        return ids, torch.arange(length) < used[:, None]

    def decode(self, ids: Tensor) -> list[str]:
        """The characters before the first end token; other tokens are dropped."""
        return ["".join(map(self._letter, self._before_end(row))) for row in ids.tolist()]

    def _before_end(self, row: list[int]) -> list[int]:
        return row[: row.index(self.end)] if self.end in row else row

    def _letter(self, token: int) -> str:
        return self._letters[token - 3] if token >= 3 else ""

    def save(self, path: Path) -> None:
        """The characters, as JSON."""
        path.write_text(json.dumps({"letters": self._letters}), encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take them from there."""
        self._become(json.loads(path.read_text(encoding="utf-8"))["letters"])
