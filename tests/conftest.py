"""Shared fixtures: tiny bases of every family, made once a session; nothing here touches the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before any import of the hub client: a test that needs the network must fail.
os.environ["HF_HUB_OFFLINE"] = "1"

import tiny_models

# Speed belongs to the benchmarks: a busy machine fails no test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    # diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates; not ours to change.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    )
    # What drives a browser leaves its event loop to the garbage collector, in the midst of another test.
    for left in ("unclosed event loop", "unclosed <socket.socket.*family=(1|AddressFamily.AF_UNIX)"):
        config.addinivalue_line("filterwarnings", f"ignore:{left}:ResourceWarning")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for later runs is kept from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATOMDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_folder("sd1")`: a diffusers folder of a tiny random base; the same folder on every call."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str = "sd1", seed: int = 0) -> Path:
        if (kind, seed) not in made:
            made[kind, seed] = tiny_models.save_folder(
                kind, tmp_path_factory.mktemp("base") / f"tiny-{kind}", seed
            )
        return made[kind, seed]

    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_folder: Callable[..., Path]) -> Callable:
    """`tiny_base("sdxl")`: a freshly loaded Base, so that a test may change it."""
    from atomdiff.base.stable_diffusion import load_base

    return lambda kind="sd1", seed=0, **options: load_base(str(tiny_folder(kind, seed)), **options)


@pytest.fixture(scope="module")
def studio(tiny_base, tmp_path_factory):
    """A studio with a tiny base and an empty library."""
    from atomdiff.studio.session import Options, Studio

    folder = tmp_path_factory.mktemp("studio")
    base = tiny_base("sd1")
    studio = Studio(Options(lambda name: base, "tiny-sd1", folder / "concepts", folder / "out"))
    yield studio
    studio.close()
