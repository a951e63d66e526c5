"""`python -m atomdiff.pocket.build`: makes the pocket model, from nothing, or trains one on.

    pictures -> autoencoder -> words -> denoiser -> decoder -> judge -> model card

Every stage can be killed at any moment and goes on from its last checkpoint when the same command is given
again; a stage that is done is not done again. `--minutes` ends a sitting at a checkpoint, with exit status
75. With more `--denoiser-steps` than were run, a finished denoiser trains on. `--export` writes the model as
it stands, finished or not. On a GPU the data lies on the device, and `--compile` compiles the denoiser.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from . import captions, corpus, judge
from .recipe import autoencoder, denoiser, words
from .recipe.fitting import OutOfTime, Schedule, Workshop, read_tensors, write_tensors

HERE = Path(__file__).parent
VIEWS = 4
EXAMINED = 2_400  # unseen pictures of the judge's examination
REDRAWN = 16_000  # pictures that the judge also sees as the autoencoder gives them back
STAGES = ("autoencoder", "words", "denoiser", "decoder", "judge")


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths of all stages."""

    pictures: int = 24_000
    acquaintances: int = 132_000
    autoencoder: Schedule = Schedule(3_000, 4, 2e-3, warmup=50, decay=0.7)
    decoder: Schedule = Schedule(6_000, 4, 3e-3, warmup=50, decay=0.8)
    words: Schedule = Schedule(1_200, 128, 2e-3, warmup=50)
    denoiser: Schedule = Schedule(8_000, 64, 2e-3, warmup=100, decay=0.4)
    judge: Schedule = Schedule(5_000, 96, 4e-3, warmup=30, decay=0.8)


class Build:
    """The stages, each reading what the former ones left in the work folder."""

    def __init__(self, recipe: Recipe, shop: Workshop, start: Path | None = None):
        self.recipe, self.shop, self.start = recipe, shop, start

    @cached_property
    def pictures(self) -> Tensor:
        """uint8 (n, h, w, 3)."""
        r = self.recipe
        return torch.from_numpy(corpus.pretraining(self.shop.folder, r.pictures, self.shop.seed).pictures)

    @cached_property
    def corpus(self) -> corpus.Corpus:
        """Captions and labels."""
        r = self.recipe
        return corpus.pretraining(self.shop.folder, r.pictures, self.shop.seed, seen=False)

    def _held(self, data: Tensor) -> Tensor:
        """Data where training reads it fastest."""
        return data.to(self.shop.device)

    def autoencoder(self) -> AutoencoderKL:
        folder = self.shop.folder / "vae"
        if not folder.exists():
            start = AutoencoderKL.from_pretrained(self.start / "vae").float() if self.start else None
            vae, about = autoencoder.train(
                self._held(self.pictures), self.recipe.autoencoder, self.shop, start
            )
            self._keep(vae, folder)
            self._record("autoencoder", about)
        return AutoencoderKL.from_pretrained(folder).to(self.shop.device)

    def latents(self) -> Tensor:
        """fp16 (2 n, c, 16, 16): every picture, then every picture mirrored; a file for each part of them."""
        parts = [self._latents(start) for start in range(0, self.recipe.pictures, corpus.CHUNK)]
        return torch.cat([part[name] for name in ("straight", "mirrored") for part in parts])

    def _latents(self, start: int) -> dict[str, Tensor]:
        """Those of the pictures from `start` on, as many as are rendered together."""
        count = min(corpus.CHUNK, self.recipe.pictures - start)
        path = self.shop.folder / "latents" / f"{start // corpus.CHUNK:04d}-{count}.safetensors"
        if not path.exists():
            self.shop.check("latents")
            made: dict[str, list[Tensor]] = {"straight": [], "mirrored": []}
            for some in self.pictures[start : start + count].split(96):
                with self.shop.autocast():
                    made["straight"].append(autoencoder.encode(self._encoder, some).half())
                    made["mirrored"].append(autoencoder.encode(self._encoder, some.flip(2)).half())
            write_tensors(path, {name: torch.cat(z) for name, z in made.items()}, {})
        return read_tensors(path)[0]

    @cached_property
    def _encoder(self) -> AutoencoderKL:
        return self.autoencoder()

    def decoder(self) -> None:
        """The autoencoder's second half, better; the latents stay as they are."""
        vae, pictures = self.autoencoder(), self._held(self.pictures)
        latents = self._held(self.latents()[: len(pictures)])
        about = autoencoder.refine(vae, latents, pictures, self.recipe.decoder, self.shop)
        self._keep(vae, self.shop.folder / "vae_refined")
        self._record("decoder", about)

    def words(self) -> tuple:
        """(tokenizer, text encoder): without steps those of the start."""
        folder = self.shop.folder / "text"
        if self.start and not self.recipe.words.steps and not folder.exists():
            shutil.copytree(self.start / "tokenizer", self.shop.folder / "tokenizer", dirs_exist_ok=True)
            shutil.copytree(self.start / "text_encoder", folder)
        if not folder.exists():
            tokenizer = words.build_tokenizer(
                [*(said for row in self.corpus.captions for said in row), *captions.unheard_captions()]
            )
            if self.start:
                text = words.CLIPTextModel.from_pretrained(self.start / "text_encoder").float()
                was = words.CLIPTokenizer.from_pretrained(self.start / "tokenizer")
                encoder = words.with_vocabulary(text, was, tokenizer)
            else:
                encoder = words.new_encoder(tokenizer)
            lesson = words.lesson(tokenizer, self.corpus.captions, self.corpus.labels)
            sizes = {h: len(values) for h, values in corpus.HEADS.items()}
            encoder, about = words.pretrain(
                encoder, lesson, sizes, self.recipe.words, self.shop, anchored=bool(self.start)
            )
            tokenizer.save_pretrained(self.shop.folder / "tokenizer")
            self._keep(encoder, folder)
            self._record("words", about)
        tokenizer = words.CLIPTokenizer.from_pretrained(self.shop.folder / "tokenizer")
        return tokenizer, words.CLIPTextModel.from_pretrained(folder).to(self.shop.device)

    def captions(self, tokenizer) -> Tensor:
        """int16 (2 n, variants, t), in the order of `latents`."""
        rng = np.random.default_rng(self.shop.seed)
        ids = [
            words.tokenize(tokenizer, [captions.with_one_colour(text, rng) for text in variant]).short()
            for variant in zip(*self.corpus.captions, strict=True)
        ]
        return torch.stack(ids, 1).repeat(2, 1, 1)

    def denoiser(self) -> None:
        tokenizer, text = self.words()
        empty = words.tokenize(tokenizer, [""])[0].short()
        start = UNet2DConditionModel.from_pretrained(self.start / "unet").float() if self.start else None
        latents, said = self._held(self.latents()), self._held(self.captions(tokenizer))
        often = torch.tensor([1 + captions.pattern_told(row) for row in self.corpus.captions]).repeat(2)
        unet, text, about = denoiser.train(
            latents, said, empty, text, self.recipe.denoiser, self.shop, start, often=often
        )
        self._keep(unet, self.shop.folder / "unet")
        self._keep(text, self.shop.folder / "text_trained")
        self._record("denoiser", about)

    def finished_autoencoder(self) -> AutoencoderKL:
        """With the refined decoder, where there is one."""
        refined = self.shop.folder / "vae_refined"
        if refined.exists():
            return AutoencoderKL.from_pretrained(refined).to(self.shop.device)
        return self.autoencoder()

    def export(self, out: Path) -> None:
        """The model as it stands -> a diffusers folder, in fp16 but for the small text encoder."""
        tokenizer, text = self.words()
        tensors, about = read_tensors(self.shop.folder / "denoiser.checkpoint.safetensors")
        unet = denoiser.new_denoiser(tensors["ema.unet.conv_in.weight"].shape[1])
        painter = denoiser.Painter(unet, text.cpu())
        painter.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}, strict=True)
        vae = self.finished_autoencoder().cpu()
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(**denoiser.SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        # transformers opens a model in the format it was saved in, diffusers in fp32: an fp16 text encoder
        # would not fit the rest for whoever loads the folder without naming a dtype.
        for part in (pipe.unet, pipe.vae):
            part.half()
            part.register_to_config(_name_or_path="")  # where it lay while it was made concerns nobody
        pipe.save_pretrained(out)
        self._record("denoiser", {k: about[k] for k in ("step", "seconds", "loss")}, exported=True)

    def judge(self, out: Path) -> None:
        path = self.shop.folder / "judge.safetensors"
        if not path.exists():
            r, folder = self.recipe, self.shop.folder
            known = corpus.acquaintances(folder, r.acquaintances, self.shop.seed, VIEWS)
            vae, pictures = self.finished_autoencoder(), torch.from_numpy(known.pictures[-REDRAWN:])
            with self.shop.autocast():
                redrawn = autoencoder.redraw(vae, pictures)
            start = judge.Judge.load(self.start / "judge.safetensors") if self.start else None
            judged, about = judge.train(known, VIEWS, self.recipe.judge, self.shop, redrawn, start)
            unseen = corpus.acquaintances(folder, EXAMINED, self.shop.seed + 1, VIEWS)
            judged.save(path)
            self._record("judge", about | {"right": judge.examine(judged, unseen, VIEWS)})
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / "judge.safetensors")

    def _keep(self, model, folder: Path) -> None:
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    def _record(self, stage: str, about: dict, exported: bool = False) -> None:
        """An export says how far a stage has come; by which schedule, only the run that trains knows."""
        path = self.shop.folder / "record.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        settings = getattr(self.recipe, stage, None)
        now = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": _machine(self.shop.device),
            "start": bool(self.start) and stage != "decoder",
        }
        told = {k: v for k, v in asdict(settings).items() if v != math.inf} if settings else {}
        record[stage] = record.get(stage, {}) | about if exported else about | now | {"schedule": told}
        path.write_text(json.dumps(record, indent=1))
        print(stage, about, flush=True)


def _machine(device: torch.device) -> str:
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    return f"{name}, {platform.machine()}, torch {torch.__version__}"


def main(arguments: list[str] | None = None) -> None:
    default = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m atomdiff.pocket.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/pocket-build"), help="checkpoints and rendered pictures"
    )
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="where the finished model goes")
    parser.add_argument("--start", type=Path, help="a finished model to go on from instead of random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (pays on a GPU)")
    parser.add_argument("--minutes", type=float, help="stop at a checkpoint after so long; exit status 75")
    parser.add_argument("--pictures", type=int, default=default.pictures)
    parser.add_argument("--acquaintances", type=int, default=default.acquaintances)
    for stage in STAGES:
        parser.add_argument(f"--{stage}-steps", type=int, default=getattr(default, stage).steps)
        parser.add_argument(f"--{stage}-batch", type=int, default=getattr(default, stage).batch)
        parser.add_argument(f"--{stage}-minutes", type=float, default=math.inf, help="end it by then")
    parser.add_argument("--only", nargs="*", choices=[*STAGES, "card"], help="stages to run")
    parser.add_argument("--export", action="store_true", help="write the model as it stands and stop")
    a = parser.parse_args(arguments)
    told = ("steps", "batch", "minutes")
    schedules = {
        s: replace(getattr(default, s), **{name: getattr(a, f"{s}_{name}") for name in told}) for s in STAGES
    }
    deadline = time.monotonic() + 60 * a.minutes if a.minutes else math.inf
    shop = Workshop(a.work, torch.device(a.device), a.seed, deadline=deadline, compiled=a.compile)
    a.work.mkdir(parents=True, exist_ok=True)
    try:
        run(Build(Recipe(a.pictures, a.acquaintances, **schedules), shop, a.start), a)
    except OutOfTime as stopped:
        print(f"Time is over at {stopped}: the same command goes on.", flush=True)
        sys.exit(75)


def run(build: Build, a: argparse.Namespace) -> None:
    """The stages that are asked for."""
    wanted = a.only or [*STAGES, "card"]
    if not a.export:
        for stage in STAGES[:-1]:
            if stage in wanted:
                getattr(build, stage)()
        if "judge" in wanted:
            build.judge(a.out)
    if a.export or {"denoiser", "decoder"} & set(wanted):
        build.export(a.out)
    if not a.export and "card" in wanted:
        from .recipe import card

        card.write(a.work, a.out, a.pictures)


if __name__ == "__main__":
    main()
