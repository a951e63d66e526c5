"""Sparse coding of convolution weights: a dictionary learned from a layer's kernels, and their codes over it.

With X (n, k2) the kernels of a layer, divided by their root mean square r, and D (m, k2) a dictionary,

    α / r = argmin ½‖X − αD‖² + λ‖α‖₁ + ε/2 ‖α‖²          (n, m)

solved by FISTA (Beck & Teboulle 2009) in its form for strongly convex functions. The small ridge ε makes the
solution one and stable, also where m > k2. W is rounded to bf16 before, so that a base in bf16 gives the α
that was trained over a base in fp32. D is learned by alternating codes and least squares on a sample of the
kernels (method of optimal directions, Engan et al. 1999), and then put on a grid that every precision of a
file holds.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from atomdiff.core import subspace
from atomdiff.errors import SettingsError

RIDGE = 0.05  # ε
TOLERANCE = 1e-6  # a last step of the solver, in codes of weights of size 1
ROUGH = 1e-3  # the same while the dictionary still changes
MAX_STEPS = 500
LEARNING_STEPS = 10
SAMPLE = 10_000  # kernels that a dictionary is learned from
GRID = 127  # steps of 1/128 to the largest number of a dictionary: what int8 and fp16 hold exactly
_CHUNK = 8192  # kernels coded at once, which fits a core's cache


@torch.no_grad()
def encode(weight: Tensor, dictionary: Tensor, sparsity: float) -> Tensor:
    """Codes α of a convolution's kernels: (c_out, c_in, kh, kw), (m, k2) -> (c_out, c_in, m) fp32.

    `sparsity` is λ. Raises SettingsError where the weight is not finite.
    """
    X, scale = _kernels(weight)
    codes = [_solve(part, dictionary.to(X), sparsity) for part in X.split(_CHUNK)]
    return (torch.cat(codes) * scale).view(*weight.shape[:2], -1)


@torch.no_grad()
def learn_dictionary(
    weight: Tensor, num_atoms: int, sparsity: float, generator: Generator, steps: int = LEARNING_STEPS
) -> Tensor:
    """A dictionary (m, k2) fp32 for the kernels of one layer, its atoms of one size, its largest number ±127
    and all others whole numbers of 1/128.

    It starts from the DCT and, beyond k2 atoms, random ones; all randomness is the generator's.
    """
    kernel = (weight.shape[-2], weight.shape[-1])
    k2 = kernel[0] * kernel[1]
    D = subspace.dct_basis(kernel, min(num_atoms, k2))
    extra = torch.randn(max(0, num_atoms - k2), k2, generator=generator)
    D = torch.cat([D, extra / extra.norm(dim=1, keepdim=True)])
    X, _ = _kernels(weight)
    chosen = torch.randperm(len(X), generator=generator)[:SAMPLE]
    X = X[chosen.to(X.device)].cpu()
    for _ in range(steps):
        codes = torch.cat([_solve(part, D, sparsity, ROUGH) for part in X.split(_CHUNK)])
        gram = (codes.T @ codes).double()
        ridge = 1e-6 * float(gram.diagonal().max() + 1e-12) * torch.eye(len(D), dtype=torch.float64)
        found = torch.linalg.solve(gram + ridge, (codes.T @ X).double()).float()
        sizes = found.norm(dim=1, keepdim=True)
        D = torch.where(sizes > 1e-6, found / sizes.clamp(min=1e-6), D)  # an unused atom stays
    return (D * (GRID / D.abs().max())).round() / (GRID + 1)


def quality(weight: Tensor, alpha: Tensor, dictionary: Tensor) -> tuple[float, float]:
    """What a decomposition is like: ‖W − αD‖ / ‖W‖, and the share of α that is zero."""
    flat = weight.float().flatten(2)
    missed = float((flat - alpha @ dictionary.to(alpha)).norm() / flat.norm())
    return missed, float((alpha == 0).float().mean())


def _kernels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels (n, k2) over their root mean square, fp32, and that."""
    flat = weight.detach().flatten(2).flatten(0, 1).bfloat16().float()
    scale = flat.double().square().mean().sqrt().float()
    if not torch.isfinite(scale):
        raise SettingsError(
            f"A weight of shape {tuple(weight.shape)} holds NaN or infinite numbers, so it cannot be coded "
            "sparsely; check the base model."
        )
    return flat / scale.clamp(min=1e-12), scale


def _solve(X: Tensor, D: Tensor, sparsity: float, tolerance: float = TOLERANCE) -> Tensor:
    """FISTA: (n, k2), (m, k2) -> (n, m). With y the extrapolated point,
    α⁺ = soft(y − ∇f(y)/L, λ/L), y⁺ = α⁺ + q (α⁺ − α), q = (√L − √μ) / (√L + √μ)."""
    hessian = (D @ D.T).double() + RIDGE * torch.eye(len(D), dtype=torch.float64, device=D.device)
    sizes = torch.linalg.eigvalsh(hessian)
    mu, L = float(sizes[0]), float(sizes[-1])
    q = (L**0.5 - mu**0.5) / (L**0.5 + mu**0.5)
    step = (torch.eye(len(D), dtype=torch.float64, device=D.device) - hessian / L).float()
    pull, threshold = (X @ (D.T / L)).T, sparsity / L  # (m, n): the long side runs along memory
    alpha = torch.zeros_like(pull)
    y = alpha
    for number in range(MAX_STEPS):
        new = torch.nn.functional.softshrink(torch.addmm(pull, step, y), threshold)
        if number % 5 == 4 and float((new - alpha).abs().max()) < tolerance:
            return new.T
        y, alpha = torch.lerp(alpha, new, 1 + q), new
    return alpha.T
