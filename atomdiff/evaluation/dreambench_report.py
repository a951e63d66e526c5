"""The report of DreamBench: one HTML page, figures beside pictures, which lie in the folders next to it."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from atomdiff.evaluation.dreambench import Subject
from atomdiff.evaluation.dreambench_run import FIGURES, Figures, Method, Protocol, mean
from atomdiff.files import atomic

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px
solid #ddd} th:first-child,td:first-child{text-align:left}.row{display:flex;gap:4px;flex-wrap:wrap}
.row img{width:112px;height:112px;object-fit:cover}figcaption{font-size:13px;color:#555}figure{margin:.6rem
0}"""
PUBLISHED = (  # Ruiz et al. 2023, table 1
    ("real pictures", {"DINO": 0.774, "CLIP-I": 0.885}),
    ("DreamBooth on Stable Diffusion, as published", {"DINO": 0.668, "CLIP-I": 0.803, "CLIP-T": 0.305}),
    (
        "textual inversion on Stable Diffusion, as published",
        {"DINO": 0.569, "CLIP-I": 0.780, "CLIP-T": 0.255},
    ),
)
Results = Mapping[str, Mapping[str, Figures]]
"""Method -> subject -> figures."""


def write_report(
    out: Path, results: Results, methods: Sequence[Method], subjects: Sequence[Subject], protocol: Protocol
) -> Path:
    """OUT/report.html, with a table of means, one for each subject, and the first pictures of some
    prompts."""
    rows = [(name, mean(list(each.values()))) for name, each in results.items()]
    body = [
        "<h1>DreamBench</h1>",
        f"<p>{len(subjects)} of 30 subjects, {protocol.prompts} of 25 prompts, {protocol.pictures} "
        "pictures a prompt. DINO and CLIP-I: likeness to the photographs. CLIP-T: to the prompt. LPIPS: "
        "how different the pictures of one prompt are. Drift: how far pictures of the class moved. "
        "Figures as published are of another machine and other files.</p>",
        _table([*rows, *PUBLISHED]),
    ]
    for subject in subjects:
        body += [f"<h2>{html.escape(subject.name)}</h2>"]
        body += [_table([(m.name, results[m.name].get(subject.name, {})) for m in methods])]
        body += [_pictures(out, method, subject, protocol) for method in methods]
    page = f"<!doctype html><meta charset=utf-8><title>DreamBench</title><style>{STYLE}</style>"
    path = out / "report.html"
    atomic.write(path, (page + "\n".join(body)).encode(), "The report")
    return path


def _table(rows: Sequence[tuple[str, Figures]]) -> str:
    names = [name for name in FIGURES if any(name in figures for _, figures in rows)]
    head = "".join(f"<th>{name}</th>" for name in ("", *names))
    lines = [
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{_number(name, f)}</td>" for name in names)
        + "</tr>"
        for label, f in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _number(name: str, figures: Figures) -> str:
    if name not in figures:
        return "–"
    return f"{figures[name]:,.0f}" if name == "bytes" else f"{figures[name]:.3f}"


def _pictures(out: Path, method: Method, subject: Subject, protocol: Protocol) -> str:
    folder = out / method.name / subject.name
    shown = [folder / f"{number:02d}-0.png" for number in range(protocol.prompts)]
    prompts = subject.prompts("")
    images = [
        f'<img loading=lazy src="{html.escape(path.relative_to(out).as_posix())}" '
        f'title="{html.escape(prompt)}">'
        for path, prompt in zip(shown, prompts, strict=False)
        if path.is_file()
    ]
    row = f"<div class=row>{''.join(images)}</div>"
    return f"<figure><figcaption>{html.escape(method.name)}</figcaption>{row}</figure>"
