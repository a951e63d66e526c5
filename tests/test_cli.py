"""The command line from outside: what it writes, what it says, and how it says no."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.cli.base_flags import BaseAsked
from atomdiff.concept.concept import Concept
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.files.safetensors_file import load_concept, save_concept, sha256

QUICK = ["--steps", "2", "--device", "cpu"]


def run(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def concept_file(tiny_base, tmp_path_factory) -> Path:
    base = tiny_base("sd1")
    selection = inject.select(base.unet, AtomSpec())
    atoms = {layer: torch.full((9, 9), 0.05) for layer in selection.conv}
    atoms |= {layer: torch.full((16, 16), 0.05) for layer in selection.linear}
    training = {"steps": 300, "learning_rate": 0.001, "instance_prompt": "a sks dog"}
    concept = Concept.of(
        base.unet,
        AtomSpec(),
        atoms,
        base.passport,
        trigger="sks",
        class_word="dog",
        name="Rex",
        training=training,
    )
    return save_concept(concept, tmp_path_factory.mktemp("concepts") / "rex.safetensors")


def test_generate_writes_a_sheet_and_each_picture(tmp_path, tiny_folder, concept_file):
    out = tmp_path / "new" / "beach.png"
    done = run(
        "generate", "--concept", f"{concept_file}:0.5", "a sks dog", "-n", 3, "--seed", 4, "--out", out,
        "--base", tiny_folder("sd1"), "--negative", "rain", "--acting", "gated", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"base: {tiny_folder('sd1')} (as asked)\n")
    assert sorted(file.name for file in out.parent.iterdir()) == [
        "beach-0.png", "beach-1.png", "beach-2.png", "beach.png",
    ]  # fmt: skip
    with Image.open(out.parent / "beach-2.png") as picture:
        assert picture.size == (64, 64)
        text = picture.info["parameters"]
    assert text.startswith(
        "a sks dog\nNegative prompt: rain\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 6,"
    )
    used = f'Concepts: "Rex:0.5:{sha256(load_concept(concept_file))[:12]}", Concepts act: gated'
    assert used in text


def test_one_picture_or_no_grid_writes_just_pictures(tmp_path, tiny_folder):
    where = ["--base", tiny_folder("sd1"), *QUICK]
    assert run("generate", "a dog", "--out", tmp_path / "one.jpg", *where).exit_code == 0
    assert (
        run("generate", "a dog", "-n", 2, "--no-grid", "--out", tmp_path / "two.png", *where).exit_code == 0
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.jpg", "two-0.png", "two-1.png"]


def test_pictures_start_from_pictures_grow_and_take_styles_and_words(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "teal").save("photo.png")
    Image.new("L", (40, 30), 255).save("mask.png")
    (tmp_path / "animal.txt").write_text("dog\ncat\n")
    common = ["--base", tiny_folder("sd1"), *QUICK]
    started = ["--image", "photo.png", "--mask", "mask.png", "--strength", "0.9"]
    done = run("generate", "a __animal__", "-n", 2, "--style", "clay", *started, "--out", "in.png", *common)
    assert done.exit_code == 0, done.output
    with Image.open("in-0.png") as picture:
        assert picture.size == (40, 30)
        assert re.match(r"a (dog|cat), clay figure.*\nNegative prompt: drawing\n", picture.info["parameters"])
        assert "Denoising strength: 0.9" in picture.info["parameters"]
    done = run("generate", "a dog", "--hires", "2", "--size", "32", "--out", "large.png", *common)
    assert done.exit_code == 0, done.output
    with Image.open("large.png") as picture:
        assert picture.size == (64, 64)
        assert "Denoising strength: 0.4, Hires upscale: 2" in picture.info["parameters"]
    assert "cannot be drawn from" in run("generate", "a dog", "--image", "none.png", *common).stderr


def test_the_base_is_the_one_that_the_concept_names(tmp_path, tiny_folder, concept_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lost = run("generate", "--concept", concept_file, "a sks dog", *QUICK)
    assert lost.exit_code == 2
    assert lost.stdout.startswith("base: tiny-sd1 (the one that 'Rex' was trained on)")
    assert "--base says where it lies" in lost.stderr
    monkeypatch.chdir(tiny_folder("sd1").parent)
    found = run("generate", "--concept", concept_file, "a sks dog", "--out", tmp_path / "x.png", *QUICK)
    assert found.exit_code == 0, found.output


def test_what_the_files_of_a_base_do_not_say_is_said_by_flags(tmp_path, tiny_folder):
    def picture(*flags):
        out = tmp_path / "x.png"
        done = run("generate", "a dog", "--out", out, "--base", tiny_folder("sd1"), *flags, *QUICK)
        assert done.exit_code == 0, done.output
        return out.read_bytes()

    plain = picture()
    assert picture("--prediction_type", "epsilon") == plain
    v = picture("--prediction_type", "v_prediction")
    assert v != plain and picture("--prediction-type", "v_prediction", "--zero_terminal_snr") not in (
        v,
        plain,
    )
    assert picture("--vae", tiny_folder("sd1", 1)) != plain
    for flags, said in (
        (["--prediction_type", "v"], "must be one of epsilon, v_prediction, but 'v' was given"),
        (["--zero_terminal_snr"], "pure noise has nothing else to predict"),
        (["--variant", "fp8"], "has no variant 'fp8'"),
    ):
        refused = run("generate", "a dog", "--base", tiny_folder("sd1"), *flags, *QUICK)
        assert refused.exit_code == 2 and said in " ".join(refused.stderr.split())


def test_a_page_with_several_bases_takes_what_was_said_of_the_first_for_it_alone(tiny_folder):
    first, other = str(tiny_folder("sd1")), str(tiny_folder("sd1", 1))
    asked = BaseAsked(None, "cpu", "fp32", "v_prediction", True, "", "", "")
    load = pickle.loads(pickle.dumps(asked.loader(first)))
    assert [load(name).prediction_type for name in (first, other)] == ["v_prediction", "epsilon"]
    assert asked.tells_of_files
    assert not BaseAsked("sd15", "cuda", "fp16", None, False, "", "", "").tells_of_files
    for command in ("studio", "serve"):
        refused = run(command, "--base", first, "--prediction_type", "v")
        assert refused.exit_code == 2 and "epsilon, v_prediction, but 'v' was given" in refused.stderr


def test_a_concept_tells_what_its_base_was_said_to_predict(tmp_path, tiny_folder, concept_file):
    base = ["--base", tiny_folder("sd1"), "--out", tmp_path / "x.png", *QUICK]
    concept = load_concept(concept_file)
    told = {"prediction_type": "v_prediction", "zero_terminal_snr": 1}
    file = save_concept(
        dataclasses.replace(concept, training={**concept.training, **told}), tmp_path / "v.safetensors"
    )
    said = run("generate", "--concept", file, "a sks dog", *base).stderr
    assert (
        "--prediction_type v_prediction draws as it was trained" in said
        and "--zero_terminal_snr does" in said
    )
    asked = ["--prediction_type", "v_prediction", "--zero_terminal_snr"]
    assert "as it was trained" not in run("generate", "--concept", file, "a sks dog", *asked, *base).stderr


def test_notes_about_a_missing_trigger_and_a_cousin(tmp_path, tiny_folder, concept_file):
    done = run(
        "generate", "--concept", concept_file, "dog " * 75 + "on the beach", "--out", tmp_path / "x.png",
        "--base", tiny_folder("sd1", 1), *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "warning: the prompt lacks 'sks', the word that calls" in done.stderr
    assert "therefore will show but little" in done.stderr
    assert "likeness may suffer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "nowhere/at/all"], "There is no base 'nowhere/at/all'"),
        (["--base", "sd15"], "hub cannot be reached"),
        (["--concept", "none.safetensors"], "No such file"),
        (["--concept", "CONCEPT:strong"], "strength in .* is not a number"),
        (["--concept", "CONCEPT:inf"], "not a finite number"),
        (["--concept", "LORA"], "This is a LoRA"),
        (["--concept", "CONCEPT", "--base", "SDXL"], "'Rex' was made for 'tiny-sd1'.*'tiny-sdxl'"),
        (["--out", "x.gif"], r"not '\.gif'"),
        (["--out", "/proc/nowhere/x.png", "--base", "SD1"], "'/proc/nowhere' cannot be written.*--out"),
        (["--concept", "x" * 300 + ":0.5"], r"'x{60}.*0\.5' cannot be .*File name too long.* check"),
        (["--size", "64 by 64"], "A size is"),
        (["--size", "63", "--base", "SD1"], "multiples of 8"),
        (["--sampler", "magic", "--base", "SD1"], "no sampler 'magic'"),
        (["--dtype", "int4", "--base", "SD1"], "--dtype is auto"),
        (["--device", "tpu9", "--base", "SD1"], "no device 'tpu9'"),
        (["-n", "0", "--base", "SD1"], "count 0"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(
    tmp_path, tiny_folder, concept_file, monkeypatch, arguments, message
):
    from safetensors.torch import save_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_file({"x.lora_up.weight": torch.zeros(1)}, "lora.safetensors")
    names = {"CONCEPT": str(concept_file), "LORA": "lora.safetensors"}
    names |= {"SDXL": str(tiny_folder("sdxl")), "SD1": str(tiny_folder("sd1"))}
    given = [names.get(item, item.replace("CONCEPT", str(concept_file))) for item in arguments]
    done = run("generate", "a sks dog", *given)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ")
    import re

    assert re.search(message, line), line
    assert not list(tmp_path.glob("*.png"))


def test_compare_draws_two_rows_a_prompt(tmp_path, tiny_folder, concept_file):
    out = tmp_path / "both.png"
    done = run(
        "compare", "--concept", concept_file, "a sks dog", "a sks dog at night", "-n", 2, "--out", out,
        "--base", tiny_folder("sd1"), *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with Image.open(out) as sheet:
        assert sheet.width < sheet.height  # four rows of two


def test_ctrl_c_is_one_sentence(monkeypatch, tiny_folder):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("atomdiff.sampling.draw.draw", stop)
    done = run("generate", "a dog", "--base", tiny_folder("sd1"), *QUICK)
    assert (done.exit_code, done.stderr) == (2, "error: Stopped; nothing was written.\n")


def test_defects_keep_their_traceback(monkeypatch, tiny_folder):
    monkeypatch.setattr("atomdiff.sampling.draw.draw", lambda *args, **kwargs: 1 / 0)
    assert isinstance(
        run("generate", "a dog", "--base", tiny_folder("sd1"), *QUICK).exception, ZeroDivisionError
    )


def test_inspect_shows_what_matters(concept_file):
    done = run("inspect", concept_file)
    assert done.exit_code == 0, done.output
    for text in (
        "Rex",
        "sks",
        "dog",
        "tiny-sd1",
        "attn2, blocks of 4",
        "conv atoms",
        "instance prompt",
        "0.001",
    ):
        assert text in done.output


def test_inspect_json_is_complete(concept_file):
    about = json.loads(run("inspect", concept_file, "--json").output)
    assert (about["name"], about["trigger"], about["class_word"]) == ("Rex", "sks", "dog")
    assert about["base"]["family"] == "sd1"
    assert about["spec"]["num_atoms"] == 9
    assert about["training"] == {"steps": 300, "learning_rate": 0.001, "instance_prompt": "a sks dog"}
    assert sum(about["bytes"].values()) == about["file_bytes"] == concept_file.stat().st_size
    assert about["sha256"] == sha256(load_concept(concept_file))


def test_inspect_refuses_other_files(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 3)
    for file in (tmp_path / "x.safetensors", tmp_path / "none", tmp_path):
        done = run("inspect", file)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_version_and_help():
    assert run("--version").output.startswith("atomdiff ")
    assert "--concept" in run("generate", "--help").output
