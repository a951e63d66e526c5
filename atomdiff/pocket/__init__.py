"""The pocket model: a small, real Stable Diffusion that lives inside the package, and the world it was
made from."""

from pathlib import Path


def path() -> Path:
    """The diffusers folder of the bundled model; `judge.safetensors` lies beside its parts."""
    return Path(__file__).parent / "weights"
