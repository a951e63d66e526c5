"""Grids: axes as people write them, cells in order, one labelled sheet."""

from __future__ import annotations

import pytest
from PIL import Image

from atomdiff.errors import ImageError, SettingsError
from atomdiff.sampling import sheets
from atomdiff.sampling.grids import Axis, Grid, parse_axis
from atomdiff.sampling.settings import DrawingSettings


class Named:
    """Stands for a concept, of which a grid needs only the title."""

    def __init__(self, title: str) -> None:
        self.title = title


REX, MIA = Named("Rex"), Named("Mia")
PLAIN = DrawingSettings("a sks dog on the beach", ((REX, 1.0),), seed=7)


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("strength", "0, 0.5,1", (0.0, 0.5, 1.0)),
        ("strength", "0..1 by 0.25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("seed", "1..3, 42", (1, 2, 3, 42)),
        ("seed", "9223372036854775807", (2**63 - 1,)),
        ("steps", "5,10", (5, 10)),
        ("guidance", "2..3 by .5", (2.0, 2.5, 3.0)),
        ("sampler", "Euler a, dpm++", ("euler a", "dpm++")),
        ("prompt", "beach, city, space", ("beach", "city", "space")),
        ("prompt", "beach | city, at night", ("beach", "city, at night")),
    ],
)
def test_axes_as_people_write_them(kind, text, values):
    assert parse_axis(kind, text).values == values


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("magic", "1", "cannot go along 'magic': choose one of strength"),
        ("seed", "", "has no values"),
        ("seed", "1.5", "not a whole number"),
        ("strength", "much", "not a number"),
        ("strength", "nan", "not a number"),
        ("seed", "3..1", "no range"),
        ("seed", "1..1000000000", "no range"),
        ("sampler", "magic", "no sampler 'magic'"),
        ("concept", "Rex", "no concepts to choose from"),
    ],
)
def test_axes_that_cannot_work(kind, text, message):
    with pytest.raises(SettingsError, match=message):
        parse_axis(kind, text)


def test_cells_come_x_first_then_y_then_z():
    grid = Grid(PLAIN, Axis("strength", (0.0, 1.0)), Axis("prompt", ("beach", "city")), Axis("seed", (1, 2)))
    cells = grid.cells()
    assert [(cell.x, cell.y, cell.z) for cell in cells][:5] == [
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1),
    ]  # fmt: skip
    assert cells[3].labels == ("strength 1", "city", "seed 1")
    assert cells[3].settings == DrawingSettings("a sks dog on the city", ((REX, 1.0),), seed=1)
    assert cells[0].settings.concepts == ((REX, 0.0),)


def test_concepts_are_exchanged_and_none_is_without():
    find = {"Rex": REX, "Mia": MIA}.__getitem__
    grid = Grid(PLAIN, parse_axis("concept", "Mia, none", find))
    assert [cell.settings.concepts for cell in grid.cells()] == [((MIA, 1.0),), ()]
    assert grid.cells()[1].labels == ("no concept",)


def test_grids_that_cannot_work():
    with pytest.raises(SettingsError, match="no part 'moon'"):
        Grid(PLAIN, Axis("prompt", ("moon", "sun")))
    with pytest.raises(SettingsError, match="needs a concept"):
        Grid(DrawingSettings("a dog"), Axis("strength", (1.0,)))
    with pytest.raises(SettingsError, match="Two axes of the grid change 'seed'"):
        Grid(PLAIN, Axis("seed", (1,)), Axis("seed", (2,)))
    with pytest.raises(SettingsError, match="10000 pictures"):
        Grid(PLAIN, Axis("seed", tuple(range(100))), Axis("strength", tuple(map(float, range(100)))))


def test_a_sheet_has_every_picture_in_its_place():
    grid = Grid(PLAIN, Axis("seed", (1, 2, 3)), Axis("strength", (0.0, 1.0)), Axis("steps", (5, 10)))
    colours = [(20 * i, 100, 200) for i in range(12)]
    sheet = grid.sheet([Image.new("RGB", (64, 64), colour) for colour in colours])
    found = {pixel for _, pixel in sheet.getcolors(10**6)}
    assert set(colours) <= found
    assert sheet.width > 3 * 192
    assert sheet.height > 4 * 192
    with pytest.raises(ImageError, match="a picture for every cell"):
        sheets.labelled_grid(["a"], ["b"], [("", [])])


def test_scenes_draw_what_draw_draws(tiny_base):
    from atomdiff.sampling.draw import draw, draw_as

    base = tiny_base("sd1")
    settings = DrawingSettings("a dog", seed=3, steps=2, guidance=2.0)
    one, other = draw_as(base, settings)[0], draw(base, "a dog", seed=3, steps=2, guidance=2.0)[0]
    assert one.tobytes() == other.tobytes()


def test_the_command_draws_a_labelled_sheet(tiny_folder, tmp_path):
    from typer.testing import CliRunner

    from atomdiff import cli

    out = tmp_path / "grid.png"
    common = ["grid", "a dog", "--base", str(tiny_folder("sd1")), "--device", "cpu", "--out", str(out)]
    done = CliRunner().invoke(
        cli.app, [*common, "--steps", "1", "--x", "seed=1, 2", "--y", "prompt=dog, cat"]
    )
    assert done.exit_code == 0, done.output
    assert "(4 pictures)" in done.output
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 192
        assert "Seed: 1" in sheet.info["parameters"]
    wrong = CliRunner().invoke(cli.app, [*common, "--x", "seed"])
    assert wrong.exit_code == 2
    assert "An axis is SETTING=VALUES" in wrong.stderr
