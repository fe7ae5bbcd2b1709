"""Rounding that remembers: between two denoising steps most rows keep their word."""

from __future__ import annotations

import torch
from torch import Tensor

from cdlm.kernels import cpu
from cdlm.kernels.cpu import margin, scores_of
from cdlm.kernels.exact import GATHERED, settle
from cdlm.kernels.words import WordTable


class Remember:
    """The nearest word of every row, step after step, by what the steps before have shown.

    1. ||x - e_a|| is less than half of e_a's distance to its nearest other word: it is still a
       (Elkan 2003, lemma 1).
    2. Of each row's last scan, at x_ref, its best blocks of words are remembered, and what no word
       of each block, and of the rest, scored above. None can have risen by more than
       (x - x_ref) . mean + ||x - x_ref|| max ||e_v - mean||: blocks that cannot reach the row's
       token are passed over, and if the best of the others is above the rest, it wins.
    3. All other rows are scanned anew.

    The tokens are those of `nearest_token`, always. One such object for one sequence of calls with
    as many rows each. It waits for the device between its parts, so a CUDA graph can't hold it.
    """

    def __init__(self, table: WordTable):
        self.table = table
        self.unchanged = 0  # rows whose token was the same in the last two calls
        self.scanned = 0  # rows that were scanned in the last call
        self._ids = torch.empty(0, dtype=torch.long)
        self._seen = self._words = self._ceilings = table.bias  # of the last scan of each row
        self._stayed = self._ids.bool()  # rows whose token was the same in the last two calls

    def __call__(self, x: Tensor) -> Tensor:
        """The nearest words, as `nearest_token` says them. Shapes: x ... E -> ids ..., int64."""
        return self._look(x.detach().float().reshape(-1, x.shape[-1])).view(x.shape[:-1])

    def _look(self, x: Tensor) -> Tensor:
        if len(self._ids) != len(x):
            self._ids, self._words, self._ceilings = _search(x, self.table)
            self._seen = x.clone()
            self._stayed = torch.zeros_like(self._ids, dtype=torch.bool)
            self.unchanged, self.scanned = 0, len(x)
            return self._ids.clone()
        before = self._ids.clone()
        rows = self._not_kept(x)
        known = [self._recall(x, some) for some in rows.split(self._rows_at_a_time())]
        self._scan(x, rows[~torch.cat(known)])
        self._stayed = self._ids == before
        self.unchanged = int(self._stayed.sum())
        return self._ids.clone()

    def _not_kept(self, x: Tensor) -> Tensor:
        """The rows but those nearer to their word than half way to any other. Shapes: N E -> P.

        Only rows that kept their word before are asked: to learn how far a word is from the others
        costs a scan, which words that come and go are not worth.
        """
        rows = self._stayed.nonzero()[:, 0]
        ids = self._ids[rows]
        far = torch.linalg.vector_norm(x[rows] - self.table.words[ids], dim=1)
        kept = far * (1 + self.table.width * 2.0**-22) < self.table.half_gaps(ids)
        open_ = torch.ones_like(self._stayed)
        open_[rows[kept]] = False
        return open_.nonzero()[:, 0]

    def _rows_at_a_time(self) -> int:
        return max(1, GATHERED // (self._words[:1].numel() * self.table.width))

    def _recall(self, x: Tensor, rows: Tensor) -> Tensor:
        """Decide those of the rows that their remembered blocks can decide. -> of rows, bool.

        A block is looked at only where it may hold a word that scores above the row's token.
        """
        here, table = x[rows], self.table
        error = margin(torch.linalg.vector_norm(here, dim=1), table)
        ceilings = self._ceilings[rows] + self._rise(here, rows)[:, None]
        held = self._ids[rows]
        top = (here * table.words[held]).sum(1) + table.bias[held]
        row, block = (ceilings[:, :-1] >= (top - error)[:, None]).nonzero(as_tuple=True)
        words = self._words[rows[row], block]
        scores = scores_of(here, table, row, words)
        top = top.scatter_reduce(0, row, scores.amax(1), "amax")
        known = top - error > ceilings[:, -1]
        near, place = (known[row, None] & (scores >= (top - 2 * error)[row, None])).nonzero(
            as_tuple=True
        )
        found = settle(here, table.words, row[near], words[near, place], table.radius)
        self._ids[rows] = torch.where(known, found, held)
        return known

    def _rise(self, here: Tensor, rows: Tensor) -> Tensor:
        """How much more any word may score now than at the row's last scan. Shapes: P E -> P."""
        moved = here - self._seen[rows]
        rounding = self.table.width * 2.0**-21
        room = self.table.spread + rounding * self.table.radius
        drift = torch.linalg.vector_norm(moved, dim=1)
        return moved @ self.table.mean + drift * room * (1 + rounding)

    def _scan(self, x: Tensor, rows: Tensor) -> None:
        self.scanned = len(rows)
        if len(rows):
            self._seen[rows] = x[rows]
            found = _search(x[rows], self.table)
            self._ids[rows], self._words[rows], self._ceilings[rows] = found


def _search(x: Tensor, table: WordTable) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest words, the best blocks of words, and their ceilings: see `cpu.search`."""
    if x.device.type == "cuda":
        from cdlm.kernels import gpu

        return gpu.search(x, table)
    return cpu.search(x, table)
