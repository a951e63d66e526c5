"""The mathematics of filter subspaces: bases of spatial atoms, the maps they induce, and their adjoints.

Symbols: `c_out, c_in` (per group), `kh, kw`, `k2 = kh*kw`, `m` atoms, `kc` the side of a block, `b` batch,
`oh, ow` the height and width of a layer's output.

A convolution weight `W (c_out, c_in, k2)` is written over m atoms, `W ≈ α D` with `D (m, k2)`, and only the
atoms move: `ΔW = α ΔD` (arXiv 2403.00269, eq. 4). With the closed-form coefficients `α = W D⁺` this is
`ΔW = W M`, `M = D⁺ ΔD (k2, k2)`: one small map per layer, and no coefficient is ever stored.

The same map can act on the activations instead of the weight. With `T = I + M`,

    y[o] = Σ_{c,s} W[o,c,s] z[c,s],    z[c,s] = Σ_t T[s,t] shift_t(x)[c]

`mix_shifts` computes z, `mix_shifts_input_grad` and `mix_shifts_map_grad` are its two adjoints.

Every function is pure, accepts any floating dtype, and does its small matrices in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

from atomdiff.errors import SettingsError

# --------------------------------------------------------------------------------------------- bases


def dct_basis(kernel_size: tuple[int, int], num_atoms: int) -> Tensor:
    """The first `num_atoms` orthonormal 2-D DCT-II atoms, low frequencies first: (m, k2) fp32.

    The order is part of the definition: by squared spatial frequency `(u/kh)² + (v/kw)²`, then by u, then by
    v. Raises SettingsError unless 1 <= num_atoms <= kh*kw.
    """
    kh, kw = kernel_size
    _check_count(num_atoms, kh * kw)
    rows, columns = _dct_1d(kh), _dct_1d(kw)
    # (u/kh)² + (v/kw)² scaled to integers, so that ties are exact.
    order = sorted(((u * kw) ** 2 + (v * kh) ** 2, u, v) for u in range(kh) for v in range(kw))
    atoms = [torch.outer(rows[u], columns[v]).flatten() for _, u, v in order[:num_atoms]]
    return torch.stack(atoms).float()


def svd_basis(weight: Tensor, num_atoms: int) -> Tensor:
    """The top right singular vectors of W seen as (c_out*c_in, k2): the best m-dimensional subspace of its
    own.

    Returns (m, k2) fp32 with orthonormal rows; of each row the entry of largest magnitude is positive. It
    follows the weight, so where m < k2 it must be stored with whatever was trained over it. Raises
    SettingsError unless 1 <= num_atoms <= k2, or if the weight is not finite.
    """
    k2 = weight.shape[-2] * weight.shape[-1]
    _check_count(num_atoms, k2)
    flat = weight.detach().reshape(-1, k2).float()
    gram = (flat.T @ flat).double().cpu()  # right singular vectors of W = eigenvectors of WᵀW (k2, k2)
    if not torch.isfinite(gram).all():
        raise SettingsError(
            f"A weight of shape {tuple(weight.shape)} holds NaN or infinite numbers, so it has no SVD basis; "
            "check the base model, or use the dct basis."
        )
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1).T[:num_atoms]  # eigh sorts ascending
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * torch.where(largest < 0, -1.0, 1.0)).float().contiguous()


def _dct_1d(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n) fp64, one frequency a row."""
    positions = torch.arange(n, dtype=torch.float64) + 0.5
    frequencies = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(torch.pi / n * frequencies[:, None] * positions)
    return rows / rows.norm(dim=1, keepdim=True)


def _check_count(num_atoms: int, k2: int) -> None:
    if not 1 <= num_atoms <= k2:
        raise SettingsError(
            f"A kernel of {k2} weights can have 1 to {k2} atoms, not {num_atoms}; choose such a number."
        )


# --------------------------------------------------------------------------------------- spatial maps


def coefficients(weight: Tensor, basis: Tensor) -> Tensor:
    """Closed-form coefficients α = W D⁺: (c_out, c_in, kh, kw), (m, k2) -> (c_out, c_in, m) fp32."""
    return weight.float().flatten(2) @ torch.linalg.pinv(basis.float())


def spatial_map(basis: Tensor, delta_atoms: Tensor) -> Tensor:
    """M = D⁺ ΔD: (m, k2), (m, k2) -> (k2, k2) fp32."""
    return torch.linalg.pinv(basis.float()) @ delta_atoms.float()


def apply_spatial_map(weight: Tensor, M: Tensor) -> Tensor:
    """ΔW = W M, each kernel a row vector: (c_out, c_in, kh, kw), (k2, k2) -> like weight, fp32."""
    return (weight.float().flatten(2) @ M.float()).view(weight.shape)


def spatial_map_grad(weight: Tensor, grad_weight: Tensor) -> Tensor:
    """Adjoint of `apply_spatial_map` in M: WᵀG over all kernels, (k2, k2) fp32."""
    k2 = weight.shape[-2] * weight.shape[-1]
    return weight.reshape(-1, k2).float().T @ grad_weight.reshape(-1, k2).float()


# ----------------------------------------------------------------------------------------- block maps


def to_blocks(weight: Tensor, kc: int) -> Tensor:
    """Cut a matrix into kc × kc blocks: (out, in) -> (out/kc, in/kc, kc²), rows of a block first."""
    rows, columns = weight.shape
    if rows % kc or columns % kc:
        raise SettingsError(f"A {rows} × {columns} matrix cannot be cut into blocks of side {kc}.")
    blocks = weight.reshape(rows // kc, kc, columns // kc, kc).transpose(1, 2)
    return blocks.reshape(rows // kc, columns // kc, kc * kc)


def from_blocks(blocks: Tensor, kc: int) -> Tensor:
    """Inverse of `to_blocks`: (out/kc, in/kc, kc²) -> (out, in)."""
    rows, columns, _ = blocks.shape
    return blocks.reshape(rows, columns, kc, kc).transpose(1, 2).reshape(rows * kc, columns * kc)


def apply_block_map(weight: Tensor, M: Tensor) -> Tensor:
    """ΔW, where each kc × kc block of the matrix W is a row vector times M (kc², kc²): like weight, fp32."""
    kc = round(M.shape[0] ** 0.5)
    return from_blocks(to_blocks(weight.float(), kc) @ M.float(), kc)


def coarser_block_map(maps: Tensor, kc: int) -> Tensor:
    """Maps (L, side², side²) of side × side blocks as maps (L, kc², kc²) of kc × kc blocks, kc a multiple of
    side: the same on each part. Raises SettingsError for another kc."""
    side = round(maps.shape[-1] ** 0.5)
    if kc % side:
        raise SettingsError(
            f"Blocks of side {side} cannot be joined to blocks of side {kc}: take a multiple."
        )
    n = kc // side
    own, same = maps.view(-1, side, side, side, side), torch.eye(n, dtype=maps.dtype, device=maps.device)
    return torch.einsum("lpqxy,ab,cd->lapcqbxdy", own, same, same).reshape(len(maps), kc**2, kc**2)


# ------------------------------------------------------------------- coefficients and channel mixing


def combine(alpha: Tensor, atoms: Tensor) -> Tensor:
    """α times atoms: (c_out, c_in, m), (m, k2) -> (c_out, c_in, k2); with atoms (G, m, k2), input channel c
    takes those of group ⌊c G / c_in⌋."""
    if atoms.ndim == 2:
        return alpha @ atoms
    c_in, groups = alpha.shape[1], len(atoms)
    if groups == c_in:
        return torch.einsum("ocm,cms->ocs", alpha, atoms)
    return torch.cat(
        [alpha[:, part] @ own for part, own in zip(channel_groups(c_in, groups), atoms, strict=True)], 1
    )


def channel_groups(c_in: int, groups: int) -> list[slice]:
    """The input channels c with ⌊c G / c_in⌋ = g, for g = 0 ... G-1; G is at most c_in."""
    edges = [-(-g * c_in // groups) for g in range(groups + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


def apply_coefficient_map(alpha: Tensor, M: Tensor) -> Tensor:
    """Δα, where for each atom the kc × kc blocks of α[:, :, i] are row vectors times M (kc², kc²): fp32."""
    kc = round(M.shape[0] ** 0.5)
    c_out, c_in, m = alpha.shape
    blocks = alpha.float().reshape(c_out // kc, kc, c_in // kc, kc, m)
    moved = torch.einsum("apbqm,pqxy->axbym", blocks, M.float().view(kc, kc, kc, kc))
    return moved.reshape(alpha.shape)


# -------------------------------------------------------------------------- the map on the activations


@dataclass(frozen=True)
class Window:
    """How a kernel slides over a picture: everything of a convolution but its weight and its groups."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of `height` × `width` pixels."""
        oh, ow = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return oh, ow

    def reach(self, i: int, j: int, oh: int, ow: int) -> tuple[slice, slice, slice, slice]:
        """Index into a padded picture (c, b, h, w): the pixels that tap (i, j) of the kernel meets."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
        columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
        return slice(None), slice(None), rows, columns

    def lifted(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding and dilation of the same window in 3-D, where the first axis is the batch."""
        return (1, *self.stride), (0, *self.padding), (1, *self.dilation)


def mix_shifts(x: Tensor, M: Tensor, window: Window) -> Tensor:
    """z[c, s] = Σ_t T[s, t] shift_t(x)[c] with T = I + M, for all samples at once.

    x (c, b, h, w), M (k2, k2) -> (c, k2, b, oh, ow) in x's dtype. With the channels outermost z is, as it
    lies in memory, the (c*k2, b*oh*ow) matrix that one product with W turns into the layer's output.
    """
    stride, padding, dilation = window.lifted()
    precise = x.dtype.itemsize >= 4
    kernels = (plus_identity(M) if precise else M).to(x.dtype).view(-1, 1, 1, *window.kernel)
    z = conv3d(x.unsqueeze(1), kernels, stride=stride, padding=padding, dilation=dilation)
    if not precise:  # 1 + M would round M away on the diagonal: bf16 knows nothing between 1 and 1.0078
        c, _, b, oh, ow = z.shape
        z.view(c, *window.kernel, b, oh, ow).add_(shifts_of(x, window, oh, ow))
    return z


def mix_shifts_input_grad(u: Tensor, M: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Adjoint of `mix_shifts` in x: Σ_t shift₋ₜ Σ_s T[s, t] u[c, s], (c, k2, b, oh, ow) -> (c, b, h, w).

    Written as k2 shifted sums: the library's own adjoint of a convolution with one input channel took two to
    six times as long on CPU.
    """
    c, k2, b, oh, ow = u.shape
    (kh, kw), (ph, pw) = window.kernel, window.padding
    flat = u.view(c, k2, -1)
    if u.dtype.itemsize >= 4:
        v = torch.matmul(plus_identity(M).T.to(u.dtype), flat)
    else:
        v = torch.matmul(M.T.to(u.dtype), flat).add_(flat)
    v = v.view(c, kh, kw, b, oh, ow)
    padded = v.new_zeros(c, b, height + 2 * ph, width + 2 * pw)
    for i in range(kh):
        for j in range(kw):
            padded[window.reach(i, j, oh, ow)] += v[:, i, j]
    return padded[:, :, ph : ph + height, pw : pw + width]


def mix_shifts_map_grad(u: Tensor, x: Tensor, window: Window) -> Tensor:
    """Adjoint of `mix_shifts` in M: ⟨u_s, shift_t(x)⟩ summed over channels, samples and pixels, (k2, k2)
    fp32.

    Half precision is widened first: a sum over a whole picture overflows fp16.
    """
    stride, padding, dilation = window.lifted()
    wide = torch.promote_types(u.dtype, torch.float32)
    kernels = u.new_zeros(u.shape[1], 1, 1, *window.kernel, dtype=wide)
    grad = torch.ops.aten.convolution_backward(
        u.to(wide), x.to(wide).unsqueeze(1), kernels, None,
        stride, padding, dilation, False, (0, 0, 0), 1, (False, True, False),
    )[1]  # fmt: skip
    return grad.view(u.shape[1], -1).float()


def plus_identity(M: Tensor) -> Tensor:
    return M + torch.eye(M.shape[0], dtype=M.dtype, device=M.device)


def shifts_of(x: Tensor, window: Window, oh: int, ow: int) -> Tensor:
    """All k2 shifts of x (c, b, h, w) as one view of the padded x: (c, kh, kw, b, oh, ow)."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = window.kernel, window.stride, window.padding, window.dilation
    padded = pad(x, (pw, pw, ph, ph)).contiguous()
    channel, sample, row, column = padded.stride()
    strides = (channel, dh * row, dw * column, sample, sh * row, sw * column)
    return padded.as_strided((x.shape[0], kh, kw, x.shape[1], oh, ow), strides)
