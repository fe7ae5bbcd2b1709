"""Learning from the score of what the network itself says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from cdlm.network import withhold
from cdlm.parts.cider import CiderD
from cdlm.records import Batch, Condition, Drawn
from cdlm.values import Positive

if TYPE_CHECKING:
    from cdlm.compose import Parts


class SelfCritical:
    """Of several captions that it draws of each image, those above the others' CIDEr-D gain.

    Gradient: -mean over draws of (r_k - mean_{j != k} r_j) grad log p(caption_k), r the reward:
    that of the expected CIDEr-D, without bias. The value is minus the mean reward, 0 to -10.
    Every row of a batch counts as an image, so `train.batch` images are drawn `draws` times each.
    Meant for a captioner that is trained already (train.start), with a small train.lr.
    Shapes: -> {"reward": ()}.
    Source: Rennie et al. 2017 (SCST); the others of an image as its baseline: Luo 2020, arXiv
    2003.09971; for diffusion, Luo et al. 2022 (SCD-Net), arXiv 2212.03099.
    Raises ValueError for a single draw.
    """

    needs: ClassVar[set[str]] = {"draws"}

    def __init__(
        self,
        *,
        draws: Positive = 5,  # captions of each image
    ):
        if draws == 1:
            raise ValueError("draws = 1: a caption is judged by others of its image; draw more")
        self.draws = draws
        self.reward = CiderD([])

    def begin(self, references: Sequence[Sequence[str]]) -> None:
        self.reward = CiderD(references, end=True)

    def __call__(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        condition = _repeated(withhold(batch, 0.0, rng), self.draws)
        drawn: Drawn = parts.process.draw(parts, condition, rng)  # type: ignore[attr-defined]
        rewards = self.judged(parts.tokenizer.decode(drawn.ids), batch.references)
        rewards = rewards.to(drawn.ids.device)
        others = (rewards.sum(1, keepdim=True) - rewards) / (self.draws - 1)
        log_p = parts.process.log_p(parts, drawn, condition, rng)  # type: ignore[attr-defined]
        gain = ((rewards - others) * log_p.view_as(rewards)).mean()
        return {"reward": gain.detach() - gain - rewards.mean()}

    def judged(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """The reward of each draw, B draws; references are those of each image."""
        of = [texts for texts in references for _ in range(self.draws)]
        rewards = [self.reward(*pair) for pair in zip(captions, of, strict=True)]
        return torch.tensor(rewards).view(-1, self.draws)


def _repeated(condition: Condition, times: int) -> Condition:
    """So many rows of each, as in sampling: without the features of a caption that is there."""
    features, keep = (x.repeat_interleave(times, 0) for x in (condition.features, condition.keep))
    return Condition(features=features, keep=keep)
