"""DreamBench on tiny random networks: the protocol whole, its figures by hand, and a run that goes on."""

import json
import re

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.errors import SettingsError
from atomdiff.evaluation import dreambench_run
from atomdiff.evaluation.dreambench import LIVE, SUBJECTS, Subject
from atomdiff.evaluation.dreambench_run import Judges, Method, Protocol, evaluate, mean
from atomdiff.evaluation.towers import LPIPS, load_tower
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
    trained, towers, tiny_folder, tmp_path
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

    concepts = ["--concepts", str(trained / "ours"), "--clip", str(towers / "clip")]
    done = run(*concepts, "--subjects", "cat,vase")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for text in ("<h2>cat</h2>", "<h2>vase</h2>", "ours-plain", "ours-gated", "as published", "CLIP-T"):
        assert text in page
    shown = re.findall(r'src="([^"]+)"', page)
    assert len(shown) == 6 and all((tmp_path / "out" / name).is_file() for name in shown)
    assert "has no folder 'backpack'" in run(*concepts).output
    assert "DreamBench has no subject 'bird'" in run("--subjects", "bird").output
    (tmp_path / "none").mkdir()
    refused = run("--concepts", str(tmp_path / "none"), "--subjects", "cat").output
    assert "has no cat.safetensors; train it" in " ".join(refused.split())
