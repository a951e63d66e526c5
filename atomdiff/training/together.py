"""Several trainings in one batch on one frozen base: the price of K pictures, not of K processes.

Every training runs as it does alone, in a thread of its own, of which one works at a time. Only its UNet is
another: a copy of the modules around the very same weights, whose calls wait until all trainings wait. Then
the waiting samples are one batch, in which every row has the maps of its own training (see `core.mixed`), and
afterwards so are their gradients. The gradients of different trainings never meet, so each arrives where it
would alone, but for rounding.
"""

import contextlib
import copy
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.base import loading
from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.core.inject import Attached, attached_to
from atomdiff.core.mixed import RowMaps
from atomdiff.core.mixing import Mixing
from atomdiff.errors import AtomdiffError, Interrupted, SettingsError
from atomdiff.training.defaults import spec_of, suit_recipe
from atomdiff.training.reporting import Reporter
from atomdiff.training.run import fit
from atomdiff.training.settings import TrainingSettings


def train_together(
    settings: Sequence[TrainingSettings],
    base: Base,
    *,
    reporters: Sequence[Reporter] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Concept | AtomdiffError]:
    """Train with several settings at once, in one process. In the order of the settings: the concept, also
    saved as by `fit`, or the error with which that training ended; the others go on.

    Raises SettingsError for a training that cannot share a batch: one whose change is not a map of the
    weights, or in fp16 (bf16 can), or of a `size`.
    """
    settings = _suited(settings)
    told = list(reporters or [Reporter() for _ in settings])
    meeting = _Meeting(base.unet, len(settings), any(own.gradient_checkpointing for own in settings))
    results: list[Any] = [None] * len(settings)

    def work(number: int) -> None:
        with meeting.taking_part():
            try:
                alike = meeting.base_like(base)
                results[number] = fit(settings[number], reporter=told[number], base=alike, stop=stopped)
            except AtomdiffError as error:
                results[number] = error
            except BaseException as error:
                results[number] = error
                raised.append(error)

    raised: list[BaseException] = []
    asked = threading.Event()
    stopped = lambda: asked.is_set() or stop()  # noqa: E731
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(settings))]
    for thread in threads:
        thread.start()
    try:
        meeting.serve(asked)
    finally:
        for thread in threads:
            thread.join()
        meeting.close()
    if raised:
        raise raised[0]
    if asked.is_set():
        raise Interrupted(next((str(r) for r in results if isinstance(r, Interrupted)), "Stopped."))
    return results


def _suited(settings: Sequence[TrainingSettings]) -> list[TrainingSettings]:
    """The settings with their recipes filled in. Raises SettingsError where they cannot share a batch."""
    if any(own.size != "" for own in settings):
        raise SettingsError("Trainings that share a batch take a --recipe each, not a --size.")
    settings = [suit_recipe(own) for own in settings]
    for own in settings:
        if not spec_of(own).is_map or own.channel_groups != 1:
            raise SettingsError(
                "Trainings share a batch where a layer's change is one map: take conv_family 'atoms' and "
                "coef_block 0, or train them one after another."
            )
        if (own.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
            raise SettingsError("Trainings that share a batch take mixed_precision bf16 or no, not fp16.")
    if len({own.mixed_precision for own in settings}) > 1:
        raise SettingsError("Trainings that share a batch have one mixed_precision; give all the same.")
    return settings


def unet_like(unet: nn.Module) -> Any:
    """Modules like a UNet's around the same weights, to carry atoms of their own."""
    held = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in held})


def row_maps(attached: Sequence[Attached], owners: Sequence[int]) -> dict[str, RowMaps]:
    """For each layer that any of several trainings changes: its maps, differentiable, in a batch whose row b
    belongs to training `owners[b]`."""
    found = {}
    for name in dict.fromkeys(name for own in attached for name in own.layers):
        there = [i for i, own in enumerate(attached) if name in own.layers]
        maps: list[Any] = [attached[i].layers[name].family() for i in there]
        index = tuple(there.index(owner) if owner in there else -1 for owner in owners)
        found[name] = RowMaps(torch.stack(maps).unsqueeze(1), index)
    return found


@dataclasses.dataclass(eq=False)
class _Asked:
    """What a training waits for: an answer of the UNet to `inputs`, or, without any, its gradients."""

    unet: Any
    inputs: tuple[Tensor, Tensor, Tensor, dict[str, Tensor] | None] | None
    autocast: torch.dtype | None
    answer: Tensor | None = None
    error: BaseException | None = None
    done: bool = False


@dataclasses.dataclass
class _Pass:
    """A joint pass whose gradients are still to come."""

    answer: Tensor
    leaves: list[Tensor]
    layers: dict[str, RowMaps]


class _Meeting:
    """Where trainings wait for each other. Whoever holds `_turn` works; `serve` answers when all wait."""

    def __init__(self, unet: Any, count: int, checkpointing: bool) -> None:
        self._unet, self._mixing = unet, Mixing(unet)
        self._turn = threading.Condition()
        self._live = count
        self._waiting: list[_Asked] = []
        self._passes: list[_Pass] = []
        self._checkpointing = checkpointing
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()

    def close(self) -> None:
        """The UNet is as it was."""
        self._mixing.close()
        if self._checkpointing:
            self._unet.disable_gradient_checkpointing()
        self._unet.eval()

    def base_like(self, base: Base) -> Base:
        """The base with a UNet of its own whose training calls come here."""
        unet = unet_like(self._unet)
        own = unet.forward

        def forward(
            sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            text = encoder_hidden_states
            if not torch.is_grad_enabled():  # drawing, and what the base answers without the atoms
                return own(sample, timestep, text, *args, **kwargs)
            device = sample.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            inputs = (sample, timestep, text, kwargs.get("added_cond_kwargs"))
            return (self._ask(_Asked(unet, inputs, autocast)),)

        unet.forward = forward
        unet.finish_backward = lambda: self._ask(_Asked(unet, None, None))
        parts = {name: part for name, part in base.pipe.components.items() if name != "unet"}
        with loading.quiet():
            pipe = type(base.pipe)(**parts, unet=unet, **_switches(base.pipe))
        pipe.set_progress_bar_config(disable=True)
        return dataclasses.replace(base, pipe=pipe)

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[None]:
        """Within: one training works, while all others wait; afterwards it is not waited for."""
        with self._turn:
            try:
                yield
            finally:
                self._live -= 1
                self._turn.notify_all()

    def _ask(self, asked: _Asked) -> Tensor | None:
        self._waiting.append(asked)
        self._turn.notify_all()
        self._turn.wait_for(lambda: asked.done)
        if asked.error is not None:
            raise asked.error
        return asked.answer

    def serve(self, stop: threading.Event) -> None:
        """Answers until every training has ended; Ctrl-C sets `stop`."""
        with self._turn:
            while self._live:
                try:
                    self._turn.wait_for(lambda: len(self._waiting) == self._live, timeout=1.0)
                except KeyboardInterrupt:
                    stop.set()
                if self._live and len(self._waiting) == self._live:
                    self._answer()

    def _answer(self) -> None:
        calls = [asked for asked in self._waiting if asked.inputs is not None]
        answered = calls or self._waiting
        try:
            if calls:
                for alike in _alike(calls):
                    self._forward(alike)
            else:
                self._backward()
        except BaseException as error:  # every training that took part hears of it
            for asked in answered:
                asked.error = error
        for asked in answered:
            asked.done = True
        self._waiting = [asked for asked in self._waiting if not asked.done]
        self._turn.notify_all()

    def _forward(self, calls: Sequence[_Asked]) -> None:
        inputs: list[Any] = [asked.inputs for asked in calls]
        counts = [len(own[0]) for own in inputs]
        owners = [i for i, count in enumerate(counts) for _ in range(count)]
        layers = row_maps([own for asked in calls if (own := attached_to(asked.unet))], owners)
        sample, timestep, text = (torch.cat([own[part] for own in inputs]) for part in range(3))
        added = None
        if inputs[0][3]:
            added = {key: torch.cat([own[3][key] for own in inputs]) for key in inputs[0][3]}
        autocast = calls[0].autocast
        with self._mixed(layers), torch.autocast(sample.device.type, autocast, enabled=autocast is not None):
            answer = self._unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        leaves = [part.detach().requires_grad_() for part in answer.split(counts)]
        self._passes.append(_Pass(answer, leaves, layers))
        for asked, leaf in zip(calls, leaves, strict=True):
            asked.answer = leaf

    def _backward(self) -> None:
        """The gradients of all passes that were made since the last time."""
        passes, self._passes = self._passes, []
        for made in passes:
            grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in made.leaves]
            with self._mixed(made.layers):  # checkpointing computes anew what it needs
                torch.autograd.backward(made.answer, torch.cat(grads))

    @contextlib.contextmanager
    def _mixed(self, layers: dict[str, RowMaps]) -> Iterator[None]:
        self._mixing.set(layers)
        try:
            yield
        finally:
            self._mixing.set({})


def _alike(calls: Sequence[_Asked]) -> list[list[_Asked]]:
    """Calls whose samples fit into one batch."""
    found: dict[Any, list[_Asked]] = {}
    for asked in calls:
        assert asked.inputs is not None
        shapes = asked.inputs[0].shape[1:], asked.inputs[2].shape[1:]
        found.setdefault((shapes, asked.autocast), []).append(asked)
    return list(found.values())


def _switches(pipe: Any) -> dict[str, Any]:
    """What a pipeline is made with beside its components."""
    if hasattr(pipe, "text_encoder_2"):
        return {"add_watermarker": False}
    return {"requires_safety_checker": False}
