"""The terms of the training loss. Each is averaged over the scored positions of a caption.

The first ones compare what the network says with what it should have said, averaged over E. Those
that speak of words or of the variational bound are in nats per token: summed over E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cdlm.records import Guess, Level
from cdlm.values import Above0, NonNegative, Part, Positive


def _over_positions(error: Tensor, mask: Tensor) -> Tensor:
    """B L -> B: the mean over the positions where mask B L is True."""
    return (error * mask).sum(1) / mask.sum(1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Mean squared error of what the network says.

    mean over positions and E of (got - wanted)^2.   Shapes: -> B.   Source: Ho et al. 2020, eq. 14.
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        return _over_positions((guess.got - guess.wanted).square().mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class L1:
    """Mean absolute error of what the network says.

    mean over positions and E of |got - wanted|.   Shapes: -> B.
    Source: the released code of Xu 2022 (CLIP-Diffusion-LM), summed over positions there; its paper
    writes a squared error (section 3.1).
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        return _over_positions((guess.got - guess.wanted).abs().mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class Huber:
    """Squared error where it is small, absolute error where it is large.

    mean over positions and E of d^2 / 2 where |d| < delta, else delta (|d| - delta / 2);
    d = got - wanted.   Shapes: -> B.   Source: Huber 1964.
    """

    weight: NonNegative = 1.0
    delta: Above0 = 1.0  # where the two meet

    def __call__(self, guess: Guess) -> Tensor:
        error = F.huber_loss(guess.got, guess.wanted, reduction="none", delta=self.delta)
        return _over_positions(error.mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class MinSnr:
    """Squared error of the implied x0, weighted by the signal-to-noise ratio, up to a limit.

    min(SNR, gamma) mean over positions and E of (x0_hat - x0)^2,  SNR = alpha^2 / sigma^2.
    Written so it is the same under every target: for eps it is min(SNR, gamma) / SNR times the
    error of the noise, for v min(SNR, gamma) / (SNR + 1) times that of the velocity.
    Shapes: -> B.   Source: Hang et al. 2023, arXiv 2303.09556, section 3.4.
    """

    weight: NonNegative = 1.0
    gamma: Above0 = 5.0  # the largest weight

    def __call__(self, guess: Guess) -> Tensor:
        level = guess.schedule(guess.noised.t)
        snr = (level.alpha / level.sigma).square().clamp(max=self.gamma)
        error = (guess.x0_hat - guess.noised.x0).square().mean(-1)
        return snr * _over_positions(error, guess.mask)


# ------------------------------------------------------------------------------------------ words


def _nats(x: Tensor, guess: Guess) -> Tensor:
    """-log softmax(embedding.logits(x))[word]. Shapes: x B L E -> B."""
    logits = guess.embedding.logits(x)
    nats = F.cross_entropy(logits.flatten(0, 1), guess.batch.ids.flatten(), reduction="none")
    return _over_positions(nats.view_as(guess.mask), guess.mask)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Cross-entropy of the true words under the scores of the x0 that the network implies.

    mean over positions of -log softmax(embedding.logits(x))[word],  x = x0_hat, or x0 itself.
    Shapes: -> B.   Units: nats per token.
    It keeps a learned embedding from collapsing. Of x0_hat it is that of Xu 2022
    (CLIP-Diffusion-LM), section 3.1, and the anchor loss of Gao et al. 2022 (Difformer), arXiv
    2212.09412. Of x0 it is that of Li et al. 2022 (Diffusion-LM), eq. 2, and teaches the embedding
    alone; their code adds the noise of the first step to x0 beforehand, this one does not.
    """

    weight: NonNegative = 1.0
    of: Literal["x0_hat", "x0"] = "x0_hat"  # the estimate, or the clean embeddings

    def __call__(self, guess: Guess) -> Tensor:
        return _nats(guess.x0_hat if self.of == "x0_hat" else guess.noised.x0, guess)


def _x0_hat_early(guess: Guess, t: float) -> Tensor:
    """What the network makes of the same text with hardly any noise. -> B L E."""
    times = torch.full_like(guess.noised.t, t)
    level = guess.schedule(times).over(guess.noised.x0)
    return guess.think(level.alpha * guess.noised.x0 + level.sigma * guess.noised.eps, times)


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Error of the estimate where there is hardly any noise: it ties the embedding to the network.

    mean over positions and E of (E(w) - x0_hat(x_1, 1))^2, or of its size.
    It asks the network once more.   Shapes: -> B.
    Source: Li et al. 2022 (Diffusion-LM), eq. 2, where it is asked only at the first step; Xu 2022
    (CLIP-Diffusion-LM), section 3.1: in every update, and l1 in its code, with noise of its own.
    """

    weight: NonNegative = 1.0
    norm: Literal["mse", "l1"] = "mse"  # squared or absolute error
    t: Part = 1e-3  # the first step; 1 / T

    def __call__(self, guess: Guess) -> Tensor:
        error = _x0_hat_early(guess, self.t) - guess.noised.x0
        size = error.square() if self.norm == "mse" else error.abs()
        return _over_positions(size.mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class AnchorRounding:
    """Cross-entropy of the true words where there is hardly any noise.

    mean over positions of -log softmax(embedding.logits(x0_hat(x_1, 1)))[word].
    It asks the network once more.   Shapes: -> B.   Units: nats per token.
    Source: the released code of Xu 2022 (CLIP-Diffusion-LM): the second of its two rounding terms.
    """

    weight: NonNegative = 1.0
    t: Part = 1e-3  # the first step; 1 / T

    def __call__(self, guess: Guess) -> Tensor:
        return _nats(_x0_hat_early(guess, self.t), guess)


# ------------------------------------------------------------------------- the variational bound


@dataclass(frozen=True, kw_only=True)
class Prior:
    """How far the noisiest level is from pure noise: the bound's prior term.

    KL(q(x_1 | x0) || N(0, I)) = sum over E of (alpha^2 x0^2 + sigma^2 - 1 - log sigma^2) / 2 at t
    = 1, mean over positions.   Shapes: -> B.   Units: nats per token.
    Only the embedding, or a schedule that learns, can lower it.   Source: Ho et al. 2020, eq. 5.
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        level = guess.schedule(torch.ones_like(guess.noised.t)).over(guess.noised.x0)
        variance = level.sigma.square()
        nats = ((level.alpha * guess.noised.x0).square() + variance - 1 - variance.log()) / 2
        return _over_positions(nats.sum(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class Vlb:
    """The bound's term of one of T steps, times T: over random steps, an estimate of their sum.

    t > 1 / T: T sum over E of KL(q(x_s | x_t, x0) || p(x_s | x_t)),  s = t - 1 / T; with a fixed
    variance at spread 0 that is T (SNR(s) - SNR(t)) / 2 (x0_hat - x0)^2;
    else: T times -log softmax(embedding.logits(x0_hat))[word]. With `prior` the bound on -log p(w)
    is complete where timesteps are those of the same T.
    Shapes: -> B.   Units: nats per token, far larger than mse: weigh it by 0.001 or so.
    Source: Ho et al. 2020, eq. 5; Kingma et al. 2021 (VDM), section 4; Li et al. 2022, eq. 1.
    """

    provides: ClassVar[set[str]] = {"vlb"}

    weight: NonNegative = 1.0
    steps: Positive = 1000  # T
    hybrid: bool = False  # the mean does not learn from it, only the variance (iDDPM's L_hybrid)

    def __call__(self, guess: Guess) -> Tensor:
        z, t = guess.noised, guess.noised.t
        x0, x0_hat = z.x0, guess.x0_hat
        if self.hybrid:
            x0, x0_hat = x0.detach(), x0_hat.detach()
        first = t < 1.5 / self.steps  # the step to clean text, whatever the rounding of k / T
        # there is none before it: two other levels stand there, whose KL is not used
        then = (t - 1 / self.steps).clamp(min=1 / self.steps)
        now = guess.schedule(torch.maximum(t, then + 1 / self.steps)).over(z.x0)
        nats = step_kl(x0, x0_hat, now, guess.schedule(then).over(z.x0), guess.spread)
        inner = _over_positions(nats.sum(-1), guess.mask)
        return self.steps * torch.where(first, _nats(x0_hat, guess), inner)


def step_kl(x0: Tensor, x0_hat: Tensor, now: Level, then: Level, spread: Tensor) -> Tensor:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) of every number, in nats. Shapes: B L E -> B L E.

    Both have the posterior's mean, of x0 and of x0_hat, so that x_t falls out of their difference;
    log of p's variance = (1 - spread) log posterior + spread log forward.
    Source: Ho et al. 2020, eq. 7; Nichol & Dhariwal 2021, eq. 15.
    """
    forward = 1 - (now.alpha / then.alpha).square()
    posterior = (then.sigma / now.sigma).square() * forward
    moved = then.alpha * forward / now.sigma.square() * (x0 - x0_hat)
    log_ratio = spread * (posterior / forward).log()  # of q's variance to p's
    # expm1, as the two variances are so alike that exp(x) - 1 - x would be rounding in float32
    wider = log_ratio.expm1() - log_ratio
    return (wider + moved.square() * log_ratio.exp() / posterior) / 2


# ---------------------------------------------------------------------- what teaches other parts


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contrastive loss of estimates and images: it teaches the guidance `classifier`.

    Mean of both directions' cross-entropy of similarity(x0_hat_b, image_k) over the batch, where
    b = k is right; other captions of the same image are left out, not wrong, and so are those
    whose image is withheld. No gradient reaches the network.
    Shapes: -> B.   Units: nats.   Source: Radford et al. 2021 (CLIP), section 2.3; on noisy input
    Nichol et al. 2021 (GLIDE), section 4.4.
    """

    needs: ClassVar[set[str]] = {"match_head"}
    provides: ClassVar[set[str]] = {"match_loss"}

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        features, keep = guess.condition.features, guess.condition.keep
        scores = guess.guidance.similarity(  # type: ignore[attr-defined]  # by `needs`
            guess.x0_hat.detach(), guess.noised.t, guess.mask, features
        )
        _, image = features.flatten(1).unique(dim=0, return_inverse=True)
        same = image[:, None] == image
        out = (same | ~keep) & ~torch.eye(len(keep), dtype=torch.bool, device=keep.device)
        right = torch.arange(len(keep), device=keep.device)
        both = [
            F.cross_entropy(table.masked_fill(out, -torch.inf), right, reduction="none")
            for table in (scores, scores.T)
        ]
        return torch.stack(both).mean(0) * keep


@dataclass(frozen=True, kw_only=True)
class Length:
    """Cross-entropy of the caption's length: it teaches the length `predicted`.

    -log p(place of the end token | image).   Shapes: -> B.   Units: nats.
    Source: Zhu et al. 2022 (DDCap), arXiv 2211.11694, its length prediction.
    """

    needs: ClassVar[set[str]] = {"length_head"}
    provides: ClassVar[set[str]] = {"length_loss"}

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        logits = guess.length.logits(guess.condition)  # type: ignore[attr-defined]  # by `needs`
        return F.cross_entropy(logits, guess.batch.mask.sum(1) - 1, reduction="none")
