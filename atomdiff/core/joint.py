"""Atoms of several concepts at once on one frozen model: each sample of a batch trains those of its own.

The gradients of different concepts never meet, so one step of K concepts in a batch of K samples is K steps
of one in a batch of one, for one pass through the frozen weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atomdiff.core import inject
from atomdiff.core.families import ClosedForm
from atomdiff.core.mixed import Mixing, RowMaps
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError


class JointAtoms:
    """`count` sets of the atoms that `spec` means on `model`, zeros at first.

    `parameters` holds for each layer the atoms of all sets, (count, m, k2) or (count, kc², kc²). Within, call
    `rows` before each pass. `close` gives the model back. Raises SettingsError for a spec whose change is not
    one map a layer.
    """

    def __init__(self, model: nn.Module, spec: AtomSpec, count: int) -> None:
        if not spec.is_map:
            raise SettingsError(
                "Several concepts are trained in one batch where a layer's change is one map: take "
                "conv_family 'atoms' and coef_block 0, or train them one after another."
            )
        selection = inject.select(model, spec)
        attached = inject.attach(model, spec)  # says what is trained where, and refuses a busy model
        attached.detach()
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.model, self.spec, self.count = model, spec, count
        self.parameters: dict[str, nn.Parameter] = {}
        self._inverses: dict[str, Tensor] = {}
        for name, layer in attached.layers.items():
            atoms = layer.family.atoms.detach()
            self.parameters[name] = nn.Parameter(torch.zeros(count, *atoms.shape, device=atoms.device))
            if name in selection.conv and isinstance(layer.family, ClosedForm):
                self._inverses[name] = layer.family.inverse
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._mixing = Mixing(model)

    def rows(self, owners: Sequence[int]) -> None:
        """The next pass is a batch whose row b belongs to set `owners[b]`."""
        index = tuple(owners)
        own = {}
        for name, atoms in self.parameters.items():
            inverse = self._inverses.get(name)
            maps = atoms if inverse is None else inverse @ atoms
            own[name] = RowMaps(maps.unsqueeze(1), index)
        self._mixing.set(own)

    def read(self, number: int) -> dict[str, Tensor]:
        """The atoms of one set, copied to the CPU, as `Attached.read` gives them."""
        return {name: p[number].detach().float().cpu().clone() for name, p in self.parameters.items()}

    def close(self) -> None:
        """The model is as it was."""
        self._mixing.close()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
