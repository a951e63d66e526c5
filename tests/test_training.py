"""The whole of training on tiny random bases: what it leaves, how it stops, how it goes on."""

import dataclasses
import math
import shutil
import signal
from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image

from atomdiff.concept.concept import Concept
from atomdiff.errors import ImageError, Interrupted, SettingsError, TrainingError
from atomdiff.files.safetensors_file import load_concept, sha256
from atomdiff.training import forward
from atomdiff.training import run as training
from atomdiff.training.checkpoint import load_checkpoint
from atomdiff.training.defaults import count_steps, name_everything, numerical, suit_base
from atomdiff.training.objective import diffusion_loss
from atomdiff.training.reporting import Reporter, StepRecord
from atomdiff.training.run import train
from atomdiff.training.settings import TrainingSettings

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"


class Recorder(Reporter):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.warnings: list[str] = []
        self.stages: set[str] = set()
        self.records: list[StepRecord] = []

    def notice(self, text):
        self.notices.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def stage(self, what, done, total):
        self.stages.add(what)

    def step(self, record):
        self.records.append(record)


def pictures(folder: Path, count: int, side: int = 70) -> Path:
    return tiny_models.save_pictures(folder, count, side + 10, side)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return pictures(root / "dog", 3), pictures(root / "dogs", 2, 64)


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base("sd1")


@pytest.fixture
def run(folders, tmp_path, base):
    """`run(max_train_steps=3, ...)` -> (concept as trained, recorder), few layers and no drawing; with class
    pictures, and rates that leave the number of steps open."""

    def start(base=base, recorder=None, stop=lambda: False, **settings):
        recorder = recorder or Recorder()
        few = {"class_data_dir": str(folders[1]), "num_class_images": 2, "conv_layers": "mid_block"}
        few |= {"with_prior_preservation": True, "lr_scheduler": "constant"}
        settings = few | {"max_train_steps": 3, "train_batch_size": 2, "precision": "fp32"} | settings
        concept = train(folders[0], tmp_path / "out", base, reporter=recorder, stop=stop, **settings)
        return concept, recorder

    return start


def same(a: Concept, b: Concept) -> bool:
    return all(torch.equal(a.atoms[name], b.atoms[name]) for name in a.atoms)


# ------------------------------------------------------------------------------------------- the whole


def test_trains_saves_and_leaves_the_base_as_it_was(run, base, tmp_path):
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    concept, heard = run(max_train_steps=4, checkpointing_steps=2, precision="int8")
    assert [record.step for record in heard.records] == [1, 2, 3, 4]
    assert all(math.isfinite(r.loss) and r.gradient_norm > 0 and r.prior_loss > 0 for r in heard.records)
    assert heard.records[1].saved == tmp_path / "out" / "checkpoint-2"
    assert all(float(values.abs().max()) > 0 for values in concept.atoms.values())
    after = base.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not base.unet.training
    loaded = load_concept(tmp_path / "out" / "dog.safetensors")
    assert same(loaded, concept) and sha256(loaded) == sha256(concept)
    assert (loaded.trigger, loaded.class_word, loaded.name) == ("sks", "dog", "dog")
    assert loaded.training["steps"] == 4
    assert loaded.training["instance_prompt"] == "a sks dog"
    assert heard.notices[0].startswith("Base: ")
    assert heard.notices[-1].startswith(f"Concept: {tmp_path / 'out' / 'dog.safetensors'} (")


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_other_families(run, tiny_base, kind):
    concept, heard = run(base=tiny_base(kind), max_train_steps=2)
    assert len(heard.records) == 2
    assert concept.num_parameters() > 0


def test_bf16_trains_fp32_atoms(run, tiny_base):
    half = tiny_base("sd1", dtype=torch.bfloat16)
    _, heard = run(base=half, mixed_precision="bf16", max_train_steps=2)
    assert math.isfinite(heard.records[-1].loss)
    run(max_train_steps=1)  # fp32 again in the same process


def test_gradient_checkpointing_changes_nothing_but_rounding(run):
    plain, _ = run(adam_epsilon=1.0)
    spared, _ = run(adam_epsilon=1.0, gradient_checkpointing=True)
    for name, values in plain.atoms.items():
        torch.testing.assert_close(spared.atoms[name], values, rtol=1e-3, atol=1e-7)


def test_accumulation_gives_the_gradient_of_the_joint_batch(run):
    # With a large epsilon Adam's step is proportional to the gradient, so that rounding is not amplified.
    joint, _ = run(train_batch_size=4, adam_epsilon=1.0, num_atoms=0)
    split, _ = run(train_batch_size=2, gradient_accumulation_steps=2, adam_epsilon=1.0, num_atoms=0)
    torch.testing.assert_close(split.atoms["linear"], joint.atoms["linear"], rtol=1e-3, atol=1e-7)


def test_learning_rates_of_both_kinds_of_atoms(run):
    concept, _ = run(num_atoms=9, learning_rate=1e-3, linear_learning_rate=1e-5, max_train_steps=1)
    assert float(concept.atoms["conv"].abs().max()) == pytest.approx(1e-3, rel=0.01)
    assert float(concept.atoms["linear"].abs().max()) == pytest.approx(1e-5, rel=0.01)


def test_captions_flips_and_no_prior(base, tmp_path):
    own = pictures(tmp_path / "cat", 2)
    (own / "0.txt").write_text("a sks cat asleep")
    heard = Recorder()
    concept = train(
        own, tmp_path / "out", base, reporter=heard, max_train_steps=2, with_prior_preservation=False,
        caption_extension="txt", random_flip=True, num_atoms=0, train_batch_size=2,
    )  # fmt: skip
    assert concept.class_word == "cat"
    told = "Pictures: 2, 1 by their texts, such as 'a sks cat asleep'; the others as 'a sks cat'; "
    assert any(notice.startswith(told) for notice in heard.notices)
    assert not heard.warnings
    assert all(record.prior_loss == 0 for record in heard.records)
    assert concept.training["class_pictures"] == 0


def test_a_caption_that_does_not_say_the_trigger_is_told(base, tmp_path):
    own = pictures(tmp_path / "cat", 2)
    for number, text in enumerate(("a SKS cat asleep", "a cat asleep")):
        (own / f"{number}.txt").write_text(text)
    heard = Recorder()
    quick = {"max_train_steps": 1, "with_prior_preservation": False}
    train(own, tmp_path / "out", base, reporter=heard, caption_extension="txt", **quick)
    told = "Pictures: 2, 2 by their texts, such as 'a SKS cat asleep'"
    assert any(notice.startswith(told) for notice in heard.notices)
    (said,) = heard.warnings
    assert said.startswith("1 of 2 texts beside the pictures do not say 'sks', such as 'a cat asleep': ")


def test_a_prompt_too_long_is_told_with_what_was_cut(run):
    _, heard = run(instance_prompt="a sks dog " + "on a very long sofa " * 20, max_train_steps=1, num_atoms=0)
    assert len(heard.warnings) == 1
    assert "is longer than the text encoder takes; this was cut off: '" in heard.warnings[0]


def test_validation_pictures_are_drawn_and_kept(run, tmp_path, monkeypatch):
    asked = []

    def draw(base, prompt, **options):
        layer = base.unet.get_submodule("mid_block.resnets.0.conv1")
        asked.append(
            (prompt, options["seed"], base.unet.training, type(layer).__name__, len(options["concepts"]))
        )
        return [Image.new("RGB", (8, 8))] * options["count"]

    monkeypatch.setattr(training.draw, "draw", draw)
    prompt = "a sks dog in the snow"
    validated, heard = run(validation_prompt=prompt, validation_steps=2, num_validation_images=2)
    assert asked == [([prompt], 0, False, "Conv2d", 1)] * 2
    assert [len(record.pictures) for record in heard.records] == [0, 2, 2]
    assert sorted(path.name for path in (tmp_path / "out" / "validation").iterdir()) == [
        f"step-00000{step}{end}.png" for step in (2, 3) for end in ("-0", "-1", "")
    ]
    assert same(validated, run()[0])  # looking changes nothing


def test_several_validation_prompts_are_drawn_on_one_sheet(run, tmp_path, monkeypatch):
    asked = []

    def draw(base, prompts, **options):
        asked.append(prompts)
        return [Image.new("RGB", (64, 64), (40 * i, 9, 9)) for i in range(len(prompts) * options["count"])]

    monkeypatch.setattr(training.draw, "draw", draw)
    prompts = ("a sks dog", "a sks dog in space")
    run(validation_prompts=prompts, num_validation_images=2, max_train_steps=1, report_to="tensorboard")
    assert asked == [list(prompts)]
    names = sorted(path.name for path in (tmp_path / "out" / "validation").iterdir())
    assert names == [*(f"step-000001-{i}.png" for i in range(4)), "step-000001.png"]


@pytest.mark.parametrize("optimizer", ["prodigy", "schedulefree"])
def test_other_optimisers_and_the_moving_mean_resume_bit_for_bit(run, optimizer):
    mean = {"ema_decay": 0.9} if optimizer == "prodigy" else {}
    settings = {"max_train_steps": 4, "optimizer": optimizer, "token_learning_rate": 1e-3} | mean
    whole, heard = run(**settings)
    assert all(record.learning_rate > 0 for record in heard.records)
    assert all(float(values.abs().max()) > 0 for values in whole.atoms.values())
    first = Recorder()
    with pytest.raises(Interrupted):
        run(**settings, recorder=first, stop=lambda: len(first.records) == 1)
    resumed, _ = run(**settings, resume_from_checkpoint="latest")
    assert same(whole, resumed)


def test_a_base_is_trained_with_another_autoencoder_and_noise_schedule(tiny_folder, folders, tmp_path):
    heard = Recorder()
    train(
        folders[0], tmp_path / "out", tiny_folder("sd2"), reporter=heard,
        pretrained_vae_model_name_or_path=str(tiny_folder("sd1", 1)),
        zero_terminal_snr=True, max_train_steps=1, num_atoms=4, conv_layers="conv_out",
        with_prior_preservation=False,
    )  # fmt: skip
    assert math.isfinite(heard.records[0].loss)


def test_a_single_file_is_trained_for_what_it_is_said_to_predict(tiny_folder, folders, tmp_path):
    file = tiny_models.save_single_file(tiny_models.pipeline("sd1"), tmp_path / "v.safetensors")
    shutil.copytree(tiny_folder("sd1"), tmp_path / "v")
    few = {"max_train_steps": 1, "num_atoms": 4, "conv_layers": "conv_out", "with_prior_preservation": False}
    losses = {}
    for predicted in (None, "v_prediction"):
        heard = Recorder()
        concept = train(
            folders[0], tmp_path / str(predicted), file, reporter=heard, prediction_type=predicted, **few
        )
        losses[predicted] = heard.records[0].loss
        assert concept.training.get("prediction_type") == predicted
    assert losses[None] != losses["v_prediction"]


def test_a_second_run_leaves_a_finished_concept_alone_unless_it_may_overwrite(run, tmp_path):
    few = {"max_train_steps": 1, "num_atoms": 4, "timeline_steps": 1}
    run(**few)
    first = (tmp_path / "out" / "dog.safetensors").read_bytes()
    second, heard = run(**few, seed=1)
    assert (tmp_path / "out" / "dog.safetensors").read_bytes() == first
    assert second.name == "dog-2" and load_concept(tmp_path / "out" / "dog-2.safetensors").name == "dog-2"
    assert (tmp_path / "out" / "dog-2.timeline.safetensors").is_file()
    assert any("so this one is called 'dog-2'; --overwrite would replace it" in n for n in heard.notices)
    run(**few | {"max_train_steps": 2}, seed=1, resume_from_checkpoint="latest")  # goes on as dog-2
    assert load_concept(tmp_path / "out" / "dog-2.safetensors").training["steps"] == 2
    assert (tmp_path / "out" / "dog.safetensors").read_bytes() == first
    third, _ = run(**few, seed=1, overwrite=True)
    assert third.name == "dog" and (tmp_path / "out" / "dog.safetensors").read_bytes() != first


def test_too_little_memory_is_one_sentence_with_the_state_kept(run, tmp_path, monkeypatch):
    calls = []

    def tight(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return diffusion_loss(*args, **options)

    whole, _ = run(max_train_steps=4, num_atoms=4)
    monkeypatch.setattr(forward, "diffusion_loss", tight)
    with pytest.raises(TrainingError) as caught:
        run(max_train_steps=4, num_atoms=4)
    assert str(caught.value) == (
        "The GPU's memory is too small for step 3; try --gradient_checkpointing, --train_batch_size 1 "
        "--gradient_accumulation_steps 2 or --mixed_precision bf16. The state before it is kept in "
        f"'{tmp_path / 'out' / 'checkpoint-2'}'; --resume_from_checkpoint latest goes on."
    )
    kept = load_checkpoint(tmp_path / "out" / "checkpoint-2").state
    assert kept["pace"] == 1.0 and "learning_rate" in kept["may_change"]
    monkeypatch.setattr(forward, "diffusion_loss", diffusion_loss)
    resumed, _ = run(max_train_steps=4, num_atoms=4, resume_from_checkpoint="latest", adam_epsilon=1e-8)
    assert same(whole, resumed)


def test_tensorboard(run, tmp_path):
    pytest.importorskip("tensorboard")
    run(report_to="tensorboard", max_train_steps=2, num_atoms=0)
    assert any(path.name.startswith("events.out.tfevents") for path in (tmp_path / "out" / "logs").iterdir())


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")
def test_real_photographs_go_through_the_whole_path_at_512(base, tmp_path):
    album = tmp_path / "thing"
    album.mkdir()
    for photo in PHOTOS.glob("*/*.jpg"):
        (album / f"{photo.parent.name}-{photo.name}").symlink_to(photo)
    heard = Recorder()
    concept = train(
        album, tmp_path / "out", base, reporter=heard, resolution=512, max_train_steps=1, train_batch_size=1,
        with_prior_preservation=False, conv_layers="conv_out", linear_atoms=r"up_blocks\.3.*attn2\.to_v",
    )  # fmt: skip
    assert concept.training["pictures"] == len(list(PHOTOS.glob("*/*.jpg")))
    assert math.isfinite(heard.records[0].loss)
    assert (tmp_path / "out" / "thing.safetensors").is_file()


def test_pictures_of_any_shape_with_masks_and_varied_captions_train_and_resume_bit_for_bit(base, tmp_path):
    own = tiny_models.save_pictures(tmp_path / "cat", 2, 60, 90)
    wide = Image.effect_noise((120, 60), 90).convert("RGBA")
    wide.putalpha(Image.new("L", (120, 60), 0))
    wide.paste((200, 30, 30, 255), (0, 0, 60, 60))
    wide.save(own / "wide.png")
    (own / "0.txt").write_text("a sks cat, sitting, on grass, at night")
    settings = {
        "caption_extension": "txt",
        "shuffle_caption": True,
        "keep_tokens": 1,
        "caption_dropout_rate": 0.3,
        "max_train_steps": 4,
        "train_batch_size": 3,
        "conv_layers": "mid_block",
        "num_atoms": 4,
        "precision": "fp32",
        "random_flip": True,
        "class_data_dir": str(pictures(tmp_path / "cats", 2, 64)),
        "num_class_images": 2,
        "with_prior_preservation": True,
    }
    heard = Recorder()
    whole = train(own, tmp_path / "whole", base, reporter=heard, **settings)
    (told,) = [notice for notice in heard.notices if notice.startswith("Pictures: ")]
    assert "; in their own shapes, 48 x 80, 80 x 48; " in told and told.endswith("; 1 with a mask")
    assert all(math.isfinite(record.loss) for record in heard.records)
    assert [record.prior_loss > 0 for record in heard.records] == [False, True, True, True]
    first = Recorder()
    with pytest.raises(Interrupted):
        train(own, tmp_path / "two", base, reporter=first, stop=lambda: len(first.records) == 1, **settings)
    resumed = train(own, tmp_path / "two", base, resume_from_checkpoint="latest", **settings)
    assert same(whole, resumed)


def test_a_mask_weighs_the_loss_unless_it_is_not_to_be_used(base, tmp_path, monkeypatch):
    own, seen = tiny_models.save_pictures(tmp_path / "cat", 1, 64, 64), []

    def kept(*args, **options):
        seen.append(options["weights"])
        return diffusion_loss(*args, **options)

    monkeypatch.setattr(forward, "diffusion_loss", kept)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(own / "0.mask.png")
    few = {"max_train_steps": 1, "conv_layers": "conv_out", "num_atoms": 4, "with_prior_preservation": False}
    for masked in (True, False):
        train(own, tmp_path / f"{masked}", base, masked_loss=masked, unmasked_weight=0.25, **few)
    assert seen[0].shape == (1, 1, 8, 8) and seen[1] is None
    assert (seen[0][..., :4] == 1).all() and (seen[0][..., 4:] == 0.25).all()


# ---------------------------------------------------------------------------------- stopping, resuming


def test_stopped_and_resumed_is_the_same_bit_for_bit(run, tmp_path):
    whole, _ = run(max_train_steps=6, lr_scheduler="cosine", lr_warmup_steps=2)
    first = Recorder()
    with pytest.raises(Interrupted, match=r"after step 4 of 6; nothing is lost.* latest"):
        run(
            max_train_steps=6, lr_scheduler="cosine", lr_warmup_steps=2, recorder=first,
            stop=lambda: len(first.records) == 3,
        )  # fmt: skip
    resumed, heard = run(
        max_train_steps=6, lr_scheduler="cosine", lr_warmup_steps=2, resume_from_checkpoint="latest"
    )
    assert [record.step for record in heard.records] == [5, 6]
    assert any(notice.startswith("Resuming from") for notice in heard.notices)
    assert same(whole, resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(run, tmp_path, number):
    class Press(Recorder):
        def step(self, record):
            super().step(record)
            if record.step == 1:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 2 of 9; nothing is lost"):
        run(max_train_steps=9, recorder=Press(), num_atoms=0)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once(run, tmp_path):
    class Press(Recorder):
        def step(self, record):
            super().step(record)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    heard = Press()
    with pytest.raises(Interrupted, match="Stopped at once, without saving this step; --resume_from"):
        run(max_train_steps=9, recorder=heard, num_atoms=0)
    assert heard.notices[-1] == "Stopping after this step, to save it; a second Ctrl-C stops at once."
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_mean_of_the_last_steps_is_kept_and_resumes_bit_for_bit(run):
    third, _ = run(max_train_steps=3)
    fourth, _ = run(max_train_steps=4, resume_from_checkpoint="latest")
    whole, heard = run(max_train_steps=4, average_last=0.5)
    for name, mean in whole.atoms.items():
        torch.testing.assert_close(mean, (third.atoms[name] + fourth.atoms[name]) / 2)
        assert not torch.equal(mean, fourth.atoms[name])
    first = Recorder()
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        run(max_train_steps=4, average_last=0.5, recorder=first, stop=lambda: len(first.records) == 2)
    resumed, heard = run(max_train_steps=4, average_last=0.5, resume_from_checkpoint="latest")
    assert [record.step for record in heard.records] == [4]
    assert same(whole, resumed)
    with pytest.raises(TrainingError, match=r"average_last: 0\.5 -> not set; max_train_steps: 4 -> not set"):
        run(max_train_steps=5, resume_from_checkpoint="latest")


def test_a_finished_run_goes_on_where_no_schedule_forbids_it(run):
    whole, _ = run(max_train_steps=4)
    run(max_train_steps=2)
    longer, heard = run(max_train_steps=4, resume_from_checkpoint="latest")
    assert [record.step for record in heard.records] == [3, 4]
    assert same(whole, longer)
    run(max_train_steps=2, lr_scheduler="cosine")
    with pytest.raises(TrainingError, match=r"max_train_steps: 2 -> 4\); .*--lr_scheduler constant"):
        run(max_train_steps=4, lr_scheduler="cosine", resume_from_checkpoint="latest")


def test_resuming_with_other_settings_is_refused(run, folders, base, tiny_base, tmp_path):
    run(max_train_steps=1, learning_rate=0.005)
    with pytest.raises(
        TrainingError,
        match=r"other settings \(learning_rate: 0\.005 -> 0\.02; linear_.*: 0\.005 -> 0\.02; seed: 0 -> 3\)",
    ):
        run(resume_from_checkpoint="latest", learning_rate=0.02, seed=3)
    with pytest.raises(
        TrainingError, match=r"train_batch_size x gradient_accumulation_steps x processes: 2 -> 3"
    ):
        run(resume_from_checkpoint="latest", train_batch_size=3)
    with pytest.raises(TrainingError, match=r"base: tiny-sd1 -> tiny-sd1"):
        run(resume_from_checkpoint="latest", base=tiny_base("sd1", seed=1))
    other = pictures(tmp_path / "dog", 1)
    with pytest.raises(TrainingError, match=r"\(pictures: \w+ -> \w+\)"):
        train(
            other, tmp_path / "out", base, reporter=Recorder(), resume_from_checkpoint="latest",
            class_data_dir=str(folders[1]), num_class_images=2, conv_layers="mid_block", train_batch_size=2,
            max_train_steps=3, with_prior_preservation=True, lr_scheduler="constant",
        )  # fmt: skip


def test_what_does_not_change_the_numbers_may_differ_on_resuming(run):
    run(max_train_steps=1)
    run(
        max_train_steps=2, resume_from_checkpoint="latest", checkpointing_steps=1, gradient_checkpointing=True
    )


def test_latest_without_a_state_starts_anew_and_a_wrong_path_is_refused(run):
    _, heard = run(max_train_steps=1, resume_from_checkpoint="latest", num_atoms=0)
    assert any("starting from the beginning" in notice for notice in heard.notices)
    with pytest.raises(TrainingError, match="no saved state 'checkpoint-77'"):
        run(resume_from_checkpoint="checkpoint-77")


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_state(run, tmp_path, monkeypatch):
    calls = []

    def broken(*args, **kwargs):
        calls.append(1)
        losses = diffusion_loss(*args, **kwargs)
        return losses if len(calls) < 4 else not_a_number(losses)

    good, _ = run(max_train_steps=2)
    monkeypatch.setattr(forward, "diffusion_loss", broken)
    with pytest.raises(
        TrainingError, match=r"not a number at step 4;.* kept in '.*checkpoint-2'\. Lower --learning"
    ):
        run(max_train_steps=9)
    monkeypatch.setattr(forward, "diffusion_loss", diffusion_loss)
    kept, heard = run(max_train_steps=2, resume_from_checkpoint="checkpoint-2")
    assert heard.records == []
    assert same(good, kept)
    with pytest.raises(TrainingError, match=r"other settings \(seed: 0 -> 3\)"):
        run(max_train_steps=4, resume_from_checkpoint="checkpoint-2", learning_rate=1e-4, seed=3)
    _, heard = run(max_train_steps=4, resume_from_checkpoint="checkpoint-2", learning_rate=1e-4)
    assert [record.step for record in heard.records] == [3, 4]


def test_not_a_number_at_the_first_step_blames_the_base(run, monkeypatch):
    monkeypatch.setattr(forward, "diffusion_loss", lambda *a, **k: not_a_number(diffusion_loss(*a, **k)))
    with pytest.raises(TrainingError, match="of the first step is not a number, so the base"):
        run()


def not_a_number(losses):
    return losses._replace(total=losses.total * math.nan, instance=losses.instance * math.nan)


# --------------------------------------------------------------------------------------------- refusals


def test_refusals_before_anything_is_loaded(tmp_path, folders, base):
    def refused(error, match, instance=folders[0], out=tmp_path / "x", **settings):
        with pytest.raises(error, match=match):
            train(instance, out, base, reporter=Recorder(), **settings)

    refused(ImageError, "does not exist", tmp_path / "nowhere")
    refused(SettingsError, "did you mean 'learning_rate'", learning_rat=1.0)
    refused(
        SettingsError,
        "--class_data_dir is the folder of the subject's pictures",
        class_data_dir=str(folders[0]),
    )
    refused(SettingsError, "multiple of 8 for this base, but 100 was given; 96 would do", resolution=100)
    refused(
        SettingsError, "--mixed_precision fp16 needs a GPU; on a CPU use bf16 or no", mixed_precision="fp16"
    )
    refused(
        SettingsError,
        "xformers is not installed|xformers needs",
        enable_xformers_memory_efficient_attention=True,
    )
    refused(SettingsError, "regular expression", linear_atoms="(")
    (tmp_path / "file").write_text("x")
    refused(
        TrainingError,
        r"cannot be written: .*choose another with --output_dir",
        out=tmp_path / "file",
    )


# --------------------------------------------------------------------------------------------- settings


def test_everything_follows_from_the_folder_and_the_base():
    named = name_everything(TrainingSettings(instance_data_dir="photos/My_Teddy-Bear 2"))
    assert (named.class_word, named.trigger, named.name) == ("my teddy bear", "sks", "My_Teddy-Bear 2")
    assert (named.instance_prompt, named.class_prompt) == ("a sks my teddy bear", "a my teddy bear")
    assert named.output_dir == str(Path("outputs") / "My_Teddy-Bear 2")
    assert name_everything(TrainingSettings(instance_data_dir="owl")).class_prompt == "an owl"
    pocket = suit_base(named, "pocket", 128, 8)
    full = suit_base(named, "sd1", 512, 8)
    assert (pocket.resolution, full.resolution) == (128, 512)
    assert full.train_batch_size == 1
    assert full.num_class_images == 100
    rates = [(own.linear_learning_rate, own.token_learning_rate) for own in (pocket, full)]
    assert rates == [(4e-3, 2.5e-3), (None, None)]  # elsewhere they are measured on the base
    assert (pocket.prior_batch_size, full.prior_batch_size) == (2, 1)
    given = suit_base(dataclasses.replace(named, learning_rate=2e-3), "pocket", 128, 8)
    assert (given.learning_rate, given.linear_learning_rate) == (2e-3, 2e-3)
    assert given.token_learning_rate == 2.5e-3
    by_hand = dataclasses.replace(named, linear_learning_rate=2e-3)
    assert suit_base(by_hand, "pocket", 64, 4).linear_learning_rate == 2e-3


def test_the_trigger_of_a_prompt_written_by_hand():
    def trigger(prompt):
        return name_everything(TrainingSettings(instance_data_dir="dog", instance_prompt=prompt)).trigger

    assert trigger("a photo of zwx dog") == "zwx"
    assert trigger("my ohwx dog on a sofa") == "ohwx"
    assert trigger("sks") == "sks"
    assert trigger("Rex in the park") == "Rex in the park"


def test_a_folder_name_without_letters_needs_a_class_word():
    with pytest.raises(SettingsError, match="'2024' does not say what the subject is"):
        name_everything(TrainingSettings(instance_data_dir="2024"))
    assert (
        name_everything(TrainingSettings(instance_data_dir="2024", class_word="dog")).instance_prompt
        == "a sks dog"
    )


@pytest.mark.parametrize(
    ("folder", "prompt"),
    [
        ("10_zwx dog", "a zwx dog"),
        ("3_zwx teddy bear", "a zwx teddy bear"),
        ("10_dog", "a sks dog"),
        ("2024_", None),
        ("2024_01_05 dog", "a sks dog"),
        ("10_01_05 dog", "a sks dog"),
        ("dog 2", "a sks dog"),
    ],
)
def test_kohyas_folders_say_trigger_and_class(folder, prompt):
    settings = TrainingSettings(instance_data_dir=folder)
    if prompt:
        assert name_everything(settings).instance_prompt == prompt
    else:
        with pytest.raises(SettingsError, match="does not say what the subject is"):
            name_everything(settings)
    by_hand = dataclasses.replace(settings, trigger="abc", class_word="cat")
    assert name_everything(by_hand).instance_prompt == "a abc cat"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "--learning_rate must be a number above 0, but 0.0 was given"),
        ({"learning_rate": math.nan}, "--learning_rate must be a finite number"),
        ({"seed": 1.5}, "--seed must be of type int, but 1.5"),
        ({"seed": True}, "--seed must be of type int, but True"),
        ({"train_batch_size": 0}, "--train_batch_size must be at least 1, but 0"),
        ({"snr_gamma": -1.0}, "--snr_gamma must be at least 0"),
        ({"adam_beta1": 1.0}, "--adam_beta1 must be at least 0 and below 1"),
        ({"lr_scheduler": "step"}, "--lr_scheduler must be one of constant, .*, but 'step'"),
        ({"average_last": 1.5}, "--average_last must be from 0 to 1, but 1.5"),
        ({"max_train_steps": 1, "num_train_epochs": 1}, "give one of them"),
        ({"seed": 2**63}, "--seed must be at least 0 and below 2\\^63"),
        ({"num_vectors": 17}, "--num_vectors must be from 1 to 16"),
        ({"caption_separator": " "}, "--caption_separator must be a sign"),
        ({"validation_prompts": (1,)}, "--validation_prompts must be a list of texts"),
        ({"prior_batch_size": 0}, "--prior_batch_size must be at least 1"),
        ({"trigger": "zwx", "instance_prompt": "a sks dog"}, "lacks the trigger 'zwx'"),
        ({"name": "a/b"}, "--name must be a plain file name"),
        ({"class_word": "a\nb"}, "--class_word must be one line of printable text"),
        (
            {"instance_prompt": "x" * 1001},
            "--instance_prompt must be .* at most 1000 characters, but 'x+[.]{3} was",
        ),
    ],
)
def test_settings_are_checked_where_they_are_made(wrong, message):
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(**wrong)


def test_epochs_become_steps():
    settings = TrainingSettings(num_train_epochs=3, train_batch_size=2, gradient_accumulation_steps=2)
    assert count_steps(settings, pictures=5, processes=2).max_train_steps == 2  # 15 pictures, 8 a step


def test_settings_compare_by_what_decides_the_numbers():
    free = {"lr_scheduler": "constant"}
    one = TrainingSettings(train_batch_size=4, output_dir="a", max_train_steps=5, **free)
    two = TrainingSettings(train_batch_size=2, output_dir="b", max_train_steps=9, base="sd15", **free)
    assert numerical(one, 1) == numerical(two, 2)
    assert numerical(one, 1) != numerical(dataclasses.replace(one, seed=1), 1)
    cosine = dataclasses.replace(one, lr_scheduler="cosine")
    assert numerical(cosine, 1)["max_train_steps"] == 5
    kept = {"with_prior_preservation": True}
    four, pair = (dataclasses.replace(own, prior_batch_size=n, **kept) for own, n in ((one, 2), (two, 1)))
    assert numerical(four, 1) == numerical(pair, 2) != numerical(pair, 1)
