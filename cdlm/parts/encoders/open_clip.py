"""Any open_clip model as the encoder: where its weights are found, and what they must fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cdlm.errors import CdlmError, DataError, nearest
from cdlm.parts.encoders.files import beside, sha256
from cdlm.values import Positive

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = (  # in the order in which open_clip itself chooses
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
POSITIONS = "visual.positional_embedding"


class OpenClip:
    """Any open_clip model, frozen: its image tower, and its text tower for captions.

    model: an architecture ("ViT-B-32") with `pretrained` = a tag ("openai") or a file of weights;
    a folder with open_clip_config.json and weights ("local-dir:FOLDER" or its path);
    "hf-hub:ORG/NAME"; or "cdlm:NAME", a folder that ships with cdlm.

    Shapes: images B -> B N C and captions B -> B 1 C, with C = embed_dim, the width of the joint
    image-text space. Captions are read by the tokenizer that open_clip has for the model.
    N = 1: the pooled feature. With `patches`, N = 1 + patches: the pooled feature first, then each
    patch token after the last LayerNorm (as CLIP trains it) times the tower's output projection, so
    that all have width C; only for towers that are a ViT without an attention pool.
    Units: with `normalize` every vector has length 1; else as the tower gives it.
    The activation is the one that a tag's weights were trained with; weights that are missing, fit
    only in part, or would need their position embeddings resized are errors, never random numbers.
    Source: Radford et al. 2021; https://github.com/mlfoundations/open_clip.
    """

    needs: ClassVar[set[str]] = {"images"}
    provides: ClassVar[set[str]] = {"texts", "new_texts"}

    def __init__(
        self,
        *,
        model: str,  # an architecture, a folder, hf-hub:ORG/NAME or cdlm:NAME
        pretrained: str = "",  # for an architecture: a tag, or a file of weights
        patches: bool = False,  # whether the patch tokens follow the pooled feature
        normalize: bool = True,  # whether each vector is scaled to length 1
        batch: Positive = 64,  # images that pass the tower at once; fewer need less memory
    ):
        self.model = model
        self.pretrained = pretrained
        self.patches = patches
        self.normalize = normalize
        self.batch = batch
        self.device: str | torch.device = "cpu"

    def to(self, device: str) -> None:
        """Run on this device from now on; features still arrive on the CPU."""
        self.device = device

    def identity(self) -> dict[str, Any]:
        """Architecture, activation, preprocessing and weights; the tower itself is not built."""
        import open_clip

        source = self._source
        return {
            "encoder": "open_clip",
            "open_clip": open_clip.__version__,
            "config": source.config,
            "activation": "QuickGELU" if source.quick_gelu else "GELU",
            "preprocess": source.preprocess,
            "weights": self._weightssha256,
            "patches": self.patches,
            "normalize": self.normalize,
        }

    def shape(self) -> tuple[int, int]:
        """(N, C), from the configuration alone."""
        source = self._source
        tokens = _grid(source) if self.patches else 0
        return 1 + tokens, int(source.config["embed_dim"])

    def lookup(self, ids: Sequence[str]) -> None:
        """None: features must be computed."""

    def encode(self, images: Sequence[Image]) -> Tensor:
        """images B -> B N C, float32 on the CPU."""
        import torch

        starts = range(0, len(images), self.batch)
        parts = [self._forward(images[i : i + self.batch]) for i in starts]
        return torch.cat([torch.empty(0, *self.shape()), *parts])

    def _forward(self, images: Sequence[Image]) -> Tensor:
        import torch

        tower = self._tower.to(self.device)
        with torch.no_grad():
            pixels = torch.stack([self._transform(image) for image in images])
            features = _tokens(tower, pixels.to(self.device), self.patches)
            if self.normalize:
                features = torch.nn.functional.normalize(features, dim=-1)
        return features.float().cpu()

    def texts(self, captions: Sequence[str]) -> Tensor:
        """captions B -> B 1 C. Raises CdlmError where the model can't read them."""
        import torch

        tokenizer, model = self._reader
        model.to(self.device)
        parts = [torch.empty(0, 1, self.shape()[1])]
        for start in range(0, len(captions), self.batch):
            ids = tokenizer(list(captions[start : start + self.batch]))
            _must_be_read(ids, self._source)
            with torch.no_grad():
                found = model.encode_text(ids.to(self.device), normalize=self.normalize)
            parts.append(found[:, None].float().cpu())
        return torch.cat(parts)

    @cached_property
    def _reader(self) -> tuple[Callable[[list[str]], Tensor], Any]:
        """The tokenizer and the whole model."""
        import open_clip

        try:
            tokenizer = open_clip.get_tokenizer(self._source.name)
        except Exception as error:  # files that are missing or damaged, or no network
            raise CdlmError(
                f"encoder.model: {self._source.name} has no tokenizer that can be loaded: "
                f"{_first_line(error)}"
            ) from error
        return tokenizer, _load(self._source).eval().requires_grad_(False)

    @cached_property
    def _source(self) -> Source:
        return _find(self.model, self.pretrained)

    @cached_property
    def _weightssha256(self) -> str:
        return sha256(self._source.weights)

    @cached_property
    def _tower(self) -> nn.Module:
        if self.patches:
            _grid(self._source)  # refuses towers without patch tokens
        return _build(self._source, self.patches)

    @cached_property
    def _transform(self) -> Callable[[Image], Tensor]:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self._source.preprocess), is_train=False)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a tower comes from, and all that decides what it computes."""

    name: str  # as open_clip is asked for it
    pretrained: str | None
    config: dict[str, Any]  # embed_dim, vision_cfg, text_cfg
    quick_gelu: bool
    preprocess: dict[str, Any]
    weights: Path


def _find(model: str, pretrained: str) -> Source:
    folder = _folder(model)
    if pretrained and (folder or model.startswith("hf-hub:")):
        raise CdlmError(
            f'encoder.pretrained: "{pretrained}" has no effect beside model = "{model}", '
            "which brings its own weights; leave it out"
        )
    if folder:
        return _from_folder(folder)
    if model.startswith("hf-hub:"):
        return _from_hub(model)
    return _from_architecture(model.replace("/", "-"), pretrained)


def _folder(model: str) -> Path | None:
    """The folder that `model` names, or None where it names none."""
    if model.startswith("cdlm:"):
        from cdlm.places import assets_dir

        return _shipped(assets_dir(), model.removeprefix("cdlm:"))
    path = Path(model.removeprefix("local-dir:")).expanduser()
    named = model.startswith(("local-dir:", ".", "/", "~"))
    return path if named or (path / CONFIG).is_file() else None


def _shipped(assets: Path, name: str) -> Path:
    names = [path.parent.name for path in assets.glob(f"*/{CONFIG}")]
    if name not in names:
        raise CdlmError(
            f'encoder.model: cdlm ships no encoder "{name}"\n    {nearest(name, names)}'
        )
    return assets / name


# ------------------------------------------------------------------------- a folder, or the hub


def _from_folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise DataError(f"encoder.model: no folder {folder}\n    {beside(folder)}")
    config, preprocess = _read_config(folder / CONFIG)
    return _self_described(f"local-dir:{folder}", config, preprocess, _weights_in(folder))


def _from_hub(model: str) -> Source:
    from open_clip.pretrained import download_pretrained_from_hf

    name = model.removeprefix("hf-hub:")
    try:
        described = Path(download_pretrained_from_hf(name, filename=CONFIG))
        weights = Path(download_pretrained_from_hf(name))
    except (
        Exception
    ) as error:  # no network, no such model, no access: whatever the hub's client says
        raise DataError(
            f'encoder.model: "{model}" can\'t be had from the hub: {_first_line(error)}\n'
            "    without a network: download it elsewhere and give its folder as model"
        ) from error
    return _self_described(model, *_read_config(described), weights)


def _self_described(
    name: str, config: dict[str, Any], preprocess: dict[str, Any], weights: Path
) -> Source:
    if not preprocess:
        log.warning("%s has no preprocess_cfg; open_clip's default for images is assumed", name)
    return Source(
        name=name,
        pretrained=None,
        config=config,
        quick_gelu=bool(config.get("quick_gelu", False)),
        preprocess=_preprocessing(config, preprocess),
        weights=weights,
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """model_cfg and preprocess_cfg of an open_clip_config.json."""
    from open_clip import CLIPVisionCfg

    if not path.is_file():
        raise DataError(f"encoder.model: {path} is missing; it says what the weights are for")
    try:
        found = json.loads(path.read_bytes())
        config, preprocess = found["model_cfg"], found.get("preprocess_cfg") or {}
        CLIPVisionCfg(**config["vision_cfg"])
        return {**config, "embed_dim": int(config["embed_dim"])}, dict(preprocess)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected JSON with model_cfg = {{embed_dim, vision_cfg, text_cfg}} and "
            f"preprocess_cfg, as open_clip writes it; found wrong: {_first_line(error)}"
        ) from error


def _weights_in(folder: Path) -> Path:
    """The file of weights that open_clip would take too. Errors: none, or several to guess at."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth")
    )
    known = [folder / name for name in WEIGHTS if folder / name in files]
    if known or len(files) == 1:
        return (known or files)[0]
    if files:
        names = ", ".join(path.name for path in files)
        raise DataError(
            f"{folder}: which of these are the weights? {names}\n    call it {WEIGHTS[0]}"
        )
    raise DataError(f"{folder}: no weights here; expected {' or '.join(WEIGHTS)}")


# ------------------------------------------------------- an architecture, with a tag or a file


def _from_architecture(name: str, pretrained: str) -> Source:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise CdlmError(_unknown_model(name, open_clip.list_models()))
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    return _from_tag(name, pretrained, config, tag) if tag else _from_file(name, pretrained, config)


def _from_tag(name: str, tag: str, config: dict[str, Any], known: dict[str, Any]) -> Source:
    quick = bool(known.get("quick_gelu", False))
    if config.get("quick_gelu", False) and not quick:
        raise CdlmError(
            f'encoder.model: {name} uses QuickGELU, but "{tag}" was trained without it\n'
            f"    use the architecture without it, or a tag of this one: {', '.join(_tags(name))}"
        )
    return Source(
        name=name,
        pretrained=tag,
        config=config | ({"quick_gelu": True} if quick else {}),
        quick_gelu=quick,
        preprocess=_preprocessing(config, known),
        weights=_download(name, tag, known),
    )


def _download(name: str, tag: str, known: dict[str, Any]) -> Path:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(known))
    except Exception as error:  # no network, a full disk, a bad checksum
        raise DataError(
            f'encoder: the weights of {name} "{tag}" can\'t be downloaded: {_first_line(error)}\n'
            "    without a network: download them elsewhere and give the file as pretrained"
        ) from error


def _from_file(name: str, pretrained: str, config: dict[str, Any]) -> Source:
    weights = Path(pretrained).expanduser()
    if not pretrained or not weights.is_file() or weights.suffix not in SUFFIXES:
        raise CdlmError(_no_weights(name, pretrained, weights))
    if (weights.parent / CONFIG).is_file():
        raise CdlmError(
            f"encoder.pretrained: beside {weights} stands an {CONFIG}, which says how images are "
            f'prepared for these weights\n    use model = "{weights.parent}" without pretrained'
        )
    quick = bool(config.get("quick_gelu", False))
    log.warning(
        "%s does not say how it was trained; assumed: %s and open_clip's default preparation of "
        "images. A folder with %s says it for certain.",
        weights.name, "QuickGELU" if quick else "GELU", CONFIG,
    )  # fmt: skip
    return Source(
        name=name,
        pretrained=str(weights),
        config=config,
        quick_gelu=quick,
        preprocess=_preprocessing(config, {}),
        weights=weights,
    )


def _no_weights(name: str, pretrained: str, weights: Path) -> str:
    tags = _tags(name)
    if weights.is_file() and pretrained:
        what = f"{weights} is not a file of weights; allowed: {', '.join(SUFFIXES)}"
    elif pretrained:
        what = f'"{pretrained}" is neither a tag of {name} nor a file'
    else:
        what = f"{name} needs weights; features of random ones mean nothing"
    known = nearest(pretrained, tags) if tags else f"open_clip has no weights for {name}"
    return f"encoder.pretrained: {what}\n    {known}; or the path of a {'/'.join(SUFFIXES)} file"


def _tags(name: str) -> list[str]:
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(name))


def _unknown_model(name: str, models: Sequence[str]) -> str:
    folded = {model.casefold(): model for model in models}
    close = get_close_matches(name.casefold(), folded, n=5, cutoff=0.5)
    guess = f"nearest: {', '.join(folded[word] for word in close)}; " if close else ""
    return (
        f'encoder.model: open_clip has no model "{name}", and it is no folder with {CONFIG}\n'
        f"    {guess}{len(models)} are allowed: open_clip.list_models() names them"
    )


# -------------------------------------------------------------------------------- the tower


def _preprocessing(config: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """How images are prepared: open_clip's defaults, what is stated, and the tower's own size."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    size = config["vision_cfg"].get("image_size", 224)
    return merge_preprocess_dict(PreprocessCfg(), {**stated, "size": size})


def _grid(source: Source) -> int:
    """Patches that the tower cuts an image into. Errors: CdlmError where it has no such tokens."""
    from open_clip import CLIPVisionCfg
    from open_clip.utils import to_2tuple

    vision = CLIPVisionCfg(**source.config["vision_cfg"])
    if vision.timm_model_name or not isinstance(vision.layers, int) or vision.attentional_pool:
        raise CdlmError(
            f"encoder.patches: {source.name} is not a plain ViT; its patch tokens do not live in "
            "the space of its pooled feature; allowed here: patches = false"
        )
    (height, width), (down, across) = to_2tuple(vision.image_size), to_2tuple(vision.patch_size)
    return (height // down) * (width // across)


def _load(source: Source) -> Any:
    """The whole model."""
    import open_clip

    try:
        return open_clip.create_model(
            source.name,
            source.pretrained,
            force_quick_gelu=source.quick_gelu,
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # weights that do not fit, are damaged, or hold code
        raise DataError(
            f"{source.weights}: these weights can't be loaded as {source.name}: "
            f"{_first_line(error)}"
        ) from error


def _build(source: Source, patches: bool) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    tower = _load(source).visual
    if isinstance(tower, VisionTransformer):
        _must_fit_grid(tower.positional_embedding.shape[0], source)
        tower.output_tokens = patches
    return tower.eval().requires_grad_(False)


def _must_fit_grid(rows: int, source: Source) -> None:
    """open_clip resizes position embeddings silently; the features would not be the model's."""
    stored = _rows_stored(source.weights)
    if stored is not None and stored != rows:
        raise DataError(
            f"{source.weights}: weights for {stored - 1} patches, but {source.name} cuts an image "
            f"into {rows - 1}\n    the configuration's image_size or patch_size is another model's"
        )


def _rows_stored(weights: Path) -> int | None:
    """Rows of the position embedding in the file, or None where it has another name there."""
    if weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(weights, "pt") as file:
            names = list(file.keys())
            return file.get_slice(POSITIONS).get_shape()[0] if POSITIONS in names else None
    import torch

    found = torch.load(weights, map_location="meta", weights_only=True)
    tensors = found.get("state_dict", found)
    table = tensors.get(POSITIONS, tensors.get(f"module.{POSITIONS}"))
    return None if table is None else table.shape[0]


def _tokens(tower: Any, pixels: Tensor, patches: bool) -> Tensor:
    """pixels B 3 height width -> B N C."""
    import torch

    if not patches:
        return tower(pixels)[:, None]
    pooled, tokens = tower(pixels)
    if tower.final_ln_after_pool:  # then the patch tokens have not seen the last LayerNorm
        tokens = tower.ln_post(tokens)
    return torch.cat([pooled[:, None], tokens @ tower.proj], dim=1)


def _must_be_read(ids: Tensor, source: Source) -> None:
    """A folder without a tokenizer of its own gets CLIP's, whose words it may not have."""
    words = source.config.get("text_cfg", {}).get("vocab_size")
    if words is not None and int(ids.max()) >= words:
        raise CdlmError(
            f"encoder.model: {source.name} knows {words:,} words, and open_clip's tokenizer for it "
            "has more\n    give text_cfg.hf_tokenizer_name in open_clip_config.json, and the "
            "tokenizer's files beside it"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
