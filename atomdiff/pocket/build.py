"""`python -m atomdiff.pocket.build`: makes the pocket model from nothing.

    pictures -> autoencoder -> words -> denoiser -> decoder -> judge -> model card

Every stage can be killed at any moment and goes on from its last checkpoint when the same command is given
again; a stage that is done is not done again. With more `--denoiser-steps` than were run, a finished denoiser
trains on. `--export` writes the model as it stands, finished or not.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from . import corpus, judge
from .recipe import autoencoder, denoiser, words
from .recipe.fitting import Schedule, Workshop, read_tensors, write_tensors

HERE = Path(__file__).parent
VIEWS = 4
REDRAWN = 8_000  # pictures that the judge also sees as the autoencoder gives them back
STAGES = ("autoencoder", "words", "denoiser", "decoder", "judge")


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths of all stages; the defaults are what the bundled model was made with."""

    pictures: int = 24_000
    acquaintances: int = 72_000
    autoencoder: Schedule = Schedule(5_000, 4, 5e-3, warmup=50, decay=0.8)
    decoder: Schedule = Schedule(5_000, 4, 3e-3, warmup=50, decay=0.8)
    words: Schedule = Schedule(300, 128, 3e-3, warmup=20)
    denoiser: Schedule = Schedule(4_000, 64, 2e-3, warmup=100, decay=0.7)
    judge: Schedule = Schedule(5_000, 96, 4e-3, warmup=30, decay=0.8)


class Build:
    """The stages, each reading what the former ones left in the work folder."""

    def __init__(self, recipe: Recipe, shop: Workshop, start: Path | None = None):
        self.recipe, self.shop, self.start = recipe, shop, start
        self._corpus: corpus.Corpus | None = None

    @property
    def corpus(self) -> corpus.Corpus:
        if self._corpus is None:
            self._corpus = corpus.pretraining(self.shop.folder, self.recipe.pictures, self.shop.seed)
        return self._corpus

    def autoencoder(self) -> AutoencoderKL:
        folder = self.shop.folder / "vae"
        if not folder.exists():
            start = AutoencoderKL.from_pretrained(self.start / "vae") if self.start else None
            vae, about = autoencoder.train(
                torch.from_numpy(self.corpus.pictures), self.recipe.autoencoder, self.shop, start
            )
            self._keep(vae, folder)
            self._record("autoencoder", about)
        return AutoencoderKL.from_pretrained(folder).to(self.shop.device)

    def latents(self) -> Tensor:
        """fp16 (2 n, 4, 16, 16): every picture, then every picture mirrored."""
        path = self.shop.folder / "latents.safetensors"
        if not path.exists():
            vae, pictures = self.autoencoder(), torch.from_numpy(self.corpus.pictures)
            with self.shop.autocast():
                straight = [autoencoder.encode(vae, x).half() for x in pictures.split(256)]
                mirrored = [autoencoder.encode(vae, x.flip(2)).half() for x in pictures.split(256)]
            both = torch.cat(straight + mirrored)
            write_tensors(path, {"latents": both}, {})
        return read_tensors(path)[0]["latents"]

    def decoder(self) -> None:
        """The autoencoder's second half, better; the latents stay as they are."""
        vae = self.autoencoder()
        pictures = torch.from_numpy(self.corpus.pictures)
        about = autoencoder.refine(
            vae, self.latents()[: len(pictures)], pictures, self.recipe.decoder, self.shop
        )
        self._keep(vae, self.shop.folder / "vae_refined")
        self._record("decoder", about)

    def words(self) -> tuple:
        """(tokenizer, text encoder)."""
        folder = self.shop.folder / "text"
        if self.start and not folder.exists():
            shutil.copytree(self.start / "tokenizer", self.shop.folder / "tokenizer", dirs_exist_ok=True)
            shutil.copytree(self.start / "text_encoder", folder)
        if not folder.exists():
            captions = self.corpus.captions
            tokenizer = words.build_tokenizer(caption for row in captions for caption in row)
            ids = torch.stack(
                [words.tokenize(tokenizer, list(variant)) for variant in zip(*captions, strict=True)], 1
            )
            labels = {
                h: torch.from_numpy(v).repeat_interleave(ids.shape[1]) for h, v in self.corpus.labels.items()
            }
            sizes = {h: len(values) for h, values in corpus.HEADS.items()}
            encoder, about = words.pretrain(
                tokenizer, ids.flatten(0, 1), labels, sizes, self.recipe.words, self.shop
            )
            tokenizer.save_pretrained(self.shop.folder / "tokenizer")
            self._keep(encoder, folder)
            self._record("words", about)
        tokenizer = words.CLIPTokenizer.from_pretrained(self.shop.folder / "tokenizer")
        return tokenizer, words.CLIPTextModel.from_pretrained(folder).to(self.shop.device)

    def captions(self, tokenizer) -> Tensor:
        """int16 (2 n, variants, t), in the order of `latents`."""
        ids = [
            words.tokenize(tokenizer, list(variant)).short()
            for variant in zip(*self.corpus.captions, strict=True)
        ]
        return torch.stack(ids, 1).repeat(2, 1, 1)

    def denoiser(self) -> None:
        tokenizer, text = self.words()
        empty = words.tokenize(tokenizer, [""])[0].short()
        start = UNet2DConditionModel.from_pretrained(self.start / "unet") if self.start else None
        unet, text, about = denoiser.train(
            self.latents(), self.captions(tokenizer), empty, text, self.recipe.denoiser, self.shop, start
        )
        self._keep(unet, self.shop.folder / "unet")
        self._keep(text, self.shop.folder / "text_trained")
        self._record("denoiser", about)

    def export(self, out: Path) -> None:
        """The model as it stands -> a diffusers folder, in fp16 but for the small text encoder."""
        tokenizer, text = self.words()
        unet = UNet2DConditionModel(**denoiser.CONFIG)
        painter = denoiser.Painter(unet, text.cpu())
        tensors, about = read_tensors(self.shop.folder / "denoiser.checkpoint.safetensors")
        painter.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}, strict=True)
        refined = self.shop.folder / "vae_refined"
        vae = AutoencoderKL.from_pretrained(refined) if refined.exists() else self.autoencoder().cpu()
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
        self._record("denoiser", {k: about[k] for k in ("step", "seconds", "loss")})

    def judge(self, out: Path) -> None:
        path = self.shop.folder / "judge.safetensors"
        if not path.exists():
            known = corpus.acquaintances(self.shop.folder, self.recipe.acquaintances, self.shop.seed, VIEWS)
            vae, pictures = self.autoencoder(), torch.from_numpy(known.pictures[:REDRAWN])
            with self.shop.autocast():
                redrawn = torch.cat([_redraw(vae, part) for part in pictures.split(128)])
            start = judge.Judge.load(self.start / "judge.safetensors") if self.start else None
            judged, about = judge.train(known, VIEWS, self.recipe.judge, self.shop, redrawn, start)
            unseen = corpus.acquaintances(self.shop.folder, 2_400, self.shop.seed + 1, VIEWS)
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

    def _record(self, stage: str, about: dict) -> None:
        path = self.shop.folder / "record.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        settings = getattr(self.recipe, stage, None)
        now = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": _machine(self.shop.device),
            "start": bool(self.start) and stage in ("autoencoder", "denoiser", "judge"),
        }
        record[stage] = about | now | ({"schedule": asdict(settings)} if settings else {})
        path.write_text(json.dumps(record, indent=1))
        print(stage, about, flush=True)


@torch.no_grad()
def _redraw(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    y = vae.decode(autoencoder.encode(vae, pictures).to(vae.device)).sample
    return y.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu()


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
    parser.add_argument("--pictures", type=int, default=default.pictures)
    parser.add_argument("--acquaintances", type=int, default=default.acquaintances)
    for stage in STAGES:
        parser.add_argument(f"--{stage}-steps", type=int, default=getattr(default, stage).steps)
        parser.add_argument(f"--{stage}-batch", type=int, default=getattr(default, stage).batch)
    parser.add_argument("--only", nargs="*", choices=[*STAGES, "card"], help="stages to run")
    parser.add_argument("--export", action="store_true", help="write the model as it stands and stop")
    a = parser.parse_args(arguments)
    schedules = {
        s: replace(getattr(default, s), steps=getattr(a, f"{s}_steps"), batch=getattr(a, f"{s}_batch"))
        for s in STAGES
    }
    build = Build(
        Recipe(a.pictures, a.acquaintances, **schedules),
        Workshop(a.work, torch.device(a.device), a.seed),
        a.start,
    )
    a.work.mkdir(parents=True, exist_ok=True)
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

        card.write(a.work, a.out)


if __name__ == "__main__":
    main()
