"""The command that runs DreamBench."""

from pathlib import Path
from typing import Annotated

import typer

from atomdiff.cli.common import app, one_sentence


@app.command()
@one_sentence
def evaluate(
    data: Annotated[Path, typer.Argument(help="DreamBooth's data set: a folder with one for each subject.")],
    base: Annotated[str, typer.Option(help="pocket, sd15, sd21, sdxl, a folder, file or hub id.")] = "sd15",
    concepts: Annotated[
        list[Path] | None, typer.Option(help="Folder of concepts, SUBJECT.safetensors; may be given again.")
    ] = None,
    loras: Annotated[
        list[Path] | None, typer.Option(help="Folder of LoRAs, SUBJECT.safetensors; may be given again.")
    ] = None,
    acting: Annotated[
        str, typer.Option(metavar="plain|gated|both", help="How concepts act; LoRAs act plainly.")
    ] = "both",
    trigger: Annotated[str, typer.Option(help="The word that LoRAs were trained with.")] = "sks",
    dino: Annotated[
        Path | None, typer.Option(help="Folder of facebook/dino-vits16 (or a DINOv2), as safetensors.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of openai/clip-vit-base-patch32.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS with AlexNet, a .safetensors file.")] = None,
    subjects: Annotated[str, typer.Option(help="Names with commas between; by default all 30.")] = "",
    prompts: Annotated[int, typer.Option(min=1, max=25, help="The first so many of the 25 prompts.")] = 25,
    pictures: Annotated[int, typer.Option(min=1, max=64, help="Pictures of each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    size: Annotated[int | None, typer.Option(help="Side in pixels; by default the base's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    out: Annotated[Path, typer.Option(help="Where pictures and report.html go; what is there stays.")] = Path(
        "outputs/dreambench"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (fp16 on a GPU, else fp32), fp32, fp16 or bf16.")] = "auto",
) -> None:
    """DreamBench: 30 subjects x 25 prompts x 4 pictures, judged by DINO, CLIP and LPIPS, with an HTML report.

    Stopped, it goes on where it was.
    """
    from atomdiff.cli.arguments import load_base
    from atomdiff.errors import SettingsError
    from atomdiff.evaluation.dreambench import SUBJECTS
    from atomdiff.evaluation.dreambench_report import write_report
    from atomdiff.evaluation.dreambench_run import Judges, Method, Protocol
    from atomdiff.evaluation.dreambench_run import evaluate as run
    from atomdiff.evaluation.towers import LPIPS, load_tower

    names = [name.strip() for name in subjects.split(",") if name.strip()]
    unknown = [name for name in names if name not in [subject.name for subject in SUBJECTS]]
    if unknown:
        raise SettingsError(f"DreamBench has no subject {unknown[0]!r}; its folders' names are its subjects.")
    chosen = [subject for subject in SUBJECTS if not names or subject.name in names]
    missing = [subject.name for subject in chosen if not (data / subject.name).is_dir()]
    if missing:
        raise SettingsError(
            f"'{data}' has no folder {missing[0]!r}; give DreamBooth's data set, or --subjects."
        )
    if acting not in ("plain", "gated", "both"):
        raise SettingsError(f"--acting must be plain, gated or both, but {acting!r} was given.")
    methods = [Method("base")]
    for folder in concepts or []:
        ways = ("plain", "gated") if acting == "both" else (acting,)
        methods += [Method(f"{folder.name}-{way}", folder, acting=way) for way in ways]
    methods += [Method(f"{folder.name}-lora", folder, lora=True, trigger=trigger) for folder in loras or []]
    for method in methods:
        for subject in chosen:
            method.file(subject)
    judges = Judges(
        load_tower(dino) if dino else None,
        load_tower(clip) if clip else None,
        LPIPS.load(lpips) if lpips else None,
    )
    protocol = Protocol(pictures, prompts, steps, guidance, size, batch_size)
    loaded = load_base(base, device, dtype, given=True)
    results: dict[str, dict[str, dict[str, float]]] = {method.name: {} for method in methods}
    for subject in chosen:
        for method in methods:
            figures = run(
                loaded, method, subject, data / subject.name, out, judges, protocol,
                lambda what, done, total: typer.echo(f"\r{what}: {done} of {total}  ", nl=False, err=True),
            )  # fmt: skip
            results[method.name][subject.name] = figures
            write_report(out, results, methods, [s for s in chosen if s.name in results["base"]], protocol)
    typer.echo(f"\n{out / 'report.html'}")
