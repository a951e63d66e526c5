"""LoRAs and textual inversions of others, in a base for as long as pictures are drawn.

diffusers' and PEFT's own loaders read and apply them. Concepts act beside them on the layers' own weights,
y = (W + Σ sᵢ ΔWᵢ + Σ wⱼ BⱼAⱼ) x, and afterwards the very parameters that were there are back. As in A1111 an
embedding's word is the name of its file. Files come from strangers: safetensors alone is read.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.base import loading
from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import ENCODERS, find_end, word_pattern
from atomdiff.errors import ConceptError, SettingsError, sentence_of
from atomdiff.sampling.settings import check_files

if TYPE_CHECKING:
    from torch import Tensor

MAX_VECTORS = 75  # of an embedding: what a text encoder reads at once
_DOWN = re.compile(r"\.(lora_down|lora_A|down)\b")  # one tensor a layer, in kohya's, PEFT's and older names
_LORA = re.compile(r"lora|hada_w|lokr_|\.diff\b|oft_")
_ENCODERS = {"clip_l": ENCODERS["token"], "clip_g": ENCODERS["token2"]}
Said = Callable[[str], str]
"""From a prompt as people write it to one as the text encoders must be given it."""


@contextlib.contextmanager
def loaded(
    base: Base, loras: Sequence[tuple[Path, float]] = (), embeddings: Sequence[Path] = ()
) -> Iterator[Said]:
    """Within: LoRAs act at their strengths, and prompts may say the words of embeddings.

    Raises ConceptError for a file that is broken, pickled or of another base, SettingsError for a strength
    that is no finite number or two files of one name; then the base is as it was.
    """
    check_files(loras, embeddings)
    with _with_loras(base, loras), _with_embeddings(base, embeddings) as said:
        yield said


def kind_of(path: Path) -> str:
    """ "lora" or "embedding", by the names and shapes in a file. Raises ConceptError for anything else."""
    from safetensors import SafetensorError, safe_open

    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from None
    if any(_LORA.search(key) for key in shapes):
        return "lora"
    if set(shapes) == set(_ENCODERS) or (len(shapes) == 1 and len(next(iter(shapes.values()))) in (1, 2)):
        return "embedding"
    raise ConceptError(f"{path.name!r} is neither a LoRA nor a textual inversion: give one of these.")


def _read(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file. Raises ConceptError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_pickle(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from None
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ConceptError(f"The {what} {path.name!r} holds numbers that are not finite: it is damaged.")
    return tensors


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() != ".safetensors":
        raise ConceptError(
            f"{path.name!r} is no .safetensors file, and .pt, .bin and .ckpt files may run programs when "
            "they are opened: take the .safetensors version of it."
        )


def _broken(path: Path, error: Exception) -> ConceptError:
    reason = getattr(error, "strerror", None) or "it is broken or cut short"
    return ConceptError(f"{str(path)!r} cannot be read ({reason}): check the path, or fetch it again.")


# ------------------------------------------------------------------------------------------- LoRAs


@contextlib.contextmanager
def _with_loras(base: Base, loras: Sequence[tuple[Path, float]]) -> Iterator[None]:
    if not loras:
        yield
        return
    read = [(path, _read(path, "LoRA")) for path, _ in loras]
    pipe = base.pipe
    if any(pipe.get_list_adapters().values()):
        raise SettingsError(
            "The base's pipeline has LoRAs of its own: unload them, or load all of them there."
        )
    names = [f"lora_{number}" for number in range(len(read))]
    try:
        for name, (path, tensors) in zip(names, read, strict=True):
            _put_in(base, name, path, tensors)
        pipe.set_adapters(names, [float(strength) for _, strength in loras])
        yield
    finally:
        with _hushed():
            pipe.unload_lora_weights()


def _put_in(base: Base, name: str, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ConceptError for a LoRA that diffusers cannot put into all of its layers."""
    try:
        with _hushed():
            base.pipe.load_lora_weights(dict(tensors), adapter_name=name)
    except Exception as error:  # diffusers and PEFT raise nearly anything on a file of another model
        if sentence_of(error):
            raise
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise ConceptError(
            f"The LoRA {path.name!r} does not fit {base.name!r} ({base.passport.architecture}), or is of a "
            f"kind that diffusers does not load ({reason}): take one for this base."
        ) from error
    wanted = sum(bool(_DOWN.search(key)) for key in tensors)
    models = [getattr(base.pipe, part, None) for part in ("unet", "text_encoder", "text_encoder_2")]
    layers = [layer for model in models if model is not None for layer in model.modules()]
    found = sum(name in getattr(layer, "lora_A", {}) for layer in layers)
    if found < max(wanted, 1):
        raise ConceptError(
            f"The LoRA {path.name!r} was made for another base than {base.name!r}, which has {found} of its "
            f"{wanted} layers: take one for this base."
        )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without the advice that libraries give while they load."""
    with loading.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -------------------------------------------------------------------------------------- embeddings


@contextlib.contextmanager
def _with_embeddings(base: Base, embeddings: Sequence[Path]) -> Iterator[Said]:
    if not embeddings:
        yield lambda prompt: prompt
        return
    read = [_vectors(base, path) for path in embeddings]
    tokens = [_tokens(number, len(next(iter(own.values())))) for number, own in enumerate(read)]
    with contextlib.ExitStack() as stack:
        for key in read[0]:
            tokenizer, encoder = _ENCODERS[key]
            stack.enter_context(_as_before(base.pipe, tokenizer, encoder))
            rows = [row for own in read for row in own[key]]
            with _hushed():
                base.pipe.load_textual_inversion(
                    rows, [token for own in tokens for token in own],
                    getattr(base.pipe, tokenizer), getattr(base.pipe, encoder),
                )  # fmt: skip
            find_end(getattr(base.pipe, encoder), getattr(base.pipe, tokenizer), more_tokens=True)
        called = sorted(zip(embeddings, tokens, strict=True), key=lambda pair: -len(pair[0].stem))
        words = [(word_pattern(path.stem), " ".join(own)) for path, own in called]  # "bad hands" before "bad"

        def said(prompt: str) -> str:
            for pattern, instead in words:
                prompt = re.sub(pattern, instead, prompt)
            return prompt

        yield said


def _vectors(base: Base, path: Path) -> dict[str, Tensor]:
    """Text encoder -> the vectors (n, d) for it. Raises ConceptError."""
    tensors = _read(path, "embedding")
    keys = [key for key, (_, encoder) in _ENCODERS.items() if getattr(base.pipe, encoder, None) is not None]
    if len(keys) == 1 and len(tensors) == 1:  # named by its word, or `emb_params` as A1111 does
        tensors = {keys[0]: next(iter(tensors.values()))}
    widths = {
        key: int(getattr(base.pipe, _ENCODERS[key][1]).get_input_embeddings().weight.shape[1]) for key in keys
    }
    made = {key: tensor.reshape(-1, tensor.shape[-1]) for key, tensor in tensors.items() if tensor.ndim}
    shapes = {key: tuple(tensor.shape) for key, tensor in made.items()}
    counts = {count for count, _ in shapes.values()}
    if {key: width for key, (_, width) in shapes.items()} != widths or len(counts) != 1:
        wanted = " and ".join(map(str, widths.values()))
        there = " and ".join(str(shape[-1]) for shape in shapes.values())
        raise ConceptError(
            f"The embedding {path.name!r} has vectors of {there or 'no'} numbers, and {base.name!r} needs "
            f"{wanted}: take one for this base."
        )
    if not 1 <= max(counts) <= MAX_VECTORS:
        raise ConceptError(
            f"The embedding {path.name!r} has {max(counts)} vectors, and one has 1 to {MAX_VECTORS}."
        )
    return made


@contextlib.contextmanager
def _as_before(pipe: Any, tokenizer_name: str, encoder_name: str) -> Iterator[None]:
    """Afterwards the tokenizer and the table of embeddings are those that were there, bit for bit."""
    tokenizer, encoder = getattr(pipe, tokenizer_name), getattr(pipe, encoder_name)
    table = encoder.get_input_embeddings()
    weight, rows = table.weight, table.num_embeddings
    data, size = weight.data, encoder.config.vocab_size
    setattr(pipe, tokenizer_name, copy.deepcopy(tokenizer))
    try:
        yield
    finally:
        find_end(encoder, tokenizer, more_tokens=False)
        setattr(pipe, tokenizer_name, tokenizer)
        weight.data, table.weight, table.num_embeddings = data, weight, rows
        encoder.set_input_embeddings(table)
        encoder.config.vocab_size = size


def _tokens(number: int, count: int) -> list[str]:
    """What the vectors of an embedding are called: so that no trigger is found in it."""
    letters = [chr(ord("a") + digit) for digit in range(26)]
    numeral = [one + other for one in letters for other in letters]
    return [f"<xqz{numeral[number]}{numeral[i]}>" for i in range(count)]
