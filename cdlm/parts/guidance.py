"""How the predictions with and without the image make one."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.records import Condition, Dims
from cdlm.values import Fraction, NonNegative, Part, Positive, Share


class Plain(nn.Module):
    """The prediction with the image is all there is.

    y = with.   Shapes: B L E.
    """

    def __init__(self, *, drop: Share = 0.0):  # share of captions trained without their image
        super().__init__()
        self.drop = drop

    def both(self, t: Tensor) -> bool:
        return False

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        return with_


class Scale(nn.Module):
    """Classifier-free guidance: away from what would be said without the image.

    y = without + scale (with - without) where least_t <= t <= most_t, else y = with.
    Shapes: B L E.   Units: scale 1 is none, as Imagen and Stable Diffusion count. Ho & Salimans'
    own w is 0 for none: y = (1 + w) with - w without, so that scale = 1 + w.
    The image is dropped from a share of the training captions.
    Source: Ho & Salimans 2021, eq. 6; the window Kynkaanniemi et al. 2024, arXiv 2404.07724.
    Raises ValueError for a window without any time in it.
    """

    afterwards: ClassVar[set[str]] = {"scale", "least_t", "most_t"}

    def __init__(
        self,
        *,
        scale: NonNegative = 1.5,  # 1 is none, above 1 follows the image more closely
        drop: Part = 0.1,  # share of captions trained without their image
        least_t: Fraction = 0.0,  # guidance only at times from this on
        most_t: Fraction = 1.0,  # and up to this
    ):
        super().__init__()
        if least_t > most_t:
            raise ValueError(f"no time is between least_t = {least_t} and most_t = {most_t}")
        self.scale, self.drop, self.least_t, self.most_t = scale, drop, least_t, most_t

    def both(self, t: Tensor) -> bool:
        """Not while training: there the dropped images are all that it needs."""
        return self.scale != 1 and not self.training and bool(self._counts(t).any())

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        if self.training:
            return with_
        guided = without + self.scale * (with_ - without)
        return torch.where(self._counts(t)[:, None, None], guided, with_)

    def _counts(self, t: Tensor) -> Tensor:
        return (t >= self.least_t) & (t <= self.most_t)


class Linear(nn.Module):
    """A learned linear layer moves the prediction along what the image changes, at each position.

    y = with + W (with - without),  W E x E, at first 0: the plain prediction. Classifier-free
    guidance is W = (scale - 1) I. Trained with the network, so both branches run in training.
    Shapes: B L E.   Source: the lab notes that cdlm grew from, "linear guidance".
    """

    def __init__(
        self,
        *,
        drop: Share = 0.1,  # share of captions trained without their image
        dims: Dims,
    ):
        super().__init__()
        self.drop = drop
        self.mix = nn.Linear(dims.width, dims.width, bias=False)
        nn.init.zeros_(self.mix.weight)

    def both(self, t: Tensor) -> bool:
        return True

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        return with_ + self.mix(with_ - without)


class Transformer(nn.Module):
    """A small transformer reads both predictions and says, for each number, how far to go.

    y = with + g (with - without),  g = write(transformer(read([with, without]))) B L E, at first 0:
    the plain prediction. Classifier-free guidance is g = scale - 1 everywhere. Trained with the
    network, so both branches run in training.
    Shapes: B L E.   Source: the lab notes that cdlm grew from, "transformer guidance".
    """

    def __init__(
        self,
        *,
        layers: Positive = 1,
        heads: Positive = 4,  # must divide `inner`
        inner: Positive = 64,  # its width
        drop: Share = 0.1,  # share of captions trained without their image
        dims: Dims,
    ):
        super().__init__()
        if inner % heads:
            raise ValueError(f"heads = {heads} can't share inner = {inner} equally")
        self.drop = drop
        self.read = nn.Linear(2 * dims.width, inner)
        layer = nn.TransformerEncoderLayer(
            inner, heads, 4 * inner, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.write = nn.Linear(inner, dims.width)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def both(self, t: Tensor) -> bool:
        return True

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        h = self.read(torch.cat([with_, without], -1))
        h = self.layers(h, src_key_padding_mask=~mask)
        return with_ + self.write(h) * (with_ - without)


class Classifier(nn.Module):
    """The estimate moves to where a small network finds it more like the image.

    y = with + scale d/dx similarity(x, image) at x = with,
    similarity = tau cos(f(x, t), g(image)),  f an MLP of every position and the time, averaged over
    the caption, g linear. The loss `match` teaches f and g on the network's own estimates, at every
    noise level; nothing else learns from it. The network's answer must be x0 itself. A withheld
    image moves nothing. By Bayes' rule the slope's factor would be the covariance of x0 given x_t;
    here one number stands for it at every t.
    Shapes: B L E.   Source: Dhariwal & Nichol 2021, section 4, with a contrastive head in the
    classifier's place, as Nichol et al. 2021 (GLIDE), sections 2.4 and 4.4; it looks at x0_hat,
    where both look at x_t.
    """

    needs: ClassVar[set[str]] = {"x0", "match_loss"}
    provides: ClassVar[set[str]] = {"match_head"}
    afterwards: ClassVar[set[str]] = {"scale"}

    def __init__(
        self,
        *,
        scale: NonNegative = 1.0,  # 0 is none
        inner: Positive = 128,  # width of the space that is shared
        drop: Share = 0.0,  # share of captions trained without their image
        dims: Dims,
    ):
        super().__init__()
        self.scale, self.drop = scale, drop
        self.text = nn.Sequential(
            nn.Linear(dims.width + 1, inner), nn.SiLU(), nn.Linear(inner, inner)
        )
        self.image = nn.Sequential(
            nn.LayerNorm(dims.image_width), nn.Linear(dims.image_width, inner)
        )
        self.log_tau = nn.Parameter(torch.tensor(math.log(10.0)))

    def both(self, t: Tensor) -> bool:
        return False

    def similarity(self, x0_hat: Tensor, t: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        """Of every caption with every image. Shapes: B L E, t B, mask B L, K N C -> B K."""
        time = t[:, None, None].expand(*x0_hat.shape[:2], 1)
        positions = self.text(torch.cat([x0_hat, time], -1)) * mask[..., None]
        texts = positions.sum(1) / mask.sum(1, keepdim=True)
        images = self.image(features.mean(1))
        return self.log_tau.exp() * F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        if self.training or not self.scale:
            return with_
        slope = self._slope(with_, t, mask, condition.features, learns=torch.is_grad_enabled())
        return with_ + self.scale * condition.keep[:, None, None] * slope

    def _slope(self, x: Tensor, t: Tensor, mask: Tensor, features: Tensor, learns: bool) -> Tensor:
        """Of each caption's similarity to its own image, at x. Shapes: B L E."""
        with torch.inference_mode(False), torch.enable_grad():
            # Clones: what was made in inference mode can't be differentiated.
            x, t, mask, features = (it.clone() for it in (x, t, mask, features))
            likeness = self.similarity(x.requires_grad_(), t, mask, features).diagonal()
            return torch.autograd.grad(likeness.sum(), x, create_graph=learns)[0]
