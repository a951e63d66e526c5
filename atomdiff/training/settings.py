"""TrainingSettings: every choice of a training run, validated where it is made.

The field names are diffusers' flag names, and the command line is generated from this one list. A field
that is None or an empty text means "as it suits": `defaults` fills it from the recipe or the base.
"""

import dataclasses
from dataclasses import dataclass

from atomdiff.base.architectures import ALIASES
from atomdiff.core.spec import CONV_FAMILIES
from atomdiff.training.combinations import check_together
from atomdiff.training.options import (
    ABOVE_0,
    DECAY,
    FILE_NAME,
    FROM_0,
    FROM_1,
    SHARE,
    TEXT,
    Range,
    check,
    option,
)  # fmt: skip
from atomdiff.training.recipes import DEFAULT, RECIPES, parse_size, refuse_beside_size

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
TRACKERS = (  # accelerate's
    "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
)  # fmt: skip


@dataclass(frozen=True)
class TrainingSettings:
    """All choices of a run. Raises SettingsError, naming the flag, for a value that cannot work."""

    instance_data_dir: str = option("", "folder with pictures of the subject", "instance_dir")
    base: str = option(
        "pocket",
        f"base model: {', '.join(ALIASES)}, a diffusers folder, a .safetensors file or a hub id",
        "pretrained_model_name_or_path",
    )
    revision: str = option("", "branch, tag or commit of a base on the hub", inert=True)
    variant: str = option("", "variant of the base's files, fp16 say", inert=True)
    pretrained_vae_model_name_or_path: str = option(
        "", "another autoencoder: a folder, a .safetensors file or a hub id", "vae"
    )
    prediction_type: str | None = option(
        None, "what the base predicts, where its files do not say it", choices=("epsilon", "v_prediction")
    )
    zero_terminal_snr: bool = option(
        False, "noise schedule that ends in pure noise, for bases with v_prediction that were trained so"
    )
    text_encoder_use_attention_mask: bool = option(
        False, "text encoder does not look at padding; not for SDXL, and other tools draw without it"
    )
    output_dir: str = option("", "where everything is written (default: outputs/NAME)", inert=True)
    name: str = option(
        "",
        "name of the concept and its file (default: the picture folder's name)",
        within=FILE_NAME,
        inert=True,
    )
    overwrite: bool = option(
        False, "replace a finished concept of that name; else the new one gets a new name", inert=True
    )
    dataset_name: str = option(
        "", "pictures from a dataset on the hub, user/name, instead of a folder", inert=True
    )
    dataset_config_name: str = option("", "folder of the dataset, where it has several", inert=True)
    image_column: str = option("image", "column of the pictures, where the dataset is a table", inert=True)
    trigger: str = option("", 'word that calls the subject (default: "sks")', within=TEXT)
    class_word: str = option(
        "", "what the subject is (default: the picture folder's name, without digits)", within=TEXT
    )
    instance_prompt: str = option("", 'prompt of the subject (default: "a TRIGGER CLASS")', within=TEXT)
    class_prompt: str = option("", 'prompt of its class (default: "a CLASS")', within=TEXT)
    caption_extension: str = option(
        "",
        "take text files of this extension, txt or caption, beside the pictures as their prompts; a "
        "metadata.jsonl in the folder is taken anyway",
    )
    caption_column: str = option("", "column of the captions in metadata.jsonl (default: text)")
    shuffle_caption: bool = option(False, "shuffle the tags of a caption, which commas part")
    keep_tokens: int = option(0, "so many first tags of a caption neither move nor go", within=FROM_0)
    caption_tag_dropout_rate: float = option(0.0, "chance of each tag to be left out", within=SHARE)
    caption_dropout_rate: float = option(
        0.0, "chance of a picture to be seen without its prompt", within=SHARE
    )
    caption_separator: str = option(
        ",", "what parts the tags of a caption", within=Range("a sign such as ,", str.strip)
    )
    with_prior_preservation: bool | None = option(
        None,
        "train on class pictures too, which keeps the class as it is (default: on, for all recipes but word)",
    )
    class_data_dir: str = option(
        "", "folder of class pictures; missing ones are made (default: a shared cache)"
    )
    prior_loss_weight: float = option(3.0, "weight of the class pictures in the loss", within=FROM_0)
    num_class_images: int | None = option(
        None, "class pictures to train on (default: 24 for pocket, else 100)", within=FROM_1
    )
    resolution: int | None = option(
        None,
        "side of the training pictures (default: native to the base)",
        within=Range("at least 16", lambda side: side >= 16),
    )
    center_crop: bool = option(
        False, "crop each picture to its middle square; else it keeps its shape, with as many pixels"
    )
    masked_loss: bool = option(
        True,
        "where a picture has a mask, NAME.mask.png beside it or its own transparency, learn what is white in "
        "it or can be seen",
    )
    unmasked_weight: float = option(
        0.1, "what the rest of a picture with a mask counts, from 0 to 1", within=SHARE
    )
    random_flip: bool = option(False, "mirror pictures at random; off, since few subjects are symmetric")
    seed: int = option(
        0, "seed of everything random", within=Range("at least 0 and below 2^63", range(2**63).__contains__)
    )
    train_batch_size: int | None = option(
        None, "pictures a step and process (default: 4 for pocket, else 1)", within=FROM_1
    )
    prior_batch_size: int | None = option(
        None,
        "class pictures a step and process (default: half of --train_batch_size, at least 1)",
        within=FROM_1,
    )
    sample_batch_size: int = option(
        4, "class and validation pictures drawn at once", within=FROM_1, inert=True
    )
    max_train_steps: int | None = option(
        None, "optimiser steps (default: 300 for pocket, else 600)", within=FROM_1
    )
    num_train_epochs: int | None = option(
        None, "rounds over the pictures, instead of --max_train_steps", within=FROM_1
    )
    gradient_accumulation_steps: int = option(1, "batches added up before each optimiser step", within=FROM_1)
    gradient_checkpointing: bool = option(False, "less memory for more time", inert=True)
    learning_rate: float | None = option(
        None,
        "learning rate of the atoms (default: measured on the base, so that they learn as fast as LoRA does "
        "at --match_lora_rate)",
        within=ABOVE_0,
    )
    linear_learning_rate: float | None = option(
        None,
        "learning rate of the linear atoms (default: --learning_rate if given, else measured too)",
        within=ABOVE_0,
    )
    token_learning_rate: float | None = option(
        None,
        "learning rate of the trigger's embedding (default: textual inversion's 5e-4 in SD 1.5, elsewhere "
        "in proportion to the size of the embeddings)",
        within=ABOVE_0,
    )
    match_lora_rate: float | None = option(
        None,
        "instead of --learning_rate: the rate at which LoRA of rank 4 on attention is known to learn well on "
        "this base (default: 1e-4)",
        within=ABOVE_0,
    )
    optimizer: str = option(
        "adamw",
        "adamw; prodigy, which finds the rates itself; schedulefree, AdamW whose mean needs no schedule",
        "optimizer_type",
        choices=("adamw", "prodigy", "schedulefree"),
    )
    scale_lr: bool = option(False, "multiply the rates by processes x accumulation x batch size")
    lr_scheduler: str = option("cosine", "how the rates change over the run", choices=SCHEDULES)
    lr_warmup_steps: int = option(0, "steps over which the rates rise from zero", within=FROM_0)
    lr_num_cycles: int = option(3, "periods of cosine_with_restarts", within=FROM_1)
    lr_power: float = option(2.0, "power of polynomial", within=FROM_0)
    snr_gamma: float = option(
        5.0, "min-SNR weighting of the timesteps, clipped at this SNR; 0: all weigh alike", within=FROM_0
    )
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 does not clip", within=FROM_0)
    adam_beta1: float = option(0.9, "Adam's first decay", within=DECAY)
    adam_beta2: float = option(0.999, "Adam's second decay", within=DECAY)
    adam_weight_decay: float = option(0.0, "decay of the atoms towards the base model", within=FROM_0)
    adam_epsilon: float = option(1e-8, "Adam's epsilon", within=ABOVE_0)
    max_drift: float = option(
        0.5,
        "most by which the base's prediction for the bare class may change, relative to itself: beyond it "
        "the run goes back, slows down and at last ends; 0: no bound",
        within=FROM_0,
    )
    drift_steps: int = option(25, "steps between measurements of that change; 0: never", within=FROM_0)
    noise_offset: float = option(
        0.0, "strength of noise that is constant over a channel, for dark and light pictures", within=FROM_0
    )
    ema_decay: float = option(
        0.0,
        "keep an exponential moving average of the atoms with this decay, 0.99 say, not the last ones",
        within=DECAY,
    )
    average_last: float = option(
        0.0,
        "keep the mean of the atoms over this last share of the steps, 0.25 say, not the last ones",
        within=SHARE,
    )
    recipe: str = option(
        DEFAULT.name,
        "what is trained, which each flag that follows here, up to --precision, can change: "
        + "; ".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items()),
        choices=tuple(RECIPES),
    )
    size: str | int = option(
        "",
        "instead of --recipe, the largest that the file may be: 4KB, 32KB, 256KB or a number of bytes; it "
        "chooses a recipe, up to --precision, so none of these can be given beside it",
    )
    num_atoms: int | None = option(
        None, "conv atoms a layer, 1 to kernel area; 0 trains no convolution", within=FROM_0
    )
    basis: str | None = option(None, "basis of the conv atoms", choices=("dct", "svd"))
    conv_layers: str | None = option(None, "regular expression choosing conv layers; empty: all over 1x1")
    linear_atoms: str | None = option(
        None, "linear layers with atoms: none, attn2_kv, attn2_kvo, attn2, attn, all, or a pattern"
    )
    linear_block: int | None = option(None, "side of the blocks of the linear atoms", within=FROM_1)
    conv_family: str | None = option(None, "how convolutions are decomposed", choices=CONV_FAMILIES)
    channel_groups: int | None = option(
        None, "recursive atoms: groups of input channels with coefficients of their own; 0: each channel"
    )
    second_atoms: int | None = option(None, "recursive atoms: atoms that each atom is made of")
    sparsity: float | None = option(
        None, "sparse atoms: weight of the coefficients' size when decomposing (default: 0.05)"
    )
    coef_block: int | None = option(
        None, "train the convolutions' coefficients too, in blocks of this side; 0: no"
    )
    train_token: bool | None = option(
        None, "train the trigger's word embedding too, kept in the same file (default: on)"
    )
    num_vectors: int | None = option(
        None,
        "embeddings of the trained trigger, at least: a word of fewer tokens is read several times over",
        within=Range("from 1 to 16", range(1, 17).__contains__),
    )
    precision: str | None = option(
        None,
        "number format in the concept file: int8 doubles it, fp16 doubles that (default: int4)",
        choices=("fp32", "fp16", "int8", "int4"),
        inert=True,
    )
    mixed_precision: str | None = option(
        None,
        "dtype of the frozen model; atoms stay fp32 (default: accelerate's)",
        choices=("no", "fp16", "bf16"),
    )
    allow_tf32: bool = option(False, "faster fp32 products on recent NVIDIA cards")
    enable_xformers_memory_efficient_attention: bool = option(False, "use xformers attention", inert=True)
    checkpointing_steps: int = option(
        100, "save a state to resume from every so many steps; 0: never", within=FROM_0, inert=True
    )
    checkpoints_total_limit: int | None = option(
        3, "keep the newest so many states; 0: all", within=FROM_0, inert=True
    )
    timeline_steps: int = option(
        25,
        "keep the concept as it is after every so many steps in NAME.timeline.safetensors, some KB each, to "
        "choose from with `atomdiff timeline`; 0: never",
        within=FROM_0,
        inert=True,
    )
    resume_from_checkpoint: str = option("", "go on from a saved state: a folder, or 'latest'", inert=True)
    validation_prompt: str = option("", "draw pictures of this prompt during training", inert=True)
    validation_prompts: tuple[str, ...] = option((), "more such prompts", inert=True)
    num_validation_images: int = option(4, "validation pictures at a time", within=FROM_1, inert=True)
    validation_steps: int = option(100, "steps between validation pictures", within=FROM_1, inert=True)
    report_to: str = option("none", "log of the run", choices=("none", "all", *TRACKERS), inert=True)
    logging_dir: str = option(
        "logs", "folder of the log, inside the output folder unless absolute", inert=True
    )

    push_to_hub: bool = option(False, "put the finished concept on the hub", inert=True)
    hub_model_id: str = option("", "user/name on the hub (default: the concept's name, yours)", inert=True)
    hub_private: bool = option(False, "keep it private on the hub", "hub_private_repo", inert=True)

    @property
    def validations(self) -> tuple[str, ...]:
        """All prompts to draw during training, each once."""
        return tuple(dict.fromkeys(filter(None, (self.validation_prompt, *self.validation_prompts))))

    def __post_init__(self) -> None:
        check(self)
        if self.size != "":
            parse_size(self.size)
        usual = {item.name: item.default for item in dataclasses.fields(self)}
        refuse_beside_size({name: value for name, value in vars(self).items() if value != usual[name]})
        check_together(self)
