"""The method benchmark: every method comes and goes without a trace, results survive a kill, targets hold."""

import dataclasses
import json
import math
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomdiff.errors import SettingsError
from atomdiff.pocket import world
from atomdiff.pocket.judge import Judge, JudgeNet
from atomdiff.sampling.draw import draw
from atomdiff.training.latents import LatentCache, encode_table
from atomdiff.training.loop import TrainingData
from benchmarks.court import Drawing, diversity, likeness
from benchmarks.method import charts, peer_file, rates, running, tables, tasks
from benchmarks.method.__main__ import in_precisions, rows_of
from benchmarks.method.catalogue import METHODS, QUICK, chosen
from benchmarks.method.fitting import train
from benchmarks.method.handmade import BASE, FULL
from benchmarks.method.ledger import Case, Ledger, Outcome
from benchmarks.method.ours import TOOL
from benchmarks.method.protocol import TOOL_COURSE, Called, fingerprint
from benchmarks.method.rates import Rates
from benchmarks.method.running import Bench, payload
from benchmarks.method.tables import Row
from benchmarks.report import write_section

ALIKE = ("LoRA r=4*", "LoRA r=16*", "Uni-LoRA 4608", "atoms m=6", "atoms m=4", "sparse m=12", "Dc kc=2*")
ALIKE += ("recursive G=16", "Kronecker*attn", "atoms m=4 + *", "atoms m=9 + Dc*attn2*")
ALIKE += ("*, as ours", "the same, on every prompt")
TRIED = [m for m in METHODS if not any(fnmatchcase(m.name, pattern) for pattern in ALIKE)]


@pytest.fixture(scope="module")
def base(tiny_folder):
    from atomdiff.base.stable_diffusion import load_base

    return load_base(str(tiny_folder("sd1")))


@pytest.fixture(scope="module")
def data(base):
    side = base.unet.config.sample_size
    mean = torch.randn(5, 1, 4, side, side, generator=torch.Generator().manual_seed(0))
    table = encode_table(base, ["a sks dog", "a cat"])
    parts = (LatentCache(mean, torch.zeros_like(mean), (row,) * 5) for row in (0, 1))
    return TrainingData(*parts, table)


@pytest.fixture(scope="module")
def plain(base):
    return draw(base, "a sks cat", steps=1)[0].tobytes()


@pytest.mark.parametrize("method", TRIED, ids=lambda m: m.name)
def test_a_method_comes_trains_is_filed_and_goes(method, base, data, plain):
    was, words = fingerprint(base.unet), fingerprint(base.pipe.text_encoder)
    handle = method.attach(base)
    try:
        first = {name: p.detach().clone() for name, p in handle.trained.items()}
        assert math.isfinite(train(handle, data, 2, 1, 0, max(method.rate, 1e-2)).loss)
        moved = [name for name, p in handle.trained.items() if not torch.equal(p, first[name])]
        assert bool(moved) == (method is not BASE)
        files = [handle.to_bytes(precision) for precision in method.precisions]
        assert sorted(map(len, files), reverse=True) == [len(file) for file in files]
        bytes_each = {"fp16": 2, "int8": 1, "int4": 0.5}[method.precisions[0]]
        assert payload(files[0]) >= bytes_each * handle.numbers()
        with handle.filed(files[-1]) as concepts:
            picture = draw(base, "a sks cat", concepts=concepts, steps=1)[0]
        assert (picture.tobytes() != plain) == (method is not BASE)
    finally:
        handle.detach()
    assert fingerprint(base.unet) == was and fingerprint(base.pipe.text_encoder) == words
    assert not any(p.requires_grad for p in base.unet.parameters())


@pytest.mark.parametrize("method", chosen(["*, as ours"]), ids=lambda m: m.name)
def test_a_peer_drawn_as_ours_leaves_the_base_to_prompts_that_do_not_call_it(method, base, data):
    drawn = Drawing(1, 2, 1)
    before = {prompt: drawn(base, [], [prompt], 0)[0].tobytes() for prompt in ("a cat", "a sks cat")}
    handle = method.attach(base)
    try:
        train(handle, data, 2, 1, 0, 1e-2, method.course)
        called = Called(**vars(drawn), handle=handle)
        with handle.filed(handle.to_bytes("fp16")):
            after = {prompt: called(base, [], [prompt], 0)[0].tobytes() for prompt in before}
            everywhere = drawn(base, [], ["a cat"], 0)[0].tobytes()
    finally:
        handle.detach()
    assert after["a cat"] == before["a cat"]
    assert (everywhere == before["a cat"]) == method.name.startswith("textual inversion")
    assert after["a sks cat"] != before["a sks cat"]
    assert "forward" not in vars(base.unet)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.sampled_from(["fp16", "int8", "int4"]))
def test_a_peer_is_read_as_its_file_has_it(sizes, precision):
    rng = torch.Generator().manual_seed(sum(sizes))
    trained = {f"layer {i}": torch.randn(2, n, generator=rng) for i, n in enumerate(sizes)}
    data = peer_file.to_bytes(trained, precision)
    read = peer_file.from_bytes(data, trained)
    step = {"fp16": 2**-10, "int8": 1 / 127, "int4": 0.4}[precision]  # int4 may cut the largest by so much
    for name, tensor in trained.items():
        assert read[name].shape == tensor.shape
        assert (read[name] - tensor).abs().max() <= step * max(t.abs().max() for t in trained.values())
    again = peer_file.from_bytes(peer_file.to_bytes(read, precision), read)
    assert all(torch.equal(again[name], read[name]) for name in trained)
    numbers = 2 * sum(sizes)
    blocks = -(-numbers // 64)
    assert payload(data) == {"fp16": 2 * numbers, "int8": 66 * blocks, "int4": 34 * blocks}[precision]


def test_a_course_says_whether_the_class_is_trained_on(base, data):
    (method,) = chosen(["LoRA r=1, attention"])
    losses = []
    for prior in (True, False):
        handle = method.attach(base)
        course = dataclasses.replace(TOOL_COURSE, with_prior_preservation=prior, snr_gamma=0.0)
        losses.append(train(handle, data, 1, 2, 0, 1e-2, course).loss)
        handle.detach()
    assert losses[0] > 1.5 * losses[1] > 0


def test_the_same_seed_trains_the_same(base, data):
    (method,) = chosen(["LoRA r=1, attention"])
    files = []
    for _ in range(2):
        handle = method.attach(base)
        train(handle, data, 2, 2, 3, 1e-2)
        files.append(handle.to_bytes("fp16"))
        handle.detach()
    assert files[0] == files[1]


@pytest.fixture
def bench(base, data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(running, "prepare", lambda *given: data)
    ledger = Ledger(tmp_path / "results.jsonl", {"steps": 1})
    return Bench(base, Judge(JudgeNet()), ledger, Drawing(1, 1, 32), 1, 1, 1, tmp_path)


def test_a_run_goes_on_after_a_kill(bench, monkeypatch):
    (task,) = tasks.subjects(1)
    method = dataclasses.replace(chosen(["atoms m=9"])[0], precisions=("fp16", "int8"))
    made = bench.run(method, task, 0, 1e-2)
    lines = bench.ledger.path.read_text().splitlines(keepends=True)
    assert len(lines) == 2 and made["int8"].bytes < made["fp16"].bytes and made["fp16"].step > 0
    assert {"colour", "identity", "five", "class", "context", "accessory", "leak", "drift others"} <= set(
        made["fp16"].figures
    )
    bench.ledger.path.write_text(lines[0] + lines[1][:40])  # killed while the second was written
    bench.ledger = Ledger(bench.ledger.path, {"steps": 1})
    assert [case.precision for case in bench.ledger.outcomes] == ["fp16"]
    judged = []
    own = bench._keep_strip
    monkeypatch.setattr(bench, "_keep_strip", lambda label, *rest: (judged.append(label), own(label, *rest)))
    again = bench.run(method, task, 0, 1e-2)
    assert judged == ["atoms m=9, int8"]
    assert again["int8"].figures == made["int8"].figures
    assert Ledger(bench.ledger.path, {"steps": 2}).outcomes == {}


def test_what_differs_in_its_drawing_alone_is_trained_once(bench, monkeypatch):
    trained = []
    monkeypatch.setattr(running, "train", lambda *given: (trained.append(given), train(*given))[1])
    (task,), pair = tasks.subjects(1), chosen(["atomdiff's default", "the same, on every prompt"])
    called, everywhere = (bench.run(method, task, 0, 1e-1)["int4"] for method in pair)
    assert len(trained) == 1 and called.step == everywhere.step
    assert called.figures["drift"] == 0 and everywhere.figures["drift"] != 0
    assert called.figures["identity"] == everywhere.figures["identity"]
    bench.run(pair[0], task, 1, 1e-1)
    assert len(trained) == 2
    found = {method.name: {"recipe": method.recipe, "rate": 1e-1} for method in pair}
    (bench.out / "rates.json").write_text(json.dumps(found))
    rows = rows_of(bench, [*pair, BASE], [task], range(3), Rates(bench.out / "rates.json"))
    assert {row.label: len(row.by_seed) for row in rows} == {pair[0].name: 2, pair[1].name: 1}


def test_a_training_that_broke_is_a_result_too(bench, monkeypatch):
    def broken(handle, *rest):
        with torch.no_grad():
            next(iter(handle.trained.values())).fill_(float("inf"))
        return train(handle, *rest)

    monkeypatch.setattr(running, "train", broken)
    (task,), (method,) = tasks.subjects(1), chosen(["LoRA r=1, attention"])
    (outcome,) = bench.run(method, task, 0, 1e-2).values()
    assert outcome.likeness == 0 and outcome.drift == 1


def test_the_rate_is_searched_beyond_the_edge_and_kept(bench, monkeypatch, tmp_path):
    tried = []

    def score(bench, method, tasks, rate):
        tried.append(rate)
        return -abs(math.log(rate / (16 * method.rate)))

    monkeypatch.setattr(rates, "score", score)
    (method,), file = chosen(["atoms m=9"]), tmp_path / "rates.json"
    found = Rates(file)
    assert found.of(method) == method.rate and not found.searched(method)
    found.search(bench, method, [])
    assert tried == [factor * method.rate for factor in (0.25, 1, 4, 16, 64)]
    assert found.of(method) == pytest.approx(16 * method.rate)
    found.search(bench, BASE, [])
    assert found.of(BASE) == 0.0 and not found.searched(BASE)
    for known in (Rates(file), _published(found, tmp_path)):
        assert known.of(method) == found.of(method) and known.searched(method)
        assert not known.searched(dataclasses.replace(method, recipe="another"))
    assert Rates(file, aside=True).of(method) == method.rate


def _published(found, folder):
    found.published = folder / "published.json"
    found.publish()
    return Rates(folder / "elsewhere.json", found.published)


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


def test_diversity_is_the_difference_within_a_prompt():
    black, white = (Image.new("RGB", (8, 8), value) for value in ("black", "white"))
    assert diversity([black, white], 2) == pytest.approx(1.0)
    assert diversity([black, black, white, white], 2) == 0.0
    assert diversity([black, white], 1) == 0.0


def test_likeness_leaves_out_what_a_plain_coat_hides():
    assert likeness({"colour": 1.0, "pattern": 0.5, "identity": 0.0, "class": 9.0}) == 0.5
    assert likeness({"style": 0.25, "class": 1.0}) == 0.25


def test_methods_are_chosen_by_name_pattern_and_family():
    assert {m.name for m in chosen(QUICK)} == set(QUICK) and chosen([]) == list(METHODS)
    assert [m.name for m in chosen(["LoHa*", "base"])] == ["base", "LoHa r=2"]
    assert {m.family for m in chosen(["ours"])} == {"ours"}
    with pytest.raises(SettingsError, match="No method is called 'lora'"):
        chosen(["lora"])


def _row(name, family, size, colour, drift=0.1, context=1.0, leak=0.0):
    figures = {"colour": colour, "context": context, "leak": leak, "drift": drift}
    return Row(name, name, family, [Outcome(figures, size, size, size // 2, 1.0)], [colour])


def test_targets_name_the_strongest_fair_rival():
    rows = [
        _row(BASE.name, "reference", 8, 0.1, 0.0),
        _row(FULL.name, "reference", 10**7, 0.8),
        _row(TOOL.name, "ours", 9000, 0.75, context=0.95, leak=0.2),
        _row("small", "peer", 50_000, 0.7),
        _row("borrowed", "as ours", 50_000, 0.9),
        _row("large", "peer", 200_000, 0.9),
    ]
    found = {t.name: t for t in tables.targets(rows, 12_000)}
    missed = {name for name, target in found.items() if not target.met}
    failed = {"the default concept on SD 1.5", "context lost", "leak above the base's"}
    assert missed == failed | {"likeness above borrowed's"}
    assert found["likeness above small's"].value == pytest.approx(0.05)
    assert found["likeness above borrowed's"].value == pytest.approx(-0.15)
    wild = [*rows, _row("wild", "peer", 50_000, 0.9, drift=0.05)]
    missed |= {"likeness above wild's", "drift above wild's"}
    assert {t.name for t in tables.targets(wild, 12_000) if not t.met} == missed
    assert tables.best_small(rows) is None
    known = [t.name for t in tables.targets(rows[:2], 9000) if t.value is not None]
    assert known == ["the default concept on SD 1.5"]


def test_tables_and_pictures(tmp_path):
    rows = [_row(BASE.name, "reference", 8, 0.1), _row(TOOL.name, "ours", 9000, 0.75)]
    rows += [_row("peer", "peer", 30_000, 0.5), _row("peer, as ours", "as ours", 30_000, 0.6)]
    headers, cells = tables.likeness_table(rows)
    assert dict(zip(headers, cells[1], strict=True))["likeness"] == "0.750"
    headers, cells = tables.cost_table(rows, {TOOL.name: 12.3})
    assert dict(zip(headers, cells[1], strict=True))["memory MB"] == "12"
    some = [dataclasses.replace(row, outcomes=row.outcomes * 4) for row in rows]
    headers, cells = tables.subject_table(some, tasks.subjects(4))
    assert headers[1:5] == ("dog", "cat", "robot", "teapot")
    assert cells[1][5:] == ("0.750", "", "", "", "") and cells[2][6:8] == ("+0.250", "0.000")
    charts.plot(rows, tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as plotted:
        assert plotted.width > 500
    page = tmp_path / "results.md"
    for text in ("first", "second"):
        write_section(page, "method", text)
        write_section(page, "other", "stays")
    assert "first" not in page.read_text() and page.read_text().count("second") == 1
    assert page.read_text().count("stays") == 1


def test_ledger_keys_tell_recipes_apart(tmp_path):
    ledger = Ledger(tmp_path / "r.jsonl", {})
    outcome = Outcome({"colour": 1.0, "drift": 0.2, "drift others": 0.4}, 10, 5, 2, 1.0)
    cases = [Case("atomdiff's default", recipe, "fp16", "1 dog", 0, 1e-2) for recipe in ("a", "b")]
    ledger.add(cases[0], outcome)
    assert cases[1] not in ledger.outcomes
    assert Ledger(ledger.path, {}).outcomes == {cases[0]: outcome}
    assert outcome.drift == pytest.approx(0.3)


def test_what_is_published_goes_on_in_another_clone(tmp_path):
    published = tmp_path / "published.jsonl"
    ledger = Ledger(tmp_path / "a" / "r.jsonl", {"steps": 1}, published)
    case, more = (Case("α", "", "fp16", task, 0, 1e-2) for task in ("a dog", "a cat"))
    ledger.add(case, Outcome({"colour": 1 / 3, "drift": 0.5}, 10, 8, 3, 2 / 3))
    ledger.publish()
    other = Ledger(tmp_path / "b" / "r.jsonl", {"steps": 1}, published)
    assert other.outcomes[case].figures == {"colour": 0.33333, "drift": 0.5}
    other.add(more, Outcome({"colour": 0.5}, 10, 8, 3, 1.0))
    other.publish()
    assert len(published.read_text().splitlines()) == 2 and "α" in published.read_text()
    assert set(Ledger(tmp_path / "c" / "r.jsonl", {"steps": 1}, published).outcomes) == {case, more}
    another = Ledger(tmp_path / "c" / "r.jsonl", {"steps": 2}, published)
    assert another.outcomes == {}
    another.add(case, Outcome({"colour": 0.25}, 10, 8, 3, 1.0))
    another.publish()
    assert set(Ledger(tmp_path / "d" / "r.jsonl", {"steps": 1}, published).outcomes) == {case, more}
    assert len(published.read_text().splitlines()) == 3


def test_methods_are_judged_in_the_precisions_asked_for_where_they_have_them():
    atoms, lora = chosen(["atoms m=9", "LoRA r=1, attention"])
    assert in_precisions(atoms, ["int4"]).precisions == ("int4",)
    assert in_precisions(lora, ["int4"]) is lora and in_precisions(BASE, ["int4"]) is BASE
