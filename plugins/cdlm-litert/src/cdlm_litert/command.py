"""`cdlm fit-projection`. What it needs is imported once it runs, so that others answer at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cdlm.errors import DataError
from cdlm.parts.encoders.files import beside

log = logging.getLogger(__name__)

JUDGED = 10  # of so many photos it is not fitted to one, and judged by it
EXPLAINED = 0.01  # of the variance: if more is left, the features came from elsewhere


def fit_projection(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .tflite file.")],
    features: Annotated[
        Path, typer.Option(metavar="FILE", help="Ready features, as the encoder takes them.")
    ],
    photos: Annotated[Path, typer.Option(metavar="DIR", help="The folder of their photos.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
    layer: Annotated[str, typer.Option(help="The layer; without it what comes out last.")] = "",
    grid: Annotated[int, typer.Option(min=1, help="Fields along each side.")] = 1,
) -> None:
    """Find the projection, such as a PCA, that ready features were made with: by least squares.

    Like: cdlm fit-projection MODEL.tflite --layer LAYER --grid 4 --photos DIR --features FILE
    --out FILE. Of every ten photos one is kept to judge the projection by: if more than a hundredth
    of the variance of its features is left unexplained, they came from another network or layer,
    and the command warns.
    """
    from cdlm.parts.encoders.features import Features
    from cdlm_litert.encoder import LiteRt
    from cdlm_litert.fit import fit, unexplained

    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}")
    ready = Features(path=str(features))
    if not photos.is_dir():
        raise DataError(f"--photos {photos}: no such folder\n    {beside(photos)}")
    there = [name for name in ready.ids() if (photos / name).is_file()]
    if not there:
        raise DataError(f"--photos {photos}: has none of the photos of {features}")
    judged = there[::JUDGED]
    kept = [name for number, name in enumerate(there) if number % JUDGED]
    plain = LiteRt(model=str(model), layer=layer, grid=grid)
    fit(plain, ready, photos, kept).save(out)
    whole = LiteRt(model=str(model), layer=layer, grid=grid, projection=str(out))
    off = unexplained(whole, ready, photos, judged)
    print(f"{out}: fitted to {len(kept):,} photos; {off:.2g} of the variance of the features of")
    print(f"{len(judged):,} others is left unexplained")
    if off > EXPLAINED:
        log.warning("these features are not of this layer of %s, or of other photos", model)
