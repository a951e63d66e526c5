"""The extension for A1111 and Forge over the source of a real Forge, against concepts as atomdiff has them.

    python -m benchmarks.webui --forge FOLDER [--check]

FOLDER is a checkout of Forge (Classic). Its extra networks, embedding database, page of cards, UNet and model
patcher are its own; what needs its running web page (`modules.shared` and the like) is stood in by empty
modules. With --check the exit status is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import atomdiff
from atomdiff.core.inject import fold
from atomdiff.errors import AtomdiffError
from atomdiff.files.safetensors_file import to_bytes
from atomdiff.integrations.exports.embedding import embeddings_of
from atomdiff.integrations.words import Learned

from .comfyui import CONTEXT, SHAPE, WIDTHS, apart, random_concept
from .full_size.original_names import unet_name
from .report import Target, command, conclude, one_sentence

EXTENSION = Path(__file__).parent.parent / "sd-webui-atomdiff"
LIMIT = 1e-5
WORDS = ("a", "photo", "of", "sks", "zwx", "dog")


class Encoder(nn.Module):
    """Of the web UI's text encoder what its database of embeddings asks for: tokens, and a table of them."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(len(WORDS), CONTEXT)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [[WORDS.index(word) for word in text.split()] for text in texts]


class Forge:
    """The host: its modules, and a Stable Diffusion with the weights of a diffusers UNet."""

    def __init__(self, folder: Path, unet: UNet2DConditionModel) -> None:
        self._folder = folder
        own, sys.argv = sys.argv, sys.argv[:1]  # it reads the command line when it is imported
        sys.path[:0] = [str(folder), str(EXTENSION), str(EXTENSION / "scripts")]
        try:
            self._stand_in()
            self.networks = importlib.import_module("modules.extra_networks")
            inversion = importlib.import_module("modules.textual_inversion.textual_inversion")
            self.database = inversion.EmbeddingDatabase()
            sys.modules["modules.sd_hijack"].model_hijack = SimpleNamespace(embedding_db=self.database)  # type: ignore[attr-defined]
            importlib.import_module("ldm_patched.modules.args_parser").args.always_cpu = True
            patcher = importlib.import_module("ldm_patched.modules.model_patcher")
            shape = importlib.import_module("ldm_patched.ldm.modules.diffusionmodules.openaimodel")
            self.pages = importlib.import_module("modules.ui_extra_networks")
        except ImportError as error:
            raise AtomdiffError(f"No Forge can be imported from {folder}: {error}.") from None
        finally:
            sys.argv = own
        model, own_unet = nn.Module(), shape.UNetModel(**SHAPE)
        model.diffusion_model = own_unet
        state = {unet_name(name, unet.config): held for name, held in unet.state_dict().items()}
        own_unet.load_state_dict(state)
        cpu = torch.device("cpu")
        self.unet = patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)
        objects = SimpleNamespace(unet=self.unet)
        self.model = SimpleNamespace(
            forge_objects=objects, forge_objects_original=SimpleNamespace(unet=self.unet),
            cond_stage_model=Encoder(), is_sdxl=False,
        )  # fmt: skip
        self.script = importlib.import_module("atomdiff_script")
        self.networks.initialize()
        self.script.before_ui()

    def _stand_in(self) -> None:
        """Empty modules in the place of those that belong to a running page."""
        parts: dict[str, dict[str, Any]] = {
            "shared": {"html": lambda name: "", "opts": SimpleNamespace(samples_format="png")},
            "devices": {"device": torch.device("cpu")}, "hashes": {}, "sd_hijack": {},
            "scripts": {"Script": object, "AlwaysVisible": object()},
            "script_callbacks": {"on_before_ui": lambda call: None},
            "ui_extra_networks_user_metadata": {}, "infotext_utils": {"image_from_url_text": None},
            "images": {"read_info_from_image": None, "save_image_with_geninfo": None},
            "util": {"MassFileLister": _Lister}, "sd_models": {}, "cache": {},
        }  # fmt: skip
        importlib.import_module("modules")
        for name, held in parts.items():
            made = ModuleType(f"modules.{name}")
            made.__dict__.update(held)
            sys.modules[made.__name__] = made
            setattr(sys.modules["modules"], name, made)

    @contextmanager
    def drawing(self, prompt: str) -> Iterator[SimpleNamespace]:
        """What the host does with its extra networks around drawing a prompt."""
        told: list[str] = []
        runner = SimpleNamespace(after_extra_networks_activate=lambda p, **_: None)
        p = SimpleNamespace(
            sd_model=self.model, scripts=runner, iteration=0, prompts=[prompt], seeds=[0], subseeds=[0],
            extra_generation_params={}, comment=told.append, told=told,
        )  # fmt: skip
        p.prompt, data = self.networks.parse_prompt(prompt)
        self.networks.activate(p, data)
        self.model.forge_objects = SimpleNamespace(unet=self.unet)  # after_applying_lora.shallow_copy()
        self.script.Atoms().process_before_every_sampling(p)
        try:
            yield p
        finally:
            self.networks.deactivate(p, data)

    def predict_as_a1111(
        self, concept: atomdiff.Concept, strength: float, inputs: tuple[Tensor, ...]
    ) -> Tensor:
        """ε̂ with the concept among the networks of the Lora extension, whose modules make what is added to
        a weight; adding it, and putting the weight back, is stood in."""
        sys.path.insert(0, str(self._folder / "extensions-builtin" / "Lora"))
        model = self.unet.model
        places = {name.replace(".", "_"): part for name, part in model.named_modules()}
        sd_model = SimpleNamespace(model=model, network_layer_mapping=places)
        networks: Any = ModuleType("networks")
        networks.loaded_networks = []
        sys.modules["networks"] = networks
        sys.modules["atomdiff_network"].add_network(sd_model, "dog", concept, strength)
        held = {}
        with torch.no_grad():
            for key, part in networks.loaded_networks[0].modules.items():
                held[key] = places[key].network_weights_backup = places[key].weight.clone()
                places[key].weight += part.calc_updown(places[key].weight)[0]
            made = model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
            for key, own in held.items():
                places[key].weight.copy_(own)
                del places[key].network_weights_backup
        return made

    def predict(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """ε̂ with the patches in the weights, which are taken out again."""
        patched = self.model.forge_objects.unet
        patched.patch_model(torch.device("cpu"))
        try:
            with torch.no_grad():
                return patched.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
        finally:
            patched.unpatch_model()


class _Lister:
    def mctime(self, file: str) -> tuple[float, float]:
        return 0.0, 0.0


def differences(folder: Path, library: Path) -> list[Target]:
    """What is compared."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=WIDTHS, cross_attention_dim=CONTEXT, attention_head_dim=8
    ).eval()
    dog, cat = random_concept(unet, "sks", 1), random_concept(unet, "zwx", 2)
    other = UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 64, 64, 64), cross_attention_dim=CONTEXT
    )
    stranger = random_concept(other, "sks", 3)
    shelf = atomdiff.Library(library)
    ids = {}
    for name, concept in (("dog", dog), ("cat", cat), ("stranger", stranger)):
        ids[name] = shelf.rename(shelf.add(to_bytes(concept, "fp32")).id, name).id
    forge = Forge(folder, unet)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([500, 200]), torch.randn(2, 77, CONTEXT)

    def ours(*parts: tuple[atomdiff.Concept, float]) -> Tensor:
        with torch.no_grad(), fold(unet, [(concept.deltas(unet), strength) for concept, strength in parts]):
            return unet(*inputs).sample

    def theirs(prompt: str) -> Tensor:
        with forge.drawing(prompt):
            return forge.predict(inputs)

    plain = theirs("a dog")
    table = forge.model.cond_stage_model.token_embedding.weight
    word = embeddings_of([WORDS.index("sks")], table, Learned("sks", dog.token["token"][:, 0], 0.8))
    with forge.drawing("a photo of sks dog <atom:dog:0.8>") as p:
        tokens = forge.model.cond_stage_model.tokenize([p.prompt.strip()])[0]
        found, length = forge.database.find_embedding_at_position(tokens, tokens.index(WORDS.index("sks")))
        spoken = float((found.vec - word).abs().max()) if found is not None and length == 1 else 1.0
        hashed = p.extra_generation_params.get("Atom hashes") == f"dog: {ids['dog'][:12]}"
    left = forge.database.word_embeddings or forge.database.ids_lookup
    exact: Callable[[bool], float] = float
    targets = [
        Target("ε̂ of the base", apart(plain, ours()), high=LIMIT),
        Target("ε̂ with a concept at 0.8", apart(theirs("<atom:dog:0.8> x"), ours((dog, 0.8))), high=LIMIT),
        Target(
            "ε̂ with a second one at -0.5",
            apart(theirs("<atom:dog:0.8><atom:cat:-0.5>"), ours((dog, 0.8), (cat, -0.5))),
            high=LIMIT,
        ),
        Target(
            "ε̂ through A1111's Lora extension",
            apart(forge.predict_as_a1111(dog, 0.8, inputs), ours((dog, 0.8))),
            high=LIMIT,
        ),
        Target("the learned word's vectors", spoken, high=1e-6),
        Target("its hash in the picture's text", exact(hashed), low=1),
        Target("the word is forgotten", exact(not left), low=1),
        Target("moved by the concept", apart(ours((dog, 0.8)), plain), low=0.01),
    ]
    for name, prompt, sentence in (
        ("another base", "<atom:stranger>", "cannot be used on"),
        ("an unknown name", "<atom:nobody:1>", "no concept called 'nobody'"),
        ("a strength of NaN", "<atom:dog:nan>", "strength"),
        ("a name used twice", "<atom:dog:0><atom:dog:1>", "twice"),
    ):
        with forge.drawing(prompt) as p:
            told = len(p.told) == 1 and sentence in p.told[0] and "\n" not in p.told[0]
            same = torch.equal(forge.predict(inputs), plain)
        targets.append(Target(f"{name} is told, the base draws", exact(told and same), low=1))
    targets.append(Target("ε̂ of the base afterwards", float((theirs("a dog") - plain).abs().max()), high=0))
    page = next(page for page in forge.pages.extra_pages if page.name == "concepts")
    cards = list(page.list_items())
    prompts = sorted(card["prompt"] for card in cards)
    wanted = '"<atom:dog:" + opts.extra_networks_default_multiplier + "> sks"'
    return [*targets, Target("cards of the library", exact(len(cards) == 3 and wanted in prompts), low=1)]


def main() -> None:
    parser = command("webui", __doc__)
    parser.add_argument("--forge", type=Path, required=True, help="a checkout of Forge (Classic)")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as library, _library(Path(library)):
        targets = differences(a.forge, Path(library))
    rows = [(target.name, f"{target.value:.1e}") for target in targets]
    table = ("", "difference"), [row for row in rows if "ε̂" in row[0]]
    conclude(a, "Forge against atomdiff", table, targets)


@contextmanager
def _library(folder: Path) -> Iterator[None]:
    """The user's library is this folder for a while."""
    before = environ.get("ATOMDIFF_LIBRARY")
    environ["ATOMDIFF_LIBRARY"] = str(folder)
    try:
        yield
    finally:
        environ.pop("ATOMDIFF_LIBRARY")
        if before is not None:
            environ["ATOMDIFF_LIBRARY"] = before


if __name__ == "__main__":
    with one_sentence():
        main()
