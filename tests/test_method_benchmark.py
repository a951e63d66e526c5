"""The benchmarks that train: peers come and go without a trace, results survive a kill, targets hold."""

import math
from dataclasses import replace

import pytest
import torch

from atomdiff.concept.concept import Concept
from atomdiff.errors import SettingsError
from atomdiff.evaluation.pocket_figures import Drawing
from atomdiff.pocket import world
from atomdiff.pocket.judge import Judge, JudgeNet
from atomdiff.sampling.draw import draw
from atomdiff.training import sizing
from atomdiff.training.forward import TrainingData
from atomdiff.training.latents import LatentCache, encode_table
from atomdiff.training.recipes import DEFAULT, LADDER
from benchmarks import bench as runner
from benchmarks import calibration, method, size, tables, tasks, tricks
from benchmarks.bench import BASE, Bench, Method, mean
from benchmarks.ledger import Case, Ledger, Outcome
from benchmarks.peers import TEXT, fit
from benchmarks.report import write_section

QUICK = Drawing(1, 1, 32)
PEER = replace(method.LORA, steps=1)


def fingerprint(model: torch.nn.Module) -> list[tuple[str, int]]:
    """Every weight and its name, to see that a model is what it was."""
    return [(name, hash(values.detach().numpy().tobytes())) for name, values in model.state_dict().items()]


@pytest.fixture(scope="module")
def base(tiny_folder):
    from atomdiff.base.stable_diffusion import load_base

    return load_base(str(tiny_folder("sd1")))


@pytest.fixture(scope="module")
def data(base):
    side = base.unet.config.sample_size
    latents = torch.randn(5, 1, 4, side, side, generator=torch.Generator().manual_seed(0))
    table = encode_table(base, ["a sks dog", "a cat"])
    parts = (LatentCache(latents, torch.zeros_like(latents), (row,) * 5) for row in (0, 1))
    return TrainingData(*parts, table)


# ----------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("peer", [*method.PEERS, *calibration.RATES], ids=lambda peer: peer.name)
def test_a_peer_comes_trains_is_filed_and_goes(peer, base, data):
    was, words = fingerprint(base.unet), fingerprint(base.pipe.text_encoder)
    plain = draw(base, "a sks cat", steps=1)[0].tobytes()
    handle = peer.attach(base)
    first = {name: p.detach().clone() for name, p in handle.trained.items()}
    assert math.isfinite(fit(handle, data, 2, 1, 0, 1e-2))
    moved = {name for name, p in handle.trained.items() if not torch.equal(p, first[name])}
    assert any(name.startswith(TEXT) for name in moved) == ("text encoder" in peer.name)
    assert len(moved) > sum(name.startswith(TEXT) for name in moved)
    file = handle.to_bytes()
    assert 2 * handle.numbers() < len(file)
    with torch.no_grad():
        for parameter in handle.trained.values():
            parameter.zero_()
    with handle.filed(file):
        assert draw(handle.base, handle.asked("a sks cat"), steps=1)[0].tobytes() != plain
    assert fingerprint(base.unet) == was and fingerprint(base.pipe.text_encoder) == words
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_same_seed_trains_the_same(base, data):
    files = []
    for _ in range(2):
        handle = method.LORA.attach(base)
        fit(handle, data, 2, 2, 3, 1e-2)
        files.append(handle.to_bytes())
    assert files[0] == files[1]


# -------------------------------------------------------------------------------------------- the runner


@pytest.fixture
def bench(base, data, tmp_path, monkeypatch):
    """A bench on a tiny base; concepts are made without training, peers by a step, and all that was made is
    told."""
    made = []

    def train(base, task, out, settings):
        made.append(dict(settings))
        recipe = Method("", {k: v for k, v in settings.items() if k != "seed"}).full_settings()
        spec = runner_spec(recipe)
        atoms = {name: torch.full_like(zero, 0.05) for name, zero in sizing.zeros(base.unet, spec).items()}
        token = {"token": torch.ones(1, 1, 32)} if recipe.train_token else None
        return Concept.of(base.unet, spec, atoms, base.passport, token=token, trigger="sks", class_word="dog")

    torch.manual_seed(0)
    monkeypatch.setattr(runner, "load_base", lambda name: base)
    monkeypatch.setattr(runner.Judge, "load", lambda path: Judge(JudgeNet()))
    monkeypatch.setattr(runner, "prepare", lambda *given: data)
    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(runner, "POCKET", replace(runner.POCKET, max_train_steps=1, train_batch_size=1))
    monkeypatch.setattr(runner, "PUBLISHED", tmp_path / "published")
    opened = Bench("method", tmp_path, QUICK)
    opened.made = made
    return opened


def runner_spec(settings):
    from atomdiff.training.defaults import spec_of

    return spec_of(settings)


def test_a_run_judges_both_ways_and_goes_on_after_a_kill(bench):
    (task,) = tasks.subjects(1)
    bench.run([method.TOOL, PEER], [task])
    lines = bench.ledger.path.read_text().splitlines(keepends=True)
    assert len(lines) == 3 and len(bench.made) == 1  # the base is judged too
    ours, peer = (bench.outcomes(one, [task])[0] for one in (method.TOOL, PEER))
    figures = {"colour", "identity", "five", "class", "context", "accessory", "leak", "drift", "drift others"}
    assert figures <= set(ours.figures) and figures <= set(peer.figures)
    assert "drift" not in ours.gated and ours.likeness_gated is not None and peer.likeness_gated is None
    assert ours.moved > 0 and ours.bytes > 0 and peer.numbers > 0
    assert (bench.out / "pictures").is_dir()
    bench.ledger.path.write_text(lines[0] + lines[1] + lines[2][:40])  # killed while the last was written
    again = Bench("method", bench.out, QUICK)
    assert len(again.ledger.outcomes) == 2
    again.run([method.TOOL, PEER], [task])
    assert len(bench.made) == 1 and len(again.ledger.outcomes) == 3
    assert Bench("method", bench.out, Drawing(2, 1)).ledger.outcomes == {}


def test_a_run_takes_what_another_has_finished_beside_it(tmp_path):
    mine, other = (Ledger(tmp_path / "results.jsonl", {"version": 1}) for _ in range(2))
    first, second = (Case("base", "0", f"{i} dog", 0) for i in (1, 2))
    mine.add(first, Outcome({"identity": 0.5}))
    other.refresh()
    assert other.outcomes[first].figures == {"identity": 0.5}
    other.add(second, Outcome({"identity": 0.7}))
    with other.path.open("a") as file:
        file.write('{"setup": ')  # of which the rest is still being written
    mine.refresh()
    assert set(mine.outcomes) == {first, second}


def test_what_was_trained_is_kept_when_it_is_judged_anew(bench):
    (task,) = tasks.subjects(1)
    bench.run([method.TOOL], [task])
    bench.ledger.path.unlink()
    Bench("method", bench.out, QUICK).run([method.TOOL], [task])
    assert len(bench.made) == 1


def test_settings_tell_results_apart_and_a_recipe_is_what_it_chose():
    assert Method("x", {}).digest == Method("x", {"recipe": DEFAULT.name}).digest
    assert Method("x", {}).digest == Method("x", DEFAULT.settings()).digest
    assert Method("x", {"snr_gamma": 0.0}).digest != Method("x", {}).digest
    lora = method.LORA
    assert replace(lora, rate=1e-4).digest != lora.digest
    task = tasks.subjects(1)[0]
    assert BASE.case(task, 3) == BASE.case(task, 0) and lora.case(task, 3) != lora.case(task, 0)


def test_a_lead_is_the_mean_of_its_cases_with_their_standard_error(bench):
    mine, others = Method("mine", {}), Method("others", {"snr_gamma": 0.0})
    task = tasks.tuning_subjects(1)[0]
    bench.seeds = 2
    for one, likenesses in ((mine, (0.5, 0.7)), (others, (0.4, 0.4))):
        for seed, value in enumerate(likenesses):
            bench.ledger.add(one.case(task, seed), Outcome({"class": 1.0, "identity": value}))
    assert bench.lead(mine, others, [task]) == pytest.approx((0.2, 0.1))
    first_alone = Method("first alone", {"snr_gamma": 1.0})
    bench.ledger.add(first_alone.case(task), Outcome({"class": 1.0, "identity": 0.1}))
    assert bench.lead(mine, first_alone, [task])[0] == pytest.approx(0.4)  # of the first seed of both
    bench.seeds = 1
    assert bench.lead(mine, others, [task]) == (pytest.approx(0.1), pytest.approx(math.nan, nan_ok=True))


def test_means_leave_out_what_was_not_drawn():
    one, other, gated = ({"class": 1.0, "colour": colour} for colour in (0.5, 0.3, 0.7))
    outcomes = [Outcome(one, gated), Outcome(other | {"accessory": 1.0})]
    assert mean(outcomes, "likeness") == pytest.approx(0.4)
    assert mean(outcomes, "likeness", gated=True) == pytest.approx(0.7)
    assert mean(outcomes, "accessory") == 1.0
    assert math.isnan(mean(outcomes, "leak")) and math.isnan(mean([], "likeness"))


def test_a_task_is_trained_by_the_tool_with_its_texts(base, tmp_path):
    quick = {"max_train_steps": 1, "with_prior_preservation": False, "recipe": "word"}
    for task, word in ((tasks.subjects(1)[0], "dog"), (tasks.styles(1)[0], "drawing")):
        made = runner.train(base, task, tmp_path, quick)
        assert (made.trigger, made.class_word, made.precision) == ("sks", word, "fp32")
        texts = sorted((tmp_path / "given" / runner.slug(task.name)).glob("*.txt"))
        assert [path.read_text() for path in texts] == (list(task.prompts) if task.is_style else [])


# ------------------------------------------------------------------------------------ tables and targets


def known(bench, one, task, **figures):
    usual = {"context": 1.0, "leak": 0.1, "drift": 0.2, "drift others": 0.2, "accessory": 0.9}
    values = {"class": 1.0} | usual | figures
    gated = {"class": 1.0, "colour": values.pop("gated")} if "gated" in values else {}
    bench.ledger.add(one.case(task), Outcome(values, gated, 7000, 8000, values.pop("moved", 0.2), 1.0))


def test_the_targets_of_the_default(bench, monkeypatch):
    monkeypatch.setattr(method, "bytes_on_sd15", lambda recipe: 12_000)
    task, (style,) = tasks.subjects(1)[0], tasks.styles(1)
    known(bench, BASE, task, colour=0.1, drift=0.0)
    known(bench, method.TOOL, task, colour=0.75, gated=0.78)
    known(bench, method.LORA, task, colour=0.7, drift=0.3)
    known(bench, method.NO_CONVS, task, colour=0.6)
    bench.ledger.add(method.TOOL.case(style), Outcome({"style": 0.9, "context": 0.8}))
    found = {target.name: target for target in method.targets(bench, [task], [style])}
    assert [name for name, target in found.items() if not target.met] == ["neon, context"]
    assert found["lost without conv atoms"].value == pytest.approx(0.15)
    known(bench, method.TOOL, task, colour=0.7, gated=0.78, leak=0.2, drift=0.4, accessory=0.5, moved=0.4)
    found = {target.name: target for target in method.targets(bench, [task], [])}
    missed = {name for name, target in found.items() if not target.met}
    assert missed == {
        "likeness, plain", "drift above LoRA r=4 + 2 words's", "leak above the base's", "worn, lost",
        "plain, of gated", "moved, of the layer that moved most", "lost without conv atoms",
    }  # fmt: skip
    nothing = method.targets(Bench("method", bench.out / "new", QUICK), [task], [style])
    assert [target.name for target in nothing if target.value is not None] == ["bytes on SD 1.5"]


def test_tables_show_plain_and_gated_side_by_side(bench, tmp_path, monkeypatch):
    task = tasks.subjects(1)[0]
    known(bench, BASE, task, colour=0.1)
    known(bench, method.TOOL, task, colour=0.75, gated=0.78)
    known(bench, method.LORA, task, colour=0.7)
    headers, rows = tables.likeness_table(bench, method.METHODS, [task])
    shown = [dict(zip(headers, row, strict=True)) for row in rows]
    assert [row["method"] for row in shown] == ["base", method.TOOL.name, method.LORA.name]
    assert (shown[1]["likeness, plain"], shown[1]["gated"], shown[2]["gated"]) == ("0.750", "0.780", "")
    headers, rows = tables.subject_table(bench, [method.TOOL, method.LORA], [task], method.TOOL)
    assert headers[1] == "dog" and rows[2][:3] == (method.LORA.name, "0.700", "+0.050")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    tables.tell(bench, "method", "The method", [("Subjects", (headers, rows))], docs=True)
    assert "## The method" in (tmp_path / "docs/results.md").read_text()
    assert len((tmp_path / "published/method.jsonl").read_text().splitlines()) == 3


def test_sections_of_a_page_are_replaced_and_others_stay(tmp_path):
    page = tmp_path / "results.md"
    for text in ("first", "second"):
        write_section(page, "method", text)
        write_section(page, "other", "stays")
    assert "first" not in page.read_text() and page.read_text().count("second") == 1
    assert page.read_text().count("stays") == 1


def test_recipes_are_out_of_order_by_what_they_fall_behind():
    assert size.out_of_order([0.8, 0.7, 0.7, 0.2]) == 0
    assert size.out_of_order([0.7, 0.5, 0.8]) == pytest.approx(0.3)
    assert size.out_of_order([]) == 0


def test_the_ladder_and_the_tricks_are_run_as_they_are_asked_for(bench, capsys, monkeypatch):
    monkeypatch.setattr(size, "bytes_on_sd15", lambda recipe: 1000)
    monkeypatch.setattr(runner, "Drawing", lambda *given: QUICK)
    for _ in range(2):  # the second time everything is known
        size.main(["--recipes", "word", "atoms", "--subjects", "1", "--out", str(bench.out)])
        assert capsys.readouterr().out.count("1,000") == 2
    assert len(bench.made) == 2
    out = str(bench.out / "tricks")
    tricks.main(["--tricks", "one vector", "--subjects", "1", "--out", out])
    assert [made.get("num_vectors") for made in bench.made[2:]] == [None, 1]
    assert "above the default" in capsys.readouterr().out


def test_the_command_tells_what_is_known(tmp_path, capsys):
    method.main(
        ["--report", "--subjects", "1", "--styles", "1", "--methods", "atoms+dc", "--out", str(tmp_path)]
    )
    told = capsys.readouterr().out
    assert "1 subjects" in told and "neon" in told and "plain likeness" in told.lower()


def test_methods_are_chosen_by_name_and_searched_at_rates():
    assert method.chosen([]) == list(method.METHODS)
    assert [one.name for one in method.chosen(["LoRA*", "word"])] == ["word", method.LORA.name]
    with pytest.raises(SettingsError, match="No method is called 'lora'"):
        method.chosen(["lora"])
    rates = [one.rate for one in method.at_rates(method.LORA)]
    assert method.LORA.rate in rates and len(rates) == len(method.GRID)
    with pytest.raises(SettingsError, match="finds the rate of a peer"):
        method.at_rates(method.TOOL)
    assert {size.method_of(recipe).digest for recipe in LADDER} >= {one.digest for one in method.OURS}


# ------------------------------------------------------------------------------------ tasks and figures


def test_tasks_are_held_out_and_apart():
    result, tuning, styles = tasks.subjects(8), tasks.tuning_subjects(4), tasks.styles(2)
    named = [task.name for task in (*result, *tuning, *styles)]
    assert len(set(named)) == len(named) == 14
    assert [task.is_style for task in styles] == [True, True]
    assert all(len(task.pictures) == len(task.prompts) == 5 for task in (*result, *styles))


def test_duotone_is_told_from_colour():
    plain = [world.render(scene) for scene in (world.Scene(s, "meadow") for s in world.benchmark_subjects(3))]
    assert not tasks.in_duotone(plain).any()
    assert tasks.in_duotone([tasks.duotone(p) for p in plain]).all()


# ------------------------------------------------------------------------------------------- the ledger


def test_ledger_keys_tell_recipes_apart(tmp_path):
    ledger = Ledger(tmp_path / "r.jsonl", {})
    cases = [Case("atoms", recipe, "1 dog", 0) for recipe in ("a", "b")]
    outcome = Outcome({"colour": 1.0, "drift": 0.2}, {"colour": 0.5}, 10, 2, 0.1, 1.0)
    ledger.add(cases[0], outcome)
    assert cases[1] not in ledger.outcomes
    assert Ledger(ledger.path, {}).outcomes == {cases[0]: outcome}


def test_what_is_published_goes_on_in_another_clone(tmp_path):
    published = tmp_path / "published.jsonl"
    ledger = Ledger(tmp_path / "a" / "r.jsonl", {"steps": 1}, published)
    case, more = (Case("α", "", task, 0) for task in ("a dog", "a cat"))
    ledger.add(case, Outcome({"colour": 1 / 3, "drift": 0.5}, moved=2 / 3))
    ledger.publish()
    other = Ledger(tmp_path / "b" / "r.jsonl", {"steps": 1}, published)
    assert other.outcomes[case] == Outcome({"colour": 0.33333, "drift": 0.5}, moved=0.66667)
    other.add(more, Outcome({"colour": 0.5}))
    other.publish()
    assert len(published.read_text().splitlines()) == 2 and "α" in published.read_text()
    another = Ledger(tmp_path / "c" / "r.jsonl", {"steps": 2}, published)
    assert another.outcomes == {}
    another.add(case, Outcome({"colour": 0.25}))
    another.publish()
    assert set(Ledger(tmp_path / "d" / "r.jsonl", {"steps": 1}, published).outcomes) == {case, more}
    assert len(published.read_text().splitlines()) == 3
