"""What would make a run fit into a GPU's memory."""

from atomdiff.training.settings import TrainingSettings


def relief(settings: TrainingSettings) -> str:
    """The three flags that would help most and are not set yet, as the end of a sentence."""
    batch, turns = settings.train_batch_size or 1, settings.gradient_accumulation_steps
    steps = (
        (not settings.gradient_checkpointing, "--gradient_checkpointing"),
        (batch > 1, f"--train_batch_size 1 --gradient_accumulation_steps {batch * turns}"),
        (settings.mixed_precision == "no", "--mixed_precision bf16"),
        (
            not settings.enable_xformers_memory_efficient_attention,
            "--enable_xformers_memory_efficient_attention",
        ),
        (settings.with_prior_preservation, "--no-with_prior_preservation (a run anew)"),
        (True, f"--resolution {max(64, int(settings.resolution or 64) * 3 // 4 // 64 * 64)} (a run anew)"),
    )
    flags = [flag for helps, flag in steps if helps][:3]
    return f"try {', '.join(flags[:-1])} or {flags[-1]}" if len(flags) > 1 else f"try {flags[0]}"
