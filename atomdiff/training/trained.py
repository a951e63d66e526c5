"""What a run trains: atoms in the UNet, the vectors of a learned trigger, their optimiser, a mean of them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atomdiff.core.inject import Attached, attach
from atomdiff.errors import TrainingError
from atomdiff.training.defaults import spec_of
from atomdiff.training.optimiser import (
    LastMean,
    MovingMean,
    moments_of,
    optimiser_for,
    schedule_free_mean,
    set_moments,
)
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.base.textual_inversion import TriggerToken


class Trained:
    """The atoms are attached to the UNet when this is made. Raises AtomdiffError where the spec does not fit
    it. Of `processes` each holds the same numbers."""

    def __init__(
        self,
        settings: TrainingSettings,
        unet: nn.Module,
        token: "TriggerToken | None",
        processes: int,
        decomposing: Callable[[int, int], None],
    ) -> None:
        self.attached: Attached = attach(unet, spec_of(settings), seed=settings.seed, progress=decomposing)
        self._token = token
        vectors = token.vectors if token else {}
        self.optimiser = optimiser_for(settings, self.attached, vectors.values(), processes)
        self._mean = (
            MovingMean(settings.ema_decay)
            if settings.ema_decay
            else LastMean(settings.average_last, int(settings.max_train_steps or 0))
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by name: the atoms by layer, then the vectors of a learned trigger."""
        vectors = self._token.vectors if self._token else {}
        return self.attached.named_atoms() | {f"#{key}": vector for key, vector in vectors.items()}

    def count(self, done: int) -> None:
        """Take the numbers as they are after `done` steps into their mean."""
        self._mean.count(self.parameters(), done)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """What a concept keeps: the atoms and a learned trigger, copied to the CPU, the present numbers, or a
        mean of them where the settings ask for one."""
        atoms, token = self.attached.read(), self._token.read() if self._token else None
        means = self._mean.means or schedule_free_mean(self.optimiser, self.parameters())
        for name, mean in means.items():
            kept, key = (token, name[1:]) if token and name.startswith("#") else (atoms, name)
            kept[key] = mean.float().cpu().clone()
        return atoms, token

    def tensors(self) -> dict[str, Tensor]:
        """The numbers, their mean and the optimiser's moments, copied, for `restore`."""
        parameters = self.parameters()
        tensors = {f"atoms/{name}": values.detach().clone() for name, values in parameters.items()}
        return tensors | self._mean.tensors() | moments_of(self.optimiser, parameters)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises TrainingError where they are of other layers."""
        own = self.parameters()
        shapes = {name[6:]: t.shape for name, t in tensors.items() if name.startswith("atoms/")}
        if {name: parameter.shape for name, parameter in own.items()} != shapes:
            raise TrainingError(
                "The saved state has atoms of other layers; resume on the base it was made on."
            )
        for name, parameter in own.items():
            parameter.copy_(tensors[f"atoms/{name}"])
        self._mean.restore(tensors, own)
        self.optimiser.state.clear()
        set_moments(self.optimiser, own, tensors)
