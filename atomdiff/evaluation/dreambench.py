"""DreamBench: 30 subjects x 25 prompts x 4 pictures, the protocol of DreamBooth (Ruiz et al. 2023, section
4).

Subjects, their classes and the two lists of prompts are those that were published with the paper's data set
(github.com/google/dreambooth, CC BY 4.0). Pictures of the subjects are read from a folder with a folder for
each.
"""

from dataclasses import dataclass

PICTURES = 4  # of each prompt
PROMPTS = 25  # of each subject

OBJECTS = {
    "backpack": "backpack", "backpack_dog": "backpack", "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can", "candle": "candle", "clock": "clock", "colorful_sneaker": "sneaker", "duck_toy": "toy",
    "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy",
    "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy", "red_cartoon": "cartoon",
    "robot_toy": "toy", "shiny_sneaker": "sneaker", "teapot": "teapot", "vase": "vase",
    "wolf_plushie": "stuffed animal",
}  # fmt: skip
LIVE = {
    "cat": "cat", "cat2": "cat", "dog": "dog", "dog2": "dog", "dog3": "dog", "dog5": "dog", "dog6": "dog",
    "dog7": "dog", "dog8": "dog",
}  # fmt: skip
PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
OBJECT_PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
LIVE_THINGS = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf",
    "wearing a black top hat and a monocle", "in a chef outfit", "in a firefighter outfit",
    "in a police outfit", "wearing pink glasses", "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")


@dataclass(frozen=True)
class Subject:
    """One of the 30: `name` is its folder's, `class_word` what it is."""

    name: str
    class_word: str

    def prompts(self, trigger: str) -> list[str]:
        """The 25 prompts with a trigger; with "" those of the class, which CLIP-T compares to."""
        called = f"{trigger} {self.class_word}".strip()
        own = LIVE_THINGS if self.name in LIVE else OBJECT_PLACES
        return [f"a {called} {where}" for where in (*PLACES, *own)] + [f"a {look} {called}" for look in LOOKS]

    @property
    def class_prompt(self) -> str:
        """What drift is measured on."""
        return f"a {self.class_word}"


SUBJECTS = tuple(Subject(name, word) for name, word in sorted({**OBJECTS, **LIVE}.items()))
