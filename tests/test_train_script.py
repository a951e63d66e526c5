"""The command line: its flags, its sentences, and what only real processes can show (kills, several)."""

import dataclasses
import errno
import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from other_trainers import DIFFUSERS, DIFFUSERS_SDXL, KOHYA
from PIL import Image
from test_hub import hub  # noqa: F401

from atomdiff.cli.train_flags import GROUPS
from atomdiff.errors import Interrupted
from atomdiff.files.safetensors_file import load_concept
from atomdiff.training import start
from atomdiff.training.accelerate_launch import Launch, adds_traceback, plan
from atomdiff.training.flag_aliases import FLAG_ALIASES
from atomdiff.training.run import fit, train
from atomdiff.training.settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train_dreambooth_atoms.py"
script = runpy.run_path(str(SCRIPT), run_name="script")
main, build_parser = script["main"], script["build_parser"]
SMALL = {
    "max_train_steps": 60,
    "train_batch_size": 1,
    "num_atoms": 4,
    "conv_layers": "conv_out",
    "linear_atoms": r"up_blocks\.3.*attn2\.to_v",  # near the end, so that a step is short
    "checkpointing_steps": 10,
    "with_prior_preservation": False,
    "learning_rate": 0.001,
}


def environment() -> dict[str, str]:
    """As many threads as here, so that sums come out alike."""
    return os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.save_pictures(tmp_path_factory.mktemp("pictures") / "dog", 4, 64, 64)


@pytest.fixture
def refused(capsys):
    """`refused("--flag", ...)` -> what is printed; exactly one line, status 2."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert exit_.value.code == 2
        assert printed.out == ""
        return printed.err

    return run


def test_misspelt_and_wrong_flags_are_refused(refused):
    assert refused("--learning_rat", "1") == (
        "error: there is no flag --learning_rat; did you mean --learning_rate? --help lists all flags.\n"
    )
    assert "unrecognized arguments: --zzzz" in refused("--zzzz")
    assert "argument --seed: invalid int value: 'x'" in refused("--seed", "x")
    assert "argument --lr_scheduler: invalid choice: 'step'" in refused("--lr_scheduler", "step")
    assert "--seed must be at least 0 and below 2^63, but -1 was given" in refused("--seed", "-1")
    assert "name their folder with --instance_dir" in refused()


@pytest.mark.parametrize("flag", sorted({*DIFFUSERS, *DIFFUSERS_SDXL, *KOHYA}))
def test_every_flag_of_other_trainers_is_taken_or_answered(flag):
    flags = build_parser()._option_string_actions
    assert (f"--{flag}" in flags) != (f"--{flag}" in FLAG_ALIASES)
    page = (ROOT / "docs/training.md").read_text("utf-8")
    assert f"--{flag}" in flags or f"`--{flag}`" in page


def test_flags_of_other_trainers_are_answered_with_what_there_is(refused):
    assert refused("--instance_dir", "dog", "--rank=4") == (
        "error: there is no flag --rank: how much is trained is one choice, --recipe. "
        "--help lists all flags.\n"
    )
    flags = set(build_parser()._option_string_actions)
    assert not flags & FLAG_ALIASES.keys()
    told = {word for answer in FLAG_ALIASES.values() for word in re.findall(r"--\w[\w-]*", answer)}
    assert told <= flags


def test_settings_from_a_file_give_way_to_flags_and_are_printed_back(tmp_path, capsys):
    (tmp_path / "a.toml").write_text('instance_dir = "dog"\nseed = 3\nresolution = 128\n')
    main(
        ["--config", str(tmp_path / "a.toml"), "--seed", "4", "--optimizer_type", "Prodigy", "--print_config"]
    )
    printed = capsys.readouterr().out
    for line in ('instance_data_dir = "dog"', "seed = 4", "resolution = 128", 'optimizer = "prodigy"'):
        assert f"\n{line}\n" in printed
    (tmp_path / "b.toml").write_text(printed)
    main(["--config", str(tmp_path / "b.toml"), "--print_config"])
    assert capsys.readouterr().out == printed


def test_several_subjects_are_trained_one_after_another_on_one_base(
    tiny_folder, tmp_path, monkeypatch, capfd
):
    loaded, load = [], start.load_base
    monkeypatch.setattr(start, "load_base", lambda *a, **k: loaded.append(a) or load(*a, **k))
    for name in ("dog", "cat"):
        tiny_models.save_pictures(tmp_path / name, 1, 64, 64)
    entries = [{"instance_data_dir": "dog"}, {"instance_data_dir": "cat", "max_train_steps": 2}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    small = {key: value for key, value in SMALL.items() if key != "with_prior_preservation"}
    small |= {"max_train_steps": 1, "timeline_steps": 0, "checkpointing_steps": 0}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    flags += ["--no_prior", "--base", str(tiny_folder("sd1")), "--output_dir", str(tmp_path / "out")]
    main(["--concepts_list", str(tmp_path / "list.json"), *flags])
    assert len(loaded) == 1
    concepts = [load_concept(tmp_path / "out" / name / f"{name}.safetensors") for name in ("dog", "cat")]
    assert [(c.name, c.class_word, c.training["steps"]) for c in concepts] == [
        ("dog", "dog", 1), ("cat", "cat", 2),
    ]  # fmt: skip
    main(["--concepts_list", str(tmp_path / "list.json"), *flags])
    assert (tmp_path / "out" / "dog" / "dog-2.safetensors").is_file()
    assert "There is a finished 'cat' in" in capfd.readouterr().err


def test_several_subjects_share_a_batch_and_one_that_fails_leaves_the_others(
    tiny_folder, tmp_path, monkeypatch, capfd
):
    loaded, load = [], start.load_base
    monkeypatch.setattr(start, "load_base", lambda *a, **k: loaded.append(a) or load(*a, **k))
    for name in ("dog", "cat", "cup"):
        tiny_models.save_pictures(tmp_path / name, 1, 64, 64)
    entries = [{"instance_data_dir": name, "seed": seed} for seed, name in enumerate(("dog", "cat", "cup"))]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    listed = ["--concepts_list", str(tmp_path / "list.json"), "--base", str(tiny_folder("sd1")), "--no_prior"]
    few = {**SMALL, "max_train_steps": 2, "timeline_steps": 0, "checkpointing_steps": 0}
    few.pop("with_prior_preservation")
    listed += [word for name, value in few.items() for word in (f"--{name}", str(value))]
    for out, flags in (("apart", []), ("joint", ["--together"]), ("pairs", ["--together", "2"])):
        main([*listed, "--output_dir", str(tmp_path / out), *flags])
    assert len(loaded) == 3
    said = capfd.readouterr().err
    assert "Subjects 1 to 3 of 3 together: dog, cat, cup" in said and "cat: Step 2 of 2" in said
    assert "Subjects 3 to 3 of 3 together: cup" in said
    for name in ("dog", "cat", "cup"):
        alone, *others = (
            load_concept(tmp_path / out / name / f"{name}.safetensors") for out in ("apart", "joint", "pairs")
        )
        for other, (key, atoms) in itertools.product(others, alone.atoms.items()):
            assert (other.atoms[key] - atoms).norm() <= 0.15 * atoms.norm(), key  # an int4 file's step
    entries[1]["learning_rate"] = 1e30
    (tmp_path / "list.json").write_text(json.dumps(entries))
    with pytest.raises(SystemExit) as exit_:
        main([*listed, "--output_dir", str(tmp_path / "one"), "--together", "--max_train_steps", "4"])
    assert exit_.value.code == 2 and "error: cat: The" in capfd.readouterr().err
    assert [(tmp_path / "one" / n / f"{n}.safetensors").exists() for n in ("dog", "cat", "cup")] == [
        True, False, True,
    ]  # fmt: skip


def test_what_cannot_be_trained_together_is_refused(refused, tmp_path, folder, monkeypatch):
    assert "--together is for several subjects; name them with --concepts_list" in refused(
        "--instance_dir", folder, "--together"
    )
    (tmp_path / "list.json").write_text(json.dumps([{"instance_data_dir": str(folder)}]))
    listed = ("--concepts_list", tmp_path / "list.json", "--together")
    assert "--together must be at least 1, but 0 was given" in refused(*listed, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--together trains in one process" in refused(*listed)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_finished_concept_goes_to_the_hub_and_is_kept_where_it_does_not(
    hub,  # noqa: F811
    folder,
    tiny_folder,
    tmp_path,
    refused,
    monkeypatch,
    capsys,
):
    small = SMALL | {"max_train_steps": 1, "timeline_steps": 0, "checkpointing_steps": 0}
    del small["with_prior_preservation"]
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    flags += ["--no_prior", "--base", str(tiny_folder("sd1")), "--instance_dir", str(folder), "--push_to_hub"]
    assert "--push_to_hub needs a token of your account" in refused(*flags, "--output_dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()  # asked before anything is done
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    main([*flags, "--output_dir", str(tmp_path / "out"), "--hub_private"])
    assert hub.repos["ada/dog"].private and "dog.safetensors" in hub.repos["ada/dog"].commits[-1]
    main([*flags, "--output_dir", str(tmp_path / "out"), "--hub_model_id", "bob/dog"])
    told = capsys.readouterr().err
    assert f"On the hub: {hub.url}/ada/dog" in told
    kept = tmp_path / "out" / "dog-2.safetensors"
    assert "does not let you write to 'bob/dog'" in told and f"The concept is in '{kept}'" in told
    assert kept.is_file()


def test_bad_input_is_one_sentence(refused, tmp_path, folder):
    nowhere = tmp_path / "nowhere"
    assert refused("--instance_dir", nowhere) == (
        f"error: The picture folder '{nowhere}' does not exist; give a folder with a few pictures.\n"
    )
    assert "There is no base 'no-such-base'" in refused(
        "--instance_dir", folder, "--base", "no-such-base", "--output_dir", tmp_path / "out"
    )


def test_what_the_system_refuses_is_one_sentence(refused, folder, monkeypatch):
    assert "cannot be used: File name too long" in refused("--instance_dir", "x" * 300)

    def locked(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "/locked/dog")

    monkeypatch.setattr("atomdiff.training.start.find_checkpoint", locked)
    assert refused("--instance_dir", folder, "--resume_from_checkpoint", "latest") == (
        "error: '/locked/dog' cannot be used: Permission denied; check the path, its permissions and the "
        "free space, or choose another.\n"
    )

    def defect(*_):
        raise OSError("a library's own")

    monkeypatch.setattr("atomdiff.training.start.find_checkpoint", defect)
    with pytest.raises(OSError, match="a library's own"):
        main(["--instance_dir", str(folder), "--resume_from_checkpoint", "latest"])


def test_diffusers_flag_names_are_taken(refused, folder):
    flags = """--pretrained_model_name_or_path pocket --instance_prompt x --class_prompt x
        --with_prior_preservation --no-with_prior_preservation --no_prior --prior_loss_weight 1
        --num_class_images 2 --resolution 64 --seed 1 --train_batch_size 1 --sample_batch_size 1
        --num_train_epochs 1 --gradient_accumulation_steps 1 --gradient_checkpointing --learning_rate 1e-3
        --scale_lr --lr_scheduler cosine --lr_warmup_steps 1 --snr_gamma 5 --max_grad_norm 1 --adam_beta1 0.9
        --adam_beta2 0.9 --adam_weight_decay 0.1 --adam_epsilon 1e-8 --mixed_precision bf16
        --enable_xformers_memory_efficient_attention --checkpointing_steps 5 --checkpoints_total_limit 2
        --resume_from_checkpoint latest --validation_prompt x --num_validation_images 1 --validation_steps 5
        --report_to tensorboard --logging_dir l --allow_tf32 --noise_offset 0.1 --random_flip --num_atoms 9
        --basis svd --linear_atoms attn --linear_block 2 --conv_layers x --precision fp32 --name n
        --class_word dog --output_dir o --class_data_dir c --caption_extension txt --instance_data_dir"""
    assert "does not exist" in refused(*flags.split(), folder / "nowhere")


@pytest.mark.parametrize("stopped", [Interrupted("Stopped after step 3 of 9."), KeyboardInterrupt()])
def test_a_stopped_run_exits_with_130(stopped, tmp_path, monkeypatch, capsys):
    def fit(settings, reporter, base):
        raise stopped

    monkeypatch.chdir(tmp_path)  # where no earlier run has left outputs/dog
    monkeypatch.setattr("atomdiff.training.run.fit", fit)
    with pytest.raises(SystemExit) as exit_:
        main(["--instance_dir", "dog"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err.startswith("Stopped ")


def test_help_lists_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "--instance_data_dir" in text
    assert "--instance_dir" in text
    assert "(default: cosine)" in text and "(default: on, for all recipes but word)" in " ".join(text.split())
    assert text.index("saving, resuming") < text.index("--resume_from_checkpoint")
    assert set(GROUPS) < {item.name for item in dataclasses.fields(TrainingSettings)}


def test_the_launchers_own_traceback_is_explained(refused, tmp_path, monkeypatch):
    """accelerate raises CalledProcessError where a script fails, unless it was started with -q."""
    monkeypatch.setattr("sys.argv", ["train.py", "-q"])
    for launcher, added in (
        (["python", "/bin/accelerate", "launch", "train.py", "-q"], True),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "train.py"], True),
        (["python", "/bin/accelerate", "launch", "-q", "train.py", "-q"], False),
        (["bash"], False),
    ):
        monkeypatch.setattr("psutil.Process.cmdline", lambda process, line=launcher: line)
        assert adds_traceback() is added
        told = refused("--instance_dir", tmp_path / "nowhere")
        assert ("accelerate launch -q leaves it out" in told) is added


def test_sigterm_before_the_first_step_is_one_sentence(folder, tiny_folder, tmp_path):
    """The script sends it to itself while the base is being loaded."""
    program = (
        "import os, signal, sys, runpy, atomdiff.training.start as training\n"
        f"sys.argv = ['train.py', '--instance_dir', {str(folder)!r}, '--output_dir', {str(tmp_path)!r}]\n"
        "training.load_base = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert done.stderr.startswith("Stopped before the first step")


def test_killed_at_step_37_of_60_and_resumed_is_the_same_bit_for_bit(folder, tiny_folder, tmp_path):
    base = str(tiny_folder("sd1"))
    program = (
        "import os, signal, sys\n"
        "from atomdiff.training.reporting import Reporter\n"
        "from atomdiff.training.run import train\n"
        "class Kill(Reporter):\n"
        "    def step(self, record):\n"
        "        if record.step == 37: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train({str(folder)!r}, {str(tmp_path / 'killed')!r}, {base!r}, reporter=Kill(), **{SMALL!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint-30").is_dir()
    assert not (tmp_path / "killed" / "dog.safetensors").exists()
    train(folder, tmp_path / "killed", base, resume_from_checkpoint="latest", **SMALL)
    train(folder, tmp_path / "whole", base, **SMALL)
    resumed, whole = (tmp_path / name / "dog.safetensors" for name in ("killed", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()
    states = [tmp_path / name / "checkpoint-60" / "state.safetensors" for name in ("killed", "whole")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_two_processes_give_the_gradients_of_the_joint_batch(folder, tiny_folder, tmp_path):
    """`accelerate launch --num_processes 2 --cpu`, 2 pictures each, against one process with 4."""
    dogs = class_pictures(tmp_path)
    same = {"max_train_steps": 3, "num_class_images": 3, "class_data_dir": str(dogs), "precision": "fp32"}
    same |= {"adam_epsilon": 1.0, "linear_atoms": "attn2_kv", "conv_layers": "mid_block"}
    flags = [word for name, value in same.items() for word in (f"--{name}", str(value))]
    base = str(tiny_folder("sd1"))
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    launch += ["--cpu", "--main_process_port", "0", SCRIPT, "--instance_dir", folder, "--base", base, *flags]
    launch += ["--train_batch_size", "2", "--output_dir", tmp_path / "two"]
    launched = subprocess.run(
        [str(word) for word in launch],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stderr.count("Base: ") == 1  # only the first process speaks
    assert "Training in 2 processes" in launched.stderr
    one = train(folder, tmp_path / "one", base, train_batch_size=4, **same)
    two = load_concept(tmp_path / "two" / "dog.safetensors")
    assert set(one.atoms) == set(two.atoms)
    for name, values in one.atoms.items():
        assert float(values.abs().max()) > 0
        torch.testing.assert_close(two.atoms[name], values, rtol=1e-3, atol=1e-7)


def test_a_killed_process_ends_the_others_clearly_and_the_run_goes_on(folder, tiny_folder, tmp_path):
    """Process 1 of 2 is killed after step 3; a state is kept every step, and one process of twice the batch
    goes on from it."""
    settings = {"instance_data_dir": str(folder), "output_dir": str(tmp_path / "out"), "max_train_steps": 5}
    settings |= SMALL | {"base": str(tiny_folder("sd1")), "checkpointing_steps": 1, "max_train_steps": 5}
    program = (
        "import os, signal, sys, time\n"
        "from atomdiff.errors import AtomdiffError\n"
        "from atomdiff.training.run import fit\n"
        "from atomdiff.training.settings import TrainingSettings\n"
        "def kill(run):\n"
        "    if os.environ['RANK'] == '1' and run.done == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"try: fit(TrainingSettings(**{settings!r}), between=kill)\n"
        "except AtomdiffError as error: time.sleep(0.5); sys.exit(f'error: {error}')\n"  # as if busy
    )
    runner = (
        "import sys\nfrom atomdiff.training.accelerate_launch import Launch, run_all\n"
        f"sys.exit(run_all(Launch(2, 1), [sys.executable, '-c', {program!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", runner], env=environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("The exchange with the other processes broke off; one of them ended.") == 1
    assert (tmp_path / "out" / "checkpoint-3").is_dir() and not (
        tmp_path / "out" / "dog.safetensors"
    ).exists()
    settings |= {"train_batch_size": 2, "resume_from_checkpoint": "latest"}
    concept = fit(TrainingSettings(**settings))
    assert concept.training["steps"] == 5


def class_pictures(parent: Path) -> Path:
    made = parent / "dogs"
    made.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (60 * i, 100, 200)).save(made / f"{i}.png")
    return made


def test_the_launcher_is_understood():
    """accelerate passes neither the number of processes on a CPU nor that it chose one thread itself."""
    launcher = ["python", "/bin/accelerate", "launch", "--num_processes", "2", "--cpu", "train.py"]
    own = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "OMP_NUM_THREADS": "1"}
    assert plan(own, launcher, {}, cores=4) == Launch(2, 2)
    assert plan(own, launcher, {"OMP_NUM_THREADS": "1"}, cores=4) == Launch(2, None)
    assert plan(own | {"WORLD_SIZE": "2", "RANK": "0"}, launcher, {}, cores=4) == Launch()
    assert plan(own, [*launcher[:3], "--num_processes=3", "--num_machines", "2"], {}, cores=4) == Launch()
    gpu = own | {"ACCELERATE_USE_CPU": "False"}
    assert plan(gpu, ["accelerate", "launch", "train.py"], {}, cores=4) == Launch(1, 4)
    assert plan(gpu, launcher, {}, cores=4) == Launch(1, 4)
    assert plan({}, launcher, {}, cores=4) == Launch()


def test_the_status_of_the_process_that_fails_is_passed_on():
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(2)\ntime.sleep(60)\n"
    runner = (
        "import sys\nfrom atomdiff.training.accelerate_launch import Launch, run_all\n"
        f"sys.exit(run_all(Launch(2, 1), [sys.executable, '-c', {program!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", runner], env=environment(), timeout=50, check=False)
    assert done.returncode == 2
