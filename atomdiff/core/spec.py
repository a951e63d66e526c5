"""What is trained where, as settings; apart from the model, so that a concept file is read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from atomdiff.errors import SettingsError

CONV_FAMILIES = ("atoms", "recursive", "sparse")
PARTS = ("", "beta", "coef")
"""What a layer's family may have to train: its atoms, and numbers beside them."""
TENSORS = r"(?:(?:conv|beta)(?:\.[1-9]\d?x[1-9]\d?)?|linear|coef)"
"""The names under which the numbers of many layers are packed: `conv.5x5` where kernels differ."""


@dataclass(frozen=True)
class AtomSpec:
    """What is trained where.

    `num_atoms`: atoms of each spatial convolution, at most its kh*kw; 0 for none. `basis`: "dct" or "svd".
    `conv_layers`: a regular expression searched in the module names; "" takes every convolution with a kernel
    larger than 1×1. `linear_atoms`: which linear and 1×1 layers carry block atoms Dc: none, attn2
    (cross-attention), attn2_kvo, attn2_kv, attn, all, or a regular expression. `linear_block`: the side kc of
    their blocks. With neither, only a learned word is left to train.

    `conv_family`: "atoms" (closed form), "recursive" or "sparse", see `families`. For recursive atoms,
    `channel_groups` is how many groups of input channels have a β of their own (0: every channel, and never
    more than there are), and `second_atoms` is m1. For sparse ones, `sparsity` is λ for weights of size 1.
    `coef_block`: side of the blocks of the convolutions' coefficients that are trained too, 0 for none.
    Raises SettingsError for a value that cannot work.
    """

    num_atoms: int = 9
    basis: str = "dct"
    conv_layers: str = ""
    linear_atoms: str = "attn2"
    linear_block: int = 4
    conv_family: str = "atoms"
    channel_groups: int = 1
    second_atoms: int = 3
    sparsity: float = 0.05
    coef_block: int = 0

    def __post_init__(self) -> None:
        if type(self.num_atoms) is not int or self.num_atoms < 0:
            raise SettingsError(
                f"num_atoms is a whole number from 0 (no conv atoms) up, not {self.num_atoms!r}."
            )
        if type(self.linear_block) is not int or self.linear_block < 1:
            raise SettingsError(f"linear_block is a whole number from 1 up, not {self.linear_block!r}.")
        if self.basis not in ("dct", "svd"):
            raise SettingsError(f"basis is 'dct' or 'svd', not {self.basis!r}.")
        self._check_families()
        for name in ("conv_layers", "linear_atoms"):
            try:
                re.compile(getattr(self, name))
            except (re.error, TypeError) as error:
                raise SettingsError(
                    f"{name} must be a regular expression, but {getattr(self, name)!r} is not one: {error}."
                ) from None
        if not self.linear_atoms:
            raise SettingsError("linear_atoms is empty; write 'none' for no linear atoms, or 'all'.")

    @property
    def is_map(self) -> bool:
        """Whether every layer's ΔW is one map of its W, linear in the trained numbers: then concepts add up
        in their maps."""
        return self.num_atoms == 0 or (self.conv_family == "atoms" and self.coef_block == 0)

    @property
    def has_layers(self) -> bool:
        """Whether any layer of the model is changed; else a concept is its learned word."""
        return self.num_atoms > 0 or self.linear_atoms != "none"

    @property
    def keeps_basis(self) -> bool:
        """Whether the bases of the convolutions do not follow from the spec alone, so that they are kept."""
        return self.basis == "svd" or self.conv_family == "sparse"

    @property
    def beside(self) -> tuple[str, ...]:
        """The parts that every convolution with atoms has beside them."""
        return ("beta",) if self.conv_family == "recursive" else ()

    def sides(self, kind: str, k2: int) -> tuple[int, int]:
        """Rows and columns of the matrices of a packed tensor of this kind, for kernels of k2 weights; (0, 0)
        where the spec has none. Those of "conv" always have k2 columns: a file tells its kernels by that."""
        m = self.atoms_of(k2)
        recursive = self.conv_family == "recursive"
        shapes = {
            "conv": (m * self.second_atoms if recursive else m, k2),
            "beta": (m, self.second_atoms) if recursive else (0, 0),
            "coef": (self.coef_block**2, self.coef_block**2),
            "linear": (self.linear_block**2,) * 2 if self.linear_atoms != "none" else (0, 0),
        }
        return shapes.get(kind, (0, 0))

    def atoms_of(self, k2: int) -> int:
        """m for a kernel of k2 weights. Only a learned dictionary may have more atoms than that, up to four
        times as many: the closed form would say the same with more numbers."""
        return min(self.num_atoms, 4 * k2 if self.conv_family == "sparse" else k2)

    def groups_of(self, c_in: int) -> int:
        """G for a weight of c_in input channels, for recursive atoms."""
        return min(self.channel_groups or c_in, c_in)

    def _check_families(self) -> None:
        if self.conv_family not in CONV_FAMILIES:
            raise SettingsError(
                f"conv_family is one of {', '.join(CONV_FAMILIES)}, not {self.conv_family!r}."
            )
        least_of = {"channel_groups": 0, "second_atoms": 1, "coef_block": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= 2**20:
                raise SettingsError(f"{name} is a whole number from {least} up, not {value!r}.")
        if type(self.sparsity) is not float or not 0 < self.sparsity <= 10:
            raise SettingsError(f"sparsity is a number above 0 and at most 10, not {self.sparsity!r}.")
        for name, family in (
            ("channel_groups", "recursive"),
            ("second_atoms", "recursive"),
            ("sparsity", "sparse"),
        ):
            if self.conv_family != family and getattr(self, name) != getattr(AtomSpec, name):
                raise SettingsError(f"{name} means something for conv_family {family!r} only; drop it.")
        if self.conv_family != "atoms" and self.basis != "dct":
            raise SettingsError(f"conv_family {self.conv_family!r} has the basis 'dct', not {self.basis!r}.")
        if self.num_atoms == 0 and (self.conv_family != "atoms" or self.coef_block):
            raise SettingsError(
                "num_atoms is 0, so there are no convolutions for conv_family or coef_block; give it, 9 say."
            )
