"""The networks that judge pictures: DINO, CLIP and LPIPS, from folders and files on this machine.

Each turns pictures into numbers the way its authors published it: the shorter side is resized (bicubic),
the middle cut out, the colours normalised. Weights are safetensors only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from atomdiff.base.loading import quiet
from atomdiff.errors import SettingsError, reason_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BATCH = 32


class Tower:
    """Pictures, and of CLIP texts, as vectors of length 1."""

    def __init__(self, model: Any, tokenizer: Any, kind: str, device: str) -> None:
        self.model, self.tokenizer, self.kind, self.device = model.eval().to(device), tokenizer, kind, device
        vision = model.config.vision_config if kind == "clip" else model.config
        self.side = int(vision.image_size)
        if kind == "dinov2":
            self.side = 224  # trained at 518, judged at 224 as DINO is

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d) fp32 on the CPU."""
        found = []
        for start in range(0, len(pictures), BATCH):
            pixels = torch.stack([self._pixels(p) for p in pictures[start : start + BATCH]]).to(self.device)
            if self.kind == "clip":
                seen = self.model.vision_model(pixel_values=pixels).pooler_output
                vectors = self.model.visual_projection(seen)
            else:
                vectors = self.model(pixel_values=pixels).last_hidden_state[:, 0]
            found.append(functional.normalize(vectors.float(), dim=-1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(n, d) fp32 on the CPU; CLIP's only."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(
            self.device
        )
        seen = self.model.text_model(**tokens).pooler_output
        return functional.normalize(self.model.text_projection(seen).float(), dim=-1).cpu()

    def _pixels(self, picture: Image.Image) -> Tensor:
        """(3, side, side): DINO looks at the middle 7/8, CLIP at all of the shorter side."""
        shorter = self.side if self.kind == "clip" else self.side * 8 // 7
        scale = shorter / min(picture.size)
        size = (max(self.side, round(picture.width * scale)), max(self.side, round(picture.height * scale)))
        large = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (large.width - self.side) // 2, (large.height - self.side) // 2
        middle = large.crop((left, top, left + self.side, top + self.side))
        mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI if self.kind == "clip" else IMAGENET))
        values = torch.from_numpy(np.array(middle, dtype=np.float32)).permute(2, 0, 1) / 255
        return (values - mean) / std


def load_tower(folder: str | Path, device: str = "cpu") -> Tower:
    """A ViT of DINO's or DINOv2's, or a CLIP, from a transformers folder. Raises SettingsError."""
    from transformers import AutoConfig, AutoModel, CLIPTokenizer

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise SettingsError(
            f"'{folder}' is no model folder (it has no config.json); download facebook/dino-vits16 or "
            "openai/clip-vit-base-patch32 there."
        )
    try:
        kind = AutoConfig.from_pretrained(path).model_type
        if kind not in ("vit", "dinov2", "clip"):
            raise SettingsError(f"'{folder}' holds a {kind}; DINO (vit), DINOv2 or CLIP is needed.")
        with quiet():
            model = AutoModel.from_pretrained(path, use_safetensors=True)
        return Tower(model, CLIPTokenizer.from_pretrained(path) if kind == "clip" else None, kind, device)
    except (OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            f"The model in '{folder}' cannot be loaded ({reason_of(error)}); get it again, as safetensors."
        ) from None


class LPIPS(nn.Module):
    """The perceptual distance of Zhang et al. 2018 over AlexNet's five layers, (n,) from two (n, 3, h, w) in
    [-1, 1]: d = Σ_l mean_hw Σ_c w_lc (f̂_l(x) - f̂_l(y))², f̂ of length 1 over the channels.

    Weights are those of the package lpips, `LPIPS(net="alex").state_dict()` saved as safetensors.
    """

    CONVS = (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    )
    NAMES = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in self.CONVS)
        self.weights = nn.ParameterList(torch.zeros(1, o, 1, 1) for _, o, *_ in self.CONVS)

    @classmethod
    def load(cls, file: str | Path) -> "LPIPS":
        """From a safetensors file. Raises SettingsError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        made = cls()
        try:
            found = load_file(Path(file).expanduser())
            for i, name in enumerate(made.NAMES):
                made.convs[i].load_state_dict({p: found[f"net.{name}.{p}"] for p in ("weight", "bias")})
                made.weights[i].data.copy_(found[f"lin{i}.model.1.weight"])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise SettingsError(
                f"'{file}' is not LPIPS with AlexNet as safetensors ({reason_of(error)}); save "
                'lpips.LPIPS(net="alex").state_dict() there.'
            ) from None
        return made.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self._features(x), self._features(y), self.weights, strict=True)
        return torch.stack([((a - b).square() * w).sum(1).mean((1, 2)) for a, b, w in pairs]).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None].to(x)
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None].to(x)
        h, found = (x - shift) / scale, []
        for i, conv in enumerate(self.convs):
            h = functional.relu(conv(functional.max_pool2d(h, 3, 2) if i in (1, 2) else h))
            found.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
        return found

    @torch.no_grad()
    def diversity(self, pictures: Sequence[Image.Image]) -> float:
        """The mean distance of each two pictures; 0 of one."""
        tensors = [_unit(picture) for picture in pictures]
        pairs = [(a, b) for i, a in enumerate(tensors) for b in tensors[i + 1 :]]
        return float(torch.cat([self(a[None], b[None]) for a, b in pairs]).mean()) if pairs else 0.0


def _unit(picture: Image.Image) -> Tensor:
    """(3, 256, 256) in [-1, 1]."""
    square = ImageOps.fit(picture.convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
