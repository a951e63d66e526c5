"""The judge: a small classifier that says what is in a picture of the pocket world, and who.

One head per attribute (class, context, first and second colour, pattern, accessory, style) and an identity
embedding in which pictures of one subject lie together whatever the context: the pocket's counterpart of
the DINO similarity of the DreamBooth paper (arXiv 2208.12242, section 4.2). It has seen held-out patterns and
styles, since it must judge concepts made of them, but none of the benchmark subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from atomdiff.errors import AtomdiffError

from .corpus import HEADS, Corpus
from .recipe.fitting import Schedule, Workshop, fit, read_tensors, write_tensors
from .world import SIDE


class Block(nn.Module):
    """x + conv(conv(x)), with the shortcut taken after the stride."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.enter = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.first, self.second = (nn.Conv2d(c_out, c_out, 3, 1, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, c_out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.enter(x)))
        y = F.relu(self.norms[1](self.first(x)))
        return F.relu(x + self.norms[2](self.second(y)))


class JudgeNet(nn.Module):
    """(b, 3, 128, 128) in [-1, 1] -> logits per head, unit identity embedding (b, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, 2, 1),
            nn.ReLU(),
            Block(32, 64, 2),
            Block(64, 128, 2),
            Block(128, 160, 2),
            nn.Conv2d(160, 80, 1),
            nn.ReLU(),
        )
        self.neck = nn.Linear(80 * 4 * 4, 256)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in HEADS.items()})
        self.identity = nn.Linear(256, 64)

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        h = F.relu(self.neck(self.body(x).flatten(1)))
        return {k: head(h).float() for k, head in self.heads.items()}, F.normalize(
            self.identity(h).float(), dim=1
        )


@dataclass(frozen=True)
class Verdict:
    """answers[head] (n,) indices into HEADS[head]; identity (n, 64), unit rows: a dot product is a
    likeness."""

    answers: dict[str, Tensor]
    identity: Tensor

    def share(self, head: str, value: str) -> float:
        """Share of the pictures that the judge sees as `value`."""
        return float((self.answers[head] == HEADS[head].index(value)).float().mean())


class Judge:
    """Pictures in, `Verdict` out."""

    def __init__(self, net: JudgeNet):
        self.net = net.eval()

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Raises AtomdiffError where there is none yet."""
        if not path.exists():
            raise AtomdiffError(
                f"There is no judge at {str(path)!r}: train it with "
                "`python -m atomdiff.pocket.build --only judge`."
            )
        tensors, _ = read_tensors(path)
        net = JudgeNet()
        net.load_state_dict({k: v.float() for k, v in tensors.items()})
        return cls(net)

    def save(self, path: Path) -> None:
        tensors = {k: v.half() for k, v in self.net.state_dict().items()}
        write_tensors(path, tensors, {})

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image] | Tensor) -> Verdict:
        """PIL pictures of any size (resized to what it reads), or uint8 (n, h, w, 3)."""
        side = SIDE, SIDE
        if isinstance(pictures, Tensor) and pictures.shape[1:3] != side:
            pictures = [Image.fromarray(picture) for picture in pictures.numpy()]
        if not isinstance(pictures, Tensor):
            small = [p.convert("RGB").resize(side, Image.Resampling.LANCZOS) for p in pictures]
            pictures = torch.from_numpy(np.stack([np.asarray(p) for p in small]))
        parts = [self.net(_to_tensor(part)) for part in pictures.split(128)]
        answers = {h: torch.cat([logits[h].argmax(1) for logits, _ in parts]) for h in HEADS}
        return Verdict(answers, torch.cat([identity for _, identity in parts]))


def _to_tensor(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def blemish(x: Tensor, g: torch.Generator) -> Tensor:
    """What a sampler does to pictures and a renderer does not: noise, blur, changed brightness and
    contrast."""
    b = len(x)
    blur = torch.rand(b, 1, 1, 1, generator=g) * (torch.rand(b, 1, 1, 1, generator=g) < 0.5)
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), blur)
    gain = 1 + 0.12 * (2 * torch.rand(b, 1, 1, 1, generator=g) - 1)
    shift = 0.08 * (2 * torch.rand(b, 1, 1, 1, generator=g) - 1)
    noise = 0.08 * torch.rand(b, 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
    return (x * gain + shift + noise).clamp(-1, 1)


def jog(x: Tensor, g: torch.Generator, most: int = 5) -> Tensor:
    """Every picture moved by up to `most` pixels, its border repeated: no place is learned by heart."""
    x = F.pad(x, (most,) * 4, mode="replicate")
    side = x.shape[-1] - 2 * most
    corners = torch.randint(2 * most + 1, (len(x), 2), generator=g).tolist()
    return torch.stack([p[:, i : i + side, j : j + side] for p, (i, j) in zip(x, corners, strict=True)])


def train(
    corpus: Corpus,
    views: int,
    schedule: Schedule,
    shop: Workshop,
    redrawn: Tensor | None = None,
    start: Judge | None = None,
) -> tuple[Judge, dict]:
    """`corpus` holds `views` consecutive pictures of each subject; `redrawn` (m, h, w, 3) are the last m
    of them after the autoencoder, which the judge must read as well; `start`: a judge to go on from."""
    torch.manual_seed(shop.seed + 2)
    net = shop.ready(start.net if start else JudgeNet())
    if start:  # other batches than those that it was made with
        shop = replace(shop, seed=shop.seed + 1)
    pictures = torch.from_numpy(corpus.pictures)
    labels = {h: torch.from_numpy(v) for h, v in corpus.labels.items()}
    patterned = labels["pattern"] != HEADS["pattern"].index("plain")
    labels["second"] = labels["second"].where(patterned, -1)  # a plain coat does not show it
    alone = labels["other"] == HEADS["other"].index("none")
    pairs = schedule.batch // 2

    def batch(g: torch.Generator) -> tuple[Tensor, Tensor]:
        who = torch.randperm(len(pictures) // views, generator=g)[:pairs]
        which = torch.rand(pairs, views, generator=g).argsort(1)[:, :2]
        rows = (who[:, None] * views + which).flatten()  # (s0, s0, s1, s1, ...)
        x = pictures[rows].clone()
        if redrawn is not None:
            place = rows - (len(pictures) - len(redrawn))
            use = (place >= 0) & (torch.rand(len(rows), generator=g) < 0.5)
            x[use] = redrawn[place[use]]
        x = _to_tensor(x)
        mirror = (torch.rand(len(rows), generator=g) < 0.5) & alone[rows]  # of two, the left one is the first
        x[mirror] = x[mirror].flip(-1)
        return rows, blemish(jog(x, g), g).to(shop.device)

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        rows, x = batch(g)
        with shop.autocast():
            logits, identity = net(x)
        loss = x.new_zeros(())
        for head, y in logits.items():
            truth = shop.rows(labels[head], rows)
            if bool((truth >= 0).any()):
                weight = 2 if head == "pattern" else 1  # the hardest to see
                loss = loss + weight * F.cross_entropy(y, truth, ignore_index=-1)
        return loss + same_subject_loss(identity)

    about = fit("judge", net, loss_at, schedule, shop, ema_decay=0.998)
    return Judge(net.cpu()), about


def same_subject_loss(identity: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE (arXiv 1807.03748, equation 4) in both directions over rows (s0, s0, s1, s1, ...)."""
    a, b = identity[0::2], identity[1::2]
    scores = a @ b.T / temperature
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))


def examine(judge: Judge, corpus: Corpus, views: int, gallery: int = 50) -> dict[str, float]:
    """Share right per head on unseen renders; and "identity": how often the embedding of one view finds
    another view of the same subject first among `gallery` subjects (not said where there are fewer)."""
    verdict = judge(torch.from_numpy(corpus.pictures))
    truth = {h: torch.from_numpy(v) for h, v in corpus.labels.items()}
    shown = {"second": truth["pattern"] != HEADS["pattern"].index("plain")}
    shown["other colour"] = truth["other colour"] >= 0
    right = {}
    for head, answers in verdict.answers.items():
        hit = (answers == truth[head]).float()
        hit = hit[shown[head]] if head in shown else hit
        if len(hit):
            right[head] = float(hit.mean())
    a, b = verdict.identity[0::views], verdict.identity[1::views]
    found = [
        (p @ q.T).argmax(1) == torch.arange(len(p))
        for p, q in zip(a.split(gallery), b.split(gallery), strict=True)
        if len(p) == gallery
    ]
    return right | ({"identity": float(torch.cat(found).float().mean())} if found else {})
