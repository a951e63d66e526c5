"""`python -m benchmarks.full_size`: Stable Diffusion at its real size on random weights, from file to
concept.

Each model is written to --folder in fp16: as a diffusers folder, as one whose files are an fp16 variant, as
a single file under the original names, as a repository in a hub cache. Each is then trained for two steps by
the launch script and resumed, its concept drawn, made a card and pushed to a hub on this machine. Measured
are seconds of CPU and memory, the latter apart as own memory (anonymous) and as files that are mapped, which
the system may drop again. What is finished is kept in benchmarks/results, from where a run goes on; --again
measures it anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ..report import Shown, Target, command, conclude, machine, one_sentence

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "benchmarks" / "results" / "full_size.json"
LOADING = """\
import pathlib, torch
ref = pathlib.Path({ref!r})
{load}
"""
OURS = "from atomdiff.base.stable_diffusion import load_base\nload_base({ref!r}, dtype=torch.bfloat16)"
THEIRS = """\
import diffusers
half = {{"variant": "fp16"}} if any(ref.glob("unet/*.fp16.*")) else {{}}
if ref.is_file():
    config = {{"config": str(ref.with_suffix("")), "local_files_only": True}}
    diffusers.StableDiffusionPipeline.from_single_file(str(ref), dtype=torch.bfloat16, **config)
else:
    half["use_safetensors"] = True
    diffusers.DiffusionPipeline.from_pretrained({ref!r}, dtype=torch.bfloat16, **half)"""


RATE = 0.003
LEGEND = """\
Weights are random, in fp16 files, computed with in bf16, with CLIP's real vocabulary; pictures have {side}
pixels a side. Seconds are of CPU. Memory is own memory at its peak, but for the last column but one, in
which mapped files are too, which the system may drop again: the most of all commands. `trains` is two steps
of the launch script without class pictures and at a given rate, which is not to be found first; `goes on` a
third from the saved state, `draws` one picture in two steps, `pushed` to a hub on the same machine; all
from the start of the command to its end. The word is trained along, so its text encoders stay; the
autoencoder is gone during the steps."""
PARTS = """\
import gc, json, sys
from atomdiff.training.run import fit
from atomdiff.training.settings import TrainingSettings
import diffusers, transformers
encoders = (diffusers.AutoencoderKL, transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
def alive(run):
    gc.collect()
    held = [p for m in gc.get_objects() if isinstance(m, encoders) for p in m.parameters()]
    print("in memory", sum({{p.data_ptr(): p.nbytes for p in held}}.values()) / 1e9)
fit(TrainingSettings(**json.loads({settings!r})), between=alive)"""


@dataclass
class Figures:
    """Of one model in one form; memory in GB, of which own memory is what counts. `encoders` are the GB of
    text encoders and autoencoder that are in memory after a step, where none of them is trained."""

    model: str
    form: str
    where: str
    finished: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)
    concept: int = 0
    weights: float = 0.0
    encoders: float | None = None


def main() -> None:
    parser = command("full_size", __doc__, docs="docs/results.md")
    parser.add_argument("--models", nargs="+", default=["sd15", "sd21", "sdxl"])
    parser.add_argument("--forms", nargs="+", default=["folder", "variant", "file", "hub"])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "atomdiff-full-size")
    parser.add_argument("--keep", action="store_true", help="leave the models on the disk")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--again", action="store_true", help="measure anew what is known")
    again.add_argument("--kept", action="store_true", help="show what is known, and measure nothing")
    a = parser.parse_args()
    for model in a.models:
        for form in a.forms:
            finished = _kept().get(f"{model}, {form}", {}).get("finished")
            if a.again or not (finished or a.kept):
                measure(model, form, a.folder, a.resolution)
        if not (a.keep or a.kept):
            shutil.rmtree(a.folder / model, ignore_errors=True)
    asked, known = [f"{model}, {form}" for model in a.models for form in a.forms], _kept()
    now = [known[case] for case in asked if case in known]
    missing = [Target(f"{case}: the whole", None, high=1.5) for case in asked if case not in known]
    title = "Stable Diffusion at its real size, random weights"
    conclude(a, title, _table(now), _targets(now) + missing, "full size", LEGEND.format(side=a.resolution))


def measure(model: str, form: str, folder: Path, resolution: int) -> None:
    """One model in one form, from its files to a concept on a hub."""
    ref, environment = _made(model, form, folder / model)
    known = _kept().get(f"{model}, {form}", {"where": ""})
    figures = Figures(model, form, machine(), weights=_weights(folder / model))
    if known["where"] == figures.where and not known["finished"]:  # a run that was stopped
        figures = Figures(**known)
    for whose, load in (("diffusers", THEIRS), ("atomdiff", OURS)):
        if f"{whose} loads" in figures.seconds:
            continue
        code = LOADING.format(ref=ref, load=load.format(ref=ref))
        _run(figures, f"{whose} loads", [sys.executable, "-c", code], environment)
    with tempfile.TemporaryDirectory() as work:
        _use(figures, ref, Path(work), environment, resolution)


def _use(figures: Figures, ref: str, work: Path, environment: dict[str, str], resolution: int) -> None:
    """Train, go on, draw, make a card, push."""
    sys.path.append(str(ROOT / "tests"))
    from hub_server import running

    (work / "dog").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (160, 160, 3), np.uint8)
        Image.fromarray(pixels).save(work / "dog" / f"{i}.png")
    train = [sys.executable, str(ROOT / "train_dreambooth_atoms.py"), "--base", ref]
    train += ["--output_dir", str(work), "--instance_dir", str(work / "dog"), "--resolution", str(resolution)]
    train += ["--no_prior", "--mixed_precision", "bf16", "--lr_scheduler", "constant"]
    train += ["--learning_rate", str(RATE), "--max_train_steps"]
    _run(figures, "trains", [*train, "2"], environment)
    _run(figures, "goes on", [*train, "3", "--resume_from_checkpoint", "latest"], environment)
    if figures.form == "folder":
        settings = {
            "base": ref, "instance_data_dir": str(work / "dog"), "output_dir": str(work / "without"),
            "resolution": resolution, "max_train_steps": 1, "with_prior_preservation": False,
            "train_token": False, "mixed_precision": "bf16", "learning_rate": RATE,
        }  # fmt: skip
        code = PARTS.format(settings=json.dumps(settings))
        said = _run(figures, "trains without its word", [sys.executable, "-c", code], environment)
        figures.encoders = float(said.split("in memory ")[-1].split()[0])
    concept = work / "dog.safetensors"
    figures.concept = concept.stat().st_size
    command = [sys.executable, "-c", "from atomdiff.cli import main; main()"]
    draw = [*command, "generate", "--concept", str(concept), "--base", ref, "--steps", "2", "--count", "1"]
    draw += ["--size", str(resolution), "--dtype", "bf16", "--out", str(work / "drawn.png"), "a sks dog"]
    _run(figures, "draws", draw, environment)
    _run(figures, "card", [*command, "card", str(concept), "--out", str(work / "card.png")], environment)
    with running() as hub:
        there = environment | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_ada", "HF_HUB_OFFLINE": "0"}
        there |= {"HF_HUB_DISABLE_XET": "1"}  # which the stand-in does not speak
        _run(figures, "pushed", [*command, "push", str(concept), "ada/dog"], there)
        assert "dog.safetensors" in hub.repos["ada/dog"].commits[-1]
    figures.finished = True
    _keep(figures)


def _run(figures: Figures, what: str, command: list[str], environment: dict[str, str]) -> str:
    """Run a command to its end; what it says, and noted its CPU seconds and the most memory that it held."""
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(command, env=environment, stdout=said, stderr=said, cwd=ROOT)
        own = resident = seconds = 0.0
        while process.poll() is None:
            try:
                used, times = process.memory_info(), process.cpu_times()
            except psutil.Error:
                break
            own, resident = max(own, (used.rss - used.shared) / 1e9), max(resident, used.rss / 1e9)
            seconds = times.user + times.system
            time.sleep(0.1)
        said.seek(0)
        text = said.read().decode()
        if process.wait():
            raise SystemExit(f"{figures.model}, {figures.form}: {what} failed: {text[-2000:]}")
    figures.seconds[what], figures.own[what] = round(seconds, 1), round(own, 2)
    figures.resident[what] = round(resident, 2)
    _keep(figures)
    print(
        f"{figures.model} {figures.form}: {what} {seconds:.1f} s, {own:.2f} GB own, {resident:.2f} GB",
        flush=True,
    )
    return text


def _keep(figures: Figures) -> None:
    """In the ledger, at once: a run may be stopped."""
    known = _kept() | {f"{figures.model}, {figures.form}": asdict(figures)}
    lines = (f"{json.dumps(case)}: {json.dumps(found)}" for case, found in known.items())
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def _made(model: str, form: str, folder: Path) -> tuple[str, dict[str, str]]:
    """The name under which a model in a form is loaded, and the environment that this takes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    plain = folder / "plain"
    if not (plain / "model_index.json").is_file():
        _built(f"build({model!r}, pathlib.Path({str(plain)!r}))", environment)
    if form == "variant":
        return str(_linked(plain, folder / "variant", ".safetensors", ".fp16.safetensors")), environment
    if form == "file":
        path = folder / "single" / "model.safetensors"
        if not path.is_file():
            _built(f"build_single_file(*map(pathlib.Path, {[str(plain), str(path)]}))", environment)
        _linked(plain, path.with_suffix(""), ".safetensors", None)
        return str(path), environment
    if form == "hub":
        cache = folder / "cache" / f"models--atomdiff--{model}"
        _linked(plain, cache / "snapshots" / ("0" * 40), "", "")
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text("0" * 40)
        return f"atomdiff/{model}", environment | {"HF_HUB_CACHE": str(folder / "cache")}
    return str(plain), environment


def _built(call: str, environment: dict[str, str]) -> None:
    """In a process of its own, with which all memory goes."""
    code = f"import pathlib\nfrom benchmarks.full_size.building import *\n{call}"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _linked(source: Path, target: Path, ending: str, new: str | None) -> Path:
    """A folder of links to another's files, with another ending or, where that is None, without those
    files."""
    for path in source.rglob("*"):
        name = path.name
        if path.is_file() and not (new is None and name.endswith(ending)):
            if ending and new and name.endswith(ending):
                name = name.removesuffix(ending) + new
            link = target / path.relative_to(source).with_name(name)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path)
    return target


def _weights(folder: Path) -> float:
    """GB of the weights, in fp16."""
    return round(sum(path.stat().st_size for path in (folder / "plain").rglob("*.safetensors")) / 1e9, 2)


def _kept() -> dict[str, dict]:
    """What is known, by model and form."""
    return json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else {}


def _table(found: list[dict]) -> Shown:
    steps = ("diffusers loads", "atomdiff loads", "trains", "goes on", "draws", "card", "pushed")
    memory = ("atomdiff loads", "trains", "draws")
    headers = ["model, form", "weights GB", *(f"{s}, s" for s in steps), *(f"{s}, GB" for s in memory)]
    rows = [
        (
            f"{f['model']}, {f['form']}",
            f"{f['weights']:.2f}",
            *(f"{f['seconds'][s]:.0f}" if s in f["seconds"] else "–" for s in steps),
            *(f"{f['own'][s]:.2f}" if s in f["own"] else "–" for s in memory),
            f"{max(f['resident'].values(), default=0):.2f}",
            f"{f['concept']:,}" if f["concept"] else "–",
        )
        for f in found
    ]
    return [*headers, "with mapped files, GB", "bytes"], rows


def _targets(found: list[dict]) -> list[Target]:
    targets = []
    for f in found:
        name, seconds, own = f"{f['model']} {f['form']}", f["seconds"], f["own"]
        loaded = "atomdiff loads" in seconds
        ratio = seconds["atomdiff loads"] / max(0.1, seconds["diffusers loads"]) if loaded else None
        targets.append(Target(f"{name}: loading, times diffusers' own", ratio, high=1.5))
        for what in ("trains", "draws"):
            copies = own[what] / f["weights"] if what in own else None
            targets.append(Target(f"{name}: {what} in own memory, times the weights", copies, high=1.5))
        if f["form"] == "folder":
            targets.append(Target(f"{name}: encoders during the steps", f.get("encoders"), high=0, unit="GB"))
        if f["model"] == "sdxl":
            resident = f["resident"].values()
            targets.append(Target(f"{name}: memory in all", max(resident, default=None), high=20, unit="GB"))
    return targets


if __name__ == "__main__":
    with one_sentence():
        main()
