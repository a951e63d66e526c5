# atomdiff for ComfyUI. Copyright (C) the atomdiff authors. GPL-3.0-or-later, see LICENSE.
"""The nodes: a concept from its file or card, and from a picture of the input folder."""

from pathlib import Path

import folder_paths

from atomdiff.files.read_any import read_any

from .patches import patch_model, teach_word

FOLDER = "atomdiff"
ENDINGS = {".safetensors", ".png", ".jpg", ".jpeg", ".webp"}
STRENGTH = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def apply(model, clip, concept, strength_model, strength_clip):
    """(MODEL, CLIP) with the concept in them; at strength 0 what came in."""
    if strength_model != 0:
        model = patch_model(model, concept, strength_model)
    if strength_clip != 0 and concept.token:
        clip = teach_word(clip, concept, strength_clip)
    return model, clip, concept.trigger


def inputs(**source):
    """What both nodes ask for, in the order on the screen."""
    strengths = {"strength_model": ("FLOAT", STRENGTH), "strength_clip": ("FLOAT", STRENGTH)}
    return {"required": {"model": ("MODEL",), "clip": ("CLIP",), **source, **strengths}}


class LoadConcept:
    """A concept file or card of models/atomdiff, put into a model and its text encoder."""

    @classmethod
    def INPUT_TYPES(cls):
        names = [n for n in folder_paths.get_filename_list(FOLDER) if Path(n).suffix.lower() in ENDINGS]
        return inputs(concept=(names,))

    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "trigger")
    FUNCTION = "load"
    CATEGORY = "loaders"

    def load(self, model, clip, concept, strength_model, strength_clip):
        found = read_any(Path(folder_paths.get_full_path_or_raise(FOLDER, concept)))
        return apply(model, clip, found.concept, strength_model, strength_clip)


class ConceptFromPicture(LoadConcept):
    """The same of a picture in the input folder: a card, or a picture that shows the concept's QR codes."""

    @classmethod
    def INPUT_TYPES(cls):
        pictures = ENDINGS - {".safetensors"}
        found = Path(folder_paths.get_input_directory()).iterdir()
        names = sorted(path.name for path in found if path.suffix.lower() in pictures)
        return inputs(picture=(names, {"image_upload": True}))

    def load(self, model, clip, picture, strength_model, strength_clip):
        found = read_any(Path(folder_paths.get_annotated_filepath(picture)))
        return apply(model, clip, found.concept, strength_model, strength_clip)


NODE_CLASS_MAPPINGS = {"AtomdiffLoadConcept": LoadConcept, "AtomdiffConceptFromPicture": ConceptFromPicture}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AtomdiffLoadConcept": "Load atomdiff concept",
    "AtomdiffConceptFromPicture": "Load atomdiff concept from a picture",
}
