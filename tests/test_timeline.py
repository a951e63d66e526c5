"""The timeline: every kept state is the concept that saving would have written; no crash breaks the file."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.concept.timeline import Timeline
from atomdiff.core.inject import AtomSpec, select
from atomdiff.errors import ConceptError, Interrupted, SettingsError
from atomdiff.files import atomic, timeline_file
from atomdiff.files.atomic import write_atomically
from atomdiff.files.safetensors_file import load_concept, save_concept, to_bytes
from atomdiff.files.timeline_file import load_timeline, save_timeline
from atomdiff.training import run as training
from atomdiff.training.recipes import DEFAULT
from atomdiff.training.reporting import Reporter
from atomdiff.training.run import train
from atomdiff.training.timeline_recorder import Recorder

BASE = BasePassport("sd1-1a2b3c4d", (0.0,) * 16, "sd15")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3)
        self.b = nn.Conv2d(4, 4, 5)
        self.attn2 = nn.Module()
        self.attn2.to_q = nn.Linear(4, 8)


def concept(seed: int, step: int, scale: float = 0.1, model: nn.Module | None = None, **spec) -> Concept:
    model = model or Small()
    made = AtomSpec(**{"linear_block": 2, "num_atoms": 9} | spec)
    chosen, rng = select(model, made), torch.Generator().manual_seed(seed)
    shapes = {layer: (min(9, 25), conv.kernel_size[0] ** 2) for layer, conv in chosen.conv.items()}
    shapes |= dict.fromkeys(chosen.linear, (4, 4))
    atoms = {layer: scale * torch.randn(shape, generator=rng) for layer, shape in shapes.items()}
    summary = {"steps": step, "learning_rate": 0.01, "instance_prompt": "a sks dog"}
    return Concept.of(model, made, atoms, BASE, trigger="sks", name="Rex", training=summary)


def made(steps=(25, 50, 75), **spec) -> Timeline:
    torch.manual_seed(0)
    model = Small()
    first = Timeline.begin(steps[0], 0.5, concept(0, steps[0], model=model, **spec), "0badcafe")
    for i, step in enumerate(steps[1:], 1):
        first = first.then(step, 0.5 - i / 10, concept(i, step, model=model, **spec))
    return first


def equal(a: Timeline, b: Timeline) -> bool:
    return timeline_file.to_bytes(a) == timeline_file.to_bytes(b)


# --------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("spec", [{}, {"basis": "svd", "num_atoms": 9}, {"linear_atoms": "none"}])
def test_a_state_is_the_concept_that_save_writes(tmp_path, spec):
    kept = made(**spec)
    loaded = load_timeline(save_timeline(kept, tmp_path / "rex.timeline.safetensors"))
    torch.manual_seed(0)
    model = Small()
    for i, step in enumerate((25, 50, 75)):
        saved = to_bytes(concept(i, step, model=model, **spec))
        assert to_bytes(loaded.at(step)) == saved
        assert loaded.at(step).training["steps"] == step
    assert loaded.steps == (25, 50, 75)
    assert loaded.losses.tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert loaded.run == "0badcafe"


def test_layers_of_zeros_are_kept_in_place(tmp_path):
    nothing, something = concept(0, 1, scale=0.0), concept(0, 2)
    both = Timeline.begin(1, 0.1, nothing).then(2, 0.1, something)
    assert equal(timeline_file.from_bytes(timeline_file.to_bytes(both)), both)
    ends = Timeline.begin(1, 0.1, something).then(2, 0.1, nothing)
    assert to_bytes(timeline_file.from_bytes(timeline_file.to_bytes(ends)).at(1)) == to_bytes(concept(0, 1))


@settings(max_examples=20)
@given(st.lists(st.integers(1, 10**9 - 1), min_size=1, max_size=5, unique=True), st.floats(-9, 9, width=32))
def test_round_trip_is_exact(steps, loss):
    made = None
    for step in sorted(steps):
        state = concept(step % 97, step, scale=0.3)
        made = made.then(step, loss, state) if made else Timeline.begin(step, loss, state)
    data = timeline_file.to_bytes(made)
    again = timeline_file.from_bytes(data)
    assert timeline_file.to_bytes(again) == data
    assert again.steps == tuple(sorted(steps))
    assert all(torch.equal(again.atoms[key], tensor) for key, tensor in made.atoms.items())


def test_asking_for_a_step_that_was_not_kept():
    with pytest.raises(ConceptError, match=r"keeps no state of step 60: the nearest of its 3 is 50\."):
        made().at(60)


def test_until_and_spread():
    kept = made(tuple(range(10, 130, 10)))
    assert kept.until(45).steps == (10, 20, 30, 40)
    assert kept.until(45).last.training["steps"] == 40
    assert kept.until(9) is None
    assert kept.spread(4) == (10, 50, 80, 120)
    assert kept.spread(1) == (120,)
    assert kept.spread(99) == kept.steps
    assert len(kept.norms()) == 12 and min(kept.norms()) > 0


def test_only_later_states_of_the_same_training_continue_it():
    kept = made()
    with pytest.raises(ConceptError, match="ends at step 75: begin a new one"):
        kept.then(75, 0.1, concept(0, 75))
    with pytest.raises(ConceptError, match="does not continue"):
        kept.then(100, 0.1, concept(0, 100, linear_atoms="none"))


def test_numbers_beyond_fp16_are_refused():
    with pytest.raises(ConceptError, match="beyond what fp16 can hold"):
        Timeline.begin(1, 0.1, concept(0, 1, scale=1e6))


# ----------------------------------------------------------------------------------------------- file


def altered(data: bytes, change) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def test_one_kind_of_file_is_not_the_other(tmp_path):
    as_concept, as_timeline = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_timeline(made(), as_timeline)
    save_concept(made().at(50), as_concept)
    with pytest.raises(ConceptError, match="is the timeline of a training, not a concept: cut a step"):
        load_concept(as_timeline)
    with pytest.raises(ConceptError, match="is a concept, not the timeline of a training"):
        load_timeline(as_concept)
    with pytest.raises(ConceptError, match="cannot be read"):
        load_timeline(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h["__metadata__"].update(steps="25,50"), "a loss for each of its 2 states"),
        (lambda h: h["__metadata__"].update(steps="25,50,50"), "ascending"),
        (lambda h: h["__metadata__"].update(steps="0,1,2"), "steps cannot be read"),
        (lambda h: h["__metadata__"].pop("steps"), "steps cannot be read"),
        (lambda h: h["__metadata__"].update(run="me"), "steps cannot be read"),
        (lambda h: h["__metadata__"].update(format="atomdiff-timeline/2"), "newer than this version"),
        (lambda h: h["__metadata__"].update(spec="num_atoms=4&linear_block=2"), "contradicts"),
        (lambda h: h["linear"].update(shape=[1, 3, 4, 4]), "not one of a timeline of 3 states"),
        (lambda h: h.update(other=h.pop("linear")), "does not know"),
        (lambda h: h.update(los=h.pop("loss")), "a loss for each"),
    ],
)
def test_altered_files_are_refused(change, sentence):
    with pytest.raises(ConceptError, match=sentence):
        timeline_file.from_bytes(altered(timeline_file.to_bytes(made()), change))


def test_nan_and_cut_files_are_refused():
    data = timeline_file.to_bytes(made())
    with pytest.raises(ConceptError, match="NaN or infinity"):
        timeline_file.from_bytes(data[:-2] + b"\x00\x7c")
    size = 8 + struct.unpack("<Q", data[:8])[0]
    with pytest.raises(ConceptError, match="NaN or infinity"):
        timeline_file.from_bytes(data[:size] + b"\x00\x00\x80\x7f" + data[size + 4 :])
    for end in range(0, len(data), 97):
        with pytest.raises(ConceptError):
            timeline_file.from_bytes(data[:end])


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(place, value):
    data = bytearray(WHOLE)
    data[place % len(data)] = value
    with contextlib.suppress(ConceptError):
        timeline_file.from_bytes(bytes(data))


WHOLE = timeline_file.to_bytes(made())


def test_the_format_page_tells_the_keys_and_limits():
    page = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
    section = page.split("The timeline")[1].split("\n## ")[0]
    for word in (timeline_file.FORMAT, *(f"`{key}`" for key in (*timeline_file.OWN, timeline_file.LOSS))):
        assert word in section


# ------------------------------------------------------------------------------------------- recording


def test_a_failed_write_leaves_the_last_good_state_and_is_told_once(tmp_path, monkeypatch):
    path, said = tmp_path / "rex.timeline.safetensors", []
    recorder = Recorder(path, 5, 0, "0badcafe", said.append)
    recorder.keep(5, 0.5, concept(0, 5))

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_atomically", full)
    recorder.keep(10, 0.4, concept(1, 10))
    recorder.keep(15, 0.4, concept(1, 15))
    assert len(said) == 1 and "No space left on device" in said[0]
    assert load_timeline(path).steps == (5,)
    monkeypatch.setattr(atomic, "write_atomically", write_atomically)
    recorder.keep(20, 0.4, concept(2, 20))
    assert load_timeline(path).steps == (5, 20)


def test_what_goes_on_and_what_begins_anew(tmp_path):
    path, said = tmp_path / "rex.timeline.safetensors", []
    save_timeline(made(), path)
    assert Recorder(path, 25, 60, "0badcafe", said.append).timeline.steps == (25, 50)
    assert Recorder(path, 25, 60, "another0", said.append).timeline is None
    assert Recorder(path, 25, 0, "0badcafe", said.append).timeline is None
    assert not said
    path.write_bytes(b"broken")
    assert Recorder(path, 25, 60, "0badcafe", said.append).timeline is None
    assert "only 6 bytes long" in said[0]


def test_more_than_a_file_holds_is_refused_before_training(tmp_path):
    recorder = Recorder(tmp_path / "t", 1, 0, "", print)
    recorder.require_room(500, 5000)
    with pytest.raises(SettingsError, match=r"--timeline_steps 1 would keep 5,000 .* give 162 or more"):
        recorder.require_room(5000, 1_000_000)
    with pytest.raises(SettingsError, match="give 0 for none"):
        recorder.require_room(5000, 40_000_000)


class Heard(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.records: list = []

    def notice(self, text):
        self.texts.append(text)

    def warn(self, text):
        self.texts.append(text)

    def step(self, record):
        self.records.append(record)


@pytest.fixture(scope="module")
def dogs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "dog"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(dogs, tiny_base, tmp_path_factory):
    """Runs to the end, keeping every second state: (folder, timeline, what was heard, the states in fp32)."""
    out, heard, states = tmp_path_factory.mktemp("trained") / "out", Heard(), {}
    few = {"with_prior_preservation": False, "conv_layers": "mid_block", "train_batch_size": 1}
    own = training.concept_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "concept_of", lambda run: states.setdefault(run.done, own(run)))
        options = {
            **few, "max_train_steps": 5, "timeline_steps": 2, "checkpointing_steps": 3, "precision": "fp16",
        }  # fmt: skip
        train(dogs, out, tiny_base("sd1"), reporter=heard, **options)
    return out, load_timeline(out / "dog.timeline.safetensors"), heard, states


def test_training_keeps_every_second_state_and_the_last(trained):
    out, kept, heard, states = trained
    assert kept.steps == (2, 4, 5)
    for step in kept.steps:
        assert to_bytes(kept.at(step)) == to_bytes(states[step])
    assert (out / "dog.safetensors").read_bytes() == to_bytes(kept.at(5))
    assert kept.losses.tolist() == pytest.approx([heard.records[step - 1].loss for step in kept.steps])
    assert [record.last for record in heard.records] == [False] * 4 + [True]
    assert f"Timeline: {out / 'dog.timeline.safetensors'} (3 states)" in heard.texts


def test_a_resumed_run_has_the_timeline_of_an_uninterrupted_one(trained, dogs, tiny_base, tmp_path):
    few = {"with_prior_preservation": False, "conv_layers": "mid_block", "train_batch_size": 1}
    options = {**few, "max_train_steps": 5, "timeline_steps": 2, "checkpointing_steps": 3}
    heard = Heard()
    with pytest.raises(Interrupted):
        stop = lambda: len(heard.records) == 2  # noqa: E731
        train(dogs, tmp_path, tiny_base("sd1"), reporter=heard, stop=stop, **options)
    file = tmp_path / "dog.timeline.safetensors"
    assert load_timeline(file).steps == (2, 3), "the state at which a run is stopped is kept"
    train(dogs, tmp_path, tiny_base("sd1"), **options, resume_from_checkpoint="latest")
    resumed = load_timeline(file)
    assert resumed.steps == (2, 3, 4, 5)
    for step in trained[1].steps:
        assert to_bytes(resumed.at(step)) == to_bytes(trained[1].at(step))


def test_zero_keeps_nothing(dogs, tiny_base, tmp_path):
    few = {"with_prior_preservation": False, "conv_layers": "mid_block", "train_batch_size": 1}
    train(dogs, tmp_path, tiny_base("sd1"), **few, max_train_steps=1, timeline_steps=0)
    assert not (tmp_path / "dog.timeline.safetensors").exists()
    with pytest.raises(SettingsError, match="--timeline_steps must be at least 0, but -1"):
        train(dogs, tmp_path, timeline_steps=-1)


# ---------------------------------------------------------------------------------------- command line


def run(*arguments):
    return CliRunner().invoke(cli.app, ["timeline", *(str(argument) for argument in arguments)])


def test_the_command_lists(trained):
    out, kept, _, _ = trained
    done = run(out / "dog.timeline.safetensors")
    assert done.exit_code == 0, done.output
    for step, loss in zip(kept.steps, kept.losses, strict=True):
        assert f"{step}" in done.output and f"{loss:.4f}" in done.output


def test_the_command_cuts_one_step_out(trained, tmp_path):
    out, kept, _, _ = trained
    done = run(out / "dog.timeline.safetensors", "--cut", 4, "--out", tmp_path / "four.safetensors")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "four.safetensors").read_bytes() == to_bytes(kept.at(4), DEFAULT.precision)
    small = tmp_path / "small.safetensors"
    done = run(out / "dog.timeline.safetensors", "--cut", 4, "--precision", "int8", "--out", small)
    assert done.exit_code == 0 and small.read_bytes() == to_bytes(kept.at(4), "int8")
    missed = run(out / "dog.timeline.safetensors", "--cut", 3, "--out", tmp_path / "three.safetensors")
    assert missed.exit_code == 2 and "the nearest" in missed.stderr
    wrong = run(out / "dog.timeline.safetensors", "--cut", 4, "--out", tmp_path / "four.png")
    assert wrong.exit_code == 2 and ".safetensors" in wrong.stderr
    both = run(out / "dog.timeline.safetensors", "--cut", 4, "--draw", "a sks dog")
    assert both.exit_code == 2 and "one at a time" in both.stderr


def test_the_command_draws_along_it(trained, tiny_folder, tmp_path):
    out = trained[0]
    sheet = tmp_path / "sheet.png"
    quick = ["--base", tiny_folder("sd1"), "--steps", 2, "--device", "cpu"]
    done = run(
        out / "dog.timeline.safetensors",
        "--draw",
        "a sks dog",
        "-n",
        2,
        "--states",
        2,
        "--out",
        sheet,
        *quick,
    )
    assert done.exit_code == 0, done.output
    with Image.open(sheet) as picture:
        assert picture.size[0] == 12 + 2 * (192 + 12)
        assert picture.size[1] > 2 * 192
