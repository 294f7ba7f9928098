r"""ImageBind: sounds, texts and pictures in one space, from a checkpoint that the user gives.

Girdhar et al. 2023 (arXiv:2305.05665). Three pre-norm transformers over patches or tokens, each with a linear
head to a common space. Tensor names are those of the public checkpoint (``modality_preprocessors.*``,
``modality_trunks.*``, ``modality_heads.*``, ``modality_postprocessors.*``); its depth, thermal and motion
parts are ignored. The published weights are CC BY-NC-SA 4.0 (non-commercial): auralign never fetches them.

Differences from the authors' post-processing: every vector returned has length one (theirs are scaled by a
temperature, kept here as ``temperature``), and several clips are averaged, then scaled back to length one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.errors import AudioError, ModelUnavailableError, UsageError
from auralign.models.efficientnet import open_picture
from auralign.models.kaldi import fbank
from auralign.runtime import weights

RATE_HZ = 16_000
AUDIO_MEAN, AUDIO_STD = -4.268, 9.138
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-6


@dataclass(frozen=True)
class TrunkConfig:
    """Size of one transformer."""

    width: int
    blocks: int
    heads: int


@dataclass(frozen=True)
class ImageBindConfig:
    """Sizes of the whole model; the defaults are those of the public checkpoint, ``imagebind_huge``."""

    dim: int = 1024
    """Length of the vectors."""
    audio: TrunkConfig = TrunkConfig(768, 12, 12)
    text: TrunkConfig = TrunkConfig(1024, 24, 16)
    vision: TrunkConfig = TrunkConfig(1280, 32, 16)
    mels: int = 128
    frames: int = 204
    """Frames of a clip after padding; 2 s give 198."""
    audio_patch: int = 16
    audio_stride: int = 10
    clip_s: float = 2.0
    clips: int = 3
    """Clips spread evenly over a sound."""
    side: int = 224
    picture_patch: int = 14
    vocabulary: int = 49_408
    context: int = 77

    @property
    def audio_patches(self) -> int:
        """Patches of one clip (12 × 19 in the public model)."""
        down, along = ((n - self.audio_patch) // self.audio_stride + 1 for n in (self.mels, self.frames))
        return down * along


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


class _Block(nn.Module):
    def __init__(self, size: TrunkConfig, *, bias_kv: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(size.width, size.heads, add_bias_kv=bias_kv, batch_first=True)
        self.norm_1, self.norm_2 = (nn.LayerNorm(size.width, eps=NORM_EPS) for _ in range(2))
        self.mlp = _Mlp(size.width)

    def forward(
        self, x: Float[Tensor, "batch token dim"], mask: Float[Tensor, "token token"] | None
    ) -> Float[Tensor, "batch token dim"]:
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + self.mlp(self.norm_2(x))
        return x


class _Trunk(nn.Module):
    def __init__(self, size: TrunkConfig, *, bias_kv: bool, first_norm: bool) -> None:
        super().__init__()
        layers = [nn.LayerNorm(size.width, eps=NORM_EPS)] if first_norm else []
        self.pre_transformer_layer = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(_Block(size, bias_kv=bias_kv) for _ in range(size.blocks))

    def forward(
        self, x: Float[Tensor, "batch token dim"], mask: Float[Tensor, "token token"] | None = None
    ) -> Float[Tensor, "batch token dim"]:
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class _Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))


class _AudioStem(nn.Module):
    def __init__(self, cfg: ImageBindConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, cfg.audio.width, cfg.audio_patch, cfg.audio_stride, bias=False)
        self.norm_layer = nn.LayerNorm(cfg.audio.width)

    def forward(self, x: Float[Tensor, "batch 1 mel frame"]) -> Float[Tensor, "batch token dim"]:
        x = self.norm_layer(self.proj(x).flatten(2).transpose(1, 2))
        return x


class _PictureStem(nn.Module):
    """Patches of two equal frames: a still picture is shown twice."""

    def __init__(self, cfg: ImageBindConfig) -> None:
        super().__init__()
        kernel = (2, cfg.picture_patch, cfg.picture_patch)
        self.proj = nn.Sequential(nn.Identity(), nn.Conv3d(3, cfg.vision.width, kernel, kernel, bias=False))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token dim"]:
        x = self.proj(x.unsqueeze(2).expand(-1, -1, 2, -1, -1))
        return x.flatten(2).transpose(1, 2)


class _PatchPreprocessor(nn.Module):
    """Patches with a class token before them and learned positions."""

    def __init__(self, stem: nn.Module, patches: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = stem
        self.pos_embedding_helper = _Positions(patches + 1, width)

    def forward(self, x: Float[Tensor, "batch channel rows cols"]) -> Float[Tensor, "batch token dim"]:
        tokens: Tensor = self.rgbt_stem(x)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class _TextPreprocessor(nn.Module):
    def __init__(self, cfg: ImageBindConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(cfg.vocabulary, cfg.text.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.context, cfg.text.width))

    def forward(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token dim"]:
        x: Tensor = self.token_embedding(tokens) + self.pos_embed
        return x


class _Scale(nn.Module):
    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(initial).log())


class _TextHead(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, dim, bias=False))

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        x = self.proj(x)
        return x


def _patch_head(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Identity(), nn.Linear(width, dim, bias=False))


class ImageBind(nn.Module):
    """Frozen encoder of sounds, texts and pictures; every vector has length one."""

    def __init__(self, cfg: ImageBindConfig | None = None, *, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg or ImageBindConfig()
        self.tokenizer = tokenizer
        picture_patches = (cfg.side // cfg.picture_patch) ** 2
        self.modality_preprocessors = nn.ModuleDict(
            {
                "audio": _PatchPreprocessor(_AudioStem(cfg), cfg.audio_patches, cfg.audio.width),
                "text": _TextPreprocessor(cfg),
                "vision": _PatchPreprocessor(_PictureStem(cfg), picture_patches, cfg.vision.width),
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "audio": _Trunk(cfg.audio, bias_kv=True, first_norm=False),
                "text": _Trunk(cfg.text, bias_kv=False, first_norm=False),
                "vision": _Trunk(cfg.vision, bias_kv=False, first_norm=True),
            }
        )
        self.modality_heads = nn.ModuleDict(
            {
                "audio": _patch_head(cfg.audio.width, cfg.dim),
                "text": _TextHead(cfg.text.width, cfg.dim),
                "vision": _patch_head(cfg.vision.width, cfg.dim),
            }
        )
        self.modality_postprocessors = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Identity(), _Scale(value))
                for name, value in (("audio", 20.0), ("text", 1 / 0.07))
            }
        )
        self.eval().requires_grad_(False)

    @classmethod
    def from_path(
        cls, path: str | Path, cfg: ImageBindConfig | None = None, *, tokenizer: str | Path | None = None
    ) -> ImageBind:
        """Load a safetensors file with the names of the public checkpoint.

        Args:
            path: The file, or a folder that holds one; a ``tokenizer.json`` beside it is used for texts.
            cfg: Sizes, the public ones by default.
            tokenizer: CLIP's ``tokenizer.json`` where it lies elsewhere.

        Raises:
            ModelUnavailableError: A tensor is missing or of another size.
        """
        file = weights.safetensors_file(str(Path(path).resolve()))
        words = Path(tokenizer) if tokenizer else file.with_name("tokenizer.json")
        with torch.device("meta"):
            model = cls(cfg)
        wanted = model.state_dict()
        state = {name: t.float() for name, t in weights.tensors(str(file)).items() if name in wanted}
        wrong = [n for n, t in wanted.items() if n not in state or state[n].shape != t.shape]
        if wrong:
            raise ModelUnavailableError(
                f"{len(wanted) - len(wrong)} of {len(wanted)} tensors fit this size of ImageBind",
                where=str(file),
                why="first missing or misshapen: " + ", ".join(wrong[:3]),
            )
        model.load_state_dict(state, assign=True)
        model.tokenizer = Tokenizer.from_file(str(words)) if words.is_file() else None
        return model.eval().requires_grad_(False)

    @property
    def temperature(self) -> dict[str, float]:
        """Factor by which the authors multiply the unit vectors of a modality (at most 100; pictures: 1)."""
        tensors = self.modality_postprocessors.state_dict()
        scales = {name: float(tensors[f"{name}.1.log_logit_scale"].exp()) for name in ("audio", "text")}
        return {name: min(scale, 100.0) for name, scale in scales.items()} | {"vision": 1.0}

    def audio_clips(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch clip mel frame"]:
        """Log-mel clips: each less its mean, 198 frames of 2 s padded with zeros to 204, then normalised."""
        cfg, size = self.cfg, round(self.cfg.clip_s * RATE_HZ)
        if wave.shape[-1] < 400:
            raise AudioError(
                f"{wave.shape[-1]} samples are fewer than one frame of 400", hint="pad it with silence"
            )
        room = max(wave.shape[-1] - size, 0)
        starts = [int(room * index / max(cfg.clips - 1, 1)) for index in range(cfg.clips)]
        clips = torch.stack([wave[:, start : start + size] for start in starts], dim=1)
        clips = clips - clips.mean(dim=-1, keepdim=True)
        mel = fbank(clips.flatten(0, 1), mels=cfg.mels).transpose(1, 2)[..., : cfg.frames]
        mel = F.pad(mel, (0, cfg.frames - mel.shape[-1]))
        return ((mel - AUDIO_MEAN) / AUDIO_STD).view(len(wave), cfg.clips, cfg.mels, cfg.frames)

    def _patches_to_vector(
        self, kind: str, x: Float[Tensor, "batch channel rows cols"]
    ) -> Float[Tensor, "batch dim"]:
        tokens = self.modality_trunks[kind](self.modality_preprocessors[kind](x))
        return F.normalize(self.modality_heads[kind](tokens[:, 0]), dim=-1)

    def embed_audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of mono sounds at 16 kHz; differentiable with respect to the wave."""
        clips = self.audio_clips(wave)
        vectors = self._patches_to_vector("audio", clips.flatten(0, 1).unsqueeze(1))
        return F.normalize(vectors.view(len(wave), self.cfg.clips, -1).mean(dim=1), dim=-1)

    def embed_pictures(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of pictures from :func:`read_clip_picture`."""
        return self._patches_to_vector("vision", images)

    def embed_tokens(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of token rows; the end token is the largest number of a row, zeros follow it."""
        x = self.modality_preprocessors["text"](tokens)
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device).triu(1)
        x = self.modality_trunks["text"](x, mask)
        ends = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        return F.normalize(self.modality_heads["text"](ends), dim=-1)

    def embed_text(self, texts: list[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts; a longer text is cut and keeps its end token."""
        if self.tokenizer is None:
            raise UsageError(
                "this ImageBind has no tokenizer", hint="put CLIP's tokenizer.json beside the weights"
            )
        rows = torch.zeros(len(texts), self.cfg.context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = self.tokenizer.encode(text).ids
            ids = [*ids[: self.cfg.context - 1], ids[-1]] if len(ids) > self.cfg.context else ids
            row[: len(ids)] = torch.tensor(ids)
        return self.embed_tokens(rows.to(next(self.parameters()).device))


def read_clip_picture(path: str | Path, *, side: int = 224) -> Float[Tensor, "3 side side"]:
    """A picture as CLIP-like encoders expect it: shorter side scaled, centre cut out, channels normalised."""
    image = open_picture(path)
    scale = side / min(image.size)
    width, height = (max(int(size * scale), side) for size in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255.0
    return (pixels - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
