"""DreamBench on tiny random networks: the protocol whole, its figures by hand, and a run that goes on."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tiny_models
import torch
from foreign_files import save_lora
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.errors import SettingsError
from atomdiff.evaluation import dreambench_run
from atomdiff.evaluation.dreambench import LIVE, SUBJECTS, Subject
from atomdiff.evaluation.dreambench_run import Judges, Method, Protocol, evaluate, mean
from atomdiff.evaluation.towers import LPIPS, load_tower
from atomdiff.files.safetensors_file import load_concept, save_concept
from atomdiff.sampling.draw import draw
from atomdiff.training.run import train

SMALL = Protocol(pictures=2, prompts=2, steps=1, size=64)


def test_thirty_subjects_with_25_different_prompts_each():
    assert len(SUBJECTS) == 30 and len({subject.name for subject in SUBJECTS}) == 30
    assert sum(subject.name in LIVE for subject in SUBJECTS) == 9
    for subject in SUBJECTS:
        prompts = subject.prompts("sks")
        assert len(set(prompts)) == 25 and all(f"sks {subject.class_word}" in prompt for prompt in prompts)
        assert [p.replace("sks ", "") for p in prompts] == subject.prompts("")
    assert Subject("can", "can").prompts("zwx")[-1] == "a cube shaped zwx can"
    assert "a dog wearing a santa hat" in Subject("dog6", "dog").prompts("")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of tiny random networks: DINO's kind, and CLIP's."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    folder, tokens = tmp_path_factory.mktemp("towers"), tiny_models.tokenizer()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder / "dino")
    special = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    texts = small | special | {"vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    vision = small | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=texts, vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    tokens.save_pretrained(folder / "clip")
    state = {
        f"net.{n}.{p}": v
        for n, c in zip(LPIPS.NAMES, LPIPS().convs, strict=True)
        for p, v in c.state_dict().items()
    }
    state |= {f"lin{i}.model.1.weight": torch.rand(1, o, 1, 1) for i, (_, o, *_) in enumerate(LPIPS.CONVS)}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "lpips.safetensors")
    return folder


def pictures(seed: int, count: int = 3) -> list[Image.Image]:
    draws = np.random.default_rng(seed)
    return [Image.fromarray(draws.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(count)]


def test_towers_give_unit_vectors_that_do_not_depend_on_the_batch(towers):
    for name in ("dino", "clip"):
        tower, shown = load_tower(towers / name), pictures(0)
        found = tower.images(shown)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(tower.images(shown[1:2])[0], found[1], rtol=1e-4, atol=1e-5)
    assert load_tower(towers / "clip").texts(["a dog", "a long cat asleep"]).shape == (2, 8)


def test_towers_see_what_their_processors_make_of_a_picture(towers):
    """CLIP's own image processor, which works on PIL pictures."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shown = pictures(4, 1)[0]
    wanted = torch.as_tensor(np.asarray(theirs(shown)["pixel_values"])[0])
    torch.testing.assert_close(load_tower(towers / "clip")._pixels(shown), wanted, rtol=1e-4, atol=0.02)


def test_what_is_no_tower_is_one_sentence(towers, tmp_path):
    with pytest.raises(SettingsError, match=r"is no model folder \(it has no config\.json\)"):
        load_tower(tmp_path)
    with pytest.raises(SettingsError, match="holds a bert; DINO"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        load_tower(tmp_path)
    with pytest.raises(SettingsError, match="is not LPIPS with AlexNet as safetensors"):
        LPIPS.load(towers / "clip" / "model.safetensors")


def test_lpips_is_zero_of_a_picture_to_itself_and_symmetric(towers):
    lpips, (a, b, c) = LPIPS.load(towers / "lpips.safetensors"), pictures(1)
    assert lpips.diversity([a, a]) == 0.0 and lpips.diversity([a]) == 0.0
    assert lpips.diversity([a, b]) == pytest.approx(lpips.diversity([b, a]))
    three = [lpips.diversity(pair) for pair in ([a, b], [a, c], [b, c])]
    assert lpips.diversity([a, b, c]) == pytest.approx(sum(three) / 3, rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder):
    """DreamBooth's folder of two subjects, a concept of each, and the name of the base."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "data").mkdir()
    for name in ("cat", "vase"):
        given = tiny_models.save_pictures(folder / "data" / name, 2, 40, 40)
        train(
            given, folder / "ours", tiny_folder("sd1"), max_train_steps=1, num_atoms=4,
            conv_layers="conv_out",
            with_prior_preservation=False, timeline_steps=0, checkpointing_steps=0,
        )  # fmt: skip
    return folder


def test_figures_are_those_of_the_pictures_and_are_not_made_twice(
    trained, towers, tiny_base, tmp_path, monkeypatch
):
    base, subject = tiny_base("sd1"), Subject("cat", "cat")
    judges = Judges(
        load_tower(towers / "dino"), load_tower(towers / "clip"), LPIPS.load(towers / "lpips.safetensors")
    )
    method = Method("ours-plain", trained / "ours")

    def figures():
        return evaluate(base, method, subject, trained / "data" / "cat", tmp_path, judges, SMALL)

    found = figures()
    drawn = [Image.open(path) for path in sorted((tmp_path / "ours-plain" / "cat").glob("0?-?.png"))]
    assert len(drawn) == 4
    real = [Image.open(path) for path in sorted((trained / "data" / "cat").glob("*.png"))]
    assert found["DINO"] == pytest.approx(
        float((judges.dino.images(drawn) @ judges.dino.images(real).T).mean()), abs=1e-5
    )
    assert found["bytes"] == (trained / "ours" / "cat.safetensors").stat().st_size
    assert set(found) == {"DINO", "CLIP-I", "CLIP-T", "LPIPS", "drift", "bytes"}
    monkeypatch.setattr(dreambench_run, "draw", None)
    assert figures() == found  # read, not made
    (tmp_path / "ours-plain" / "cat" / "figures.json").unlink()
    assert figures() == pytest.approx(found)  # judged anew from the pictures
    assert mean([found, {"DINO": 1.0}])["DINO"] == pytest.approx((found["DINO"] + 1) / 2)


def test_the_command_makes_a_report_of_all_methods_and_refuses_what_is_missing(
    trained, towers, tiny_folder, tiny_base, tmp_path
):
    def run(*more):
        flags = [
            "evaluate",
            str(trained / "data"),
            "--base",
            str(tiny_folder("sd1")),
            "--prompts",
            "1",
            "--steps",
            "1",
        ]
        flags += ["--pictures", "1", "--size", "64", "--device", "cpu", "--out", str(tmp_path / "out"), *more]
        return CliRunner().invoke(cli.app, flags)

    (tmp_path / "theirs").mkdir()  # as diffusers' trainer leaves them
    for i, name in enumerate(("cat", "vase")):
        lora = tmp_path / "theirs" / name / "pytorch_lora_weights.safetensors"
        lora.parent.mkdir()
        save_lora(tiny_base("sd1"), lora, seed=i)
    concepts = ["--concepts", str(trained / "ours"), "--clip", str(towers / "clip")]
    concepts += ["--loras", str(tmp_path / "theirs")]
    done = run(*concepts, "--subjects", "cat,vase")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for text in ("<h2>cat</h2>", "<h2>vase</h2>", "ours-plain", "ours-gated", "theirs-lora", "as published"):
        assert text in page
    shown = re.findall(r'src="([^"]+)"', page)
    assert len(shown) == 8 and all((tmp_path / "out" / name).is_file() for name in shown)
    assert "has no folder 'backpack'" in run(*concepts).output
    assert "DreamBench has no subject 'bird'" in run("--subjects", "bird").output
    (tmp_path / "none").mkdir()
    refused = run("--concepts", str(tmp_path / "none"), "--subjects", "cat").output
    assert "has no cat.safetensors; train it" in " ".join(refused.split())
    (tmp_path / "wrong").mkdir()
    shutil.copy(trained / "ours" / "cat.safetensors", tmp_path / "wrong" / "cat.safetensors")
    refused = run("--loras", str(tmp_path / "wrong"), "--subjects", "cat").output
    assert "The LoRA 'cat.safetensors' does not fit" in " ".join(refused.split())


def test_a_lora_is_judged_by_its_word_as_diffusers_draws_it_and_leaves_the_base_as_it_was(
    trained, towers, tiny_base, tmp_path
):
    base, subject = tiny_base("sd1"), Subject("cat", "cat")
    given, judges = trained / "data" / "cat", Judges(clip=load_tower(towers / "clip"))
    file = save_lora(base, tmp_path / "cat.safetensors")
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    lora = Method("lora", tmp_path, lora=True, trigger="zwx")
    figures = {
        method.name: evaluate(base, method, subject, given, tmp_path / "out", judges, SMALL)
        for method in (Method("base"), lora)
    }
    after = base.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert figures["base"]["drift"] == pytest.approx(0, abs=1e-6) and figures["base"]["bytes"] == 0
    assert figures["lora"]["drift"] > 0 and figures["lora"]["bytes"] == file.stat().st_size
    prompts = subject.prompts("zwx")[:2]
    wanted = draw(base, prompts[1], loras=[(file, 1.0)], count=2, seed=1000, steps=1, size=64)
    there = [Image.open(tmp_path / "out" / "lora" / "cat" / f"01-{k}.png") for k in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(wanted, there, strict=True))
    assert there[0].info["parameters"].startswith(prompts[1])


def test_what_is_drawn_otherwise_is_drawn_anew(trained, towers, tiny_base, tmp_path):
    subject, judges = Subject("cat", "cat"), Judges(clip=load_tower(towers / "clip"))
    files = tmp_path / "files"
    shutil.copytree(trained / "ours", files)

    def pictures_of(kind="sd1", **protocol):
        how = Protocol(**{**vars(SMALL), **protocol})
        method = Method("ours", files)
        evaluate(tiny_base(kind), method, subject, trained / "data" / "cat", tmp_path / "out", judges, how)
        folder = tmp_path / "out"
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}

    first = pictures_of()
    assert len(first) == 4 + 2 + 2 and pictures_of() == first
    more = pictures_of(prompts=3)  # those that are there stay, so does the class
    assert first.items() < more.items() and len(more) == len(first) + 2
    other = load_concept(files / "cat.safetensors")
    save_concept(dataclasses.replace(other, atoms={n: 9 * a + 0.1 for n, a in other.atoms.items()}),
                 files / "cat.safetensors")  # fmt: skip
    retrained = pictures_of(prompts=3)
    assert retrained.keys() == more.keys()
    assert all((retrained[path] == more[path]) == (path.parts[0] == "base") for path in more)
    slower = pictures_of(prompts=3, steps=2)
    assert all(slower[path] != retrained[path] for path in retrained)
