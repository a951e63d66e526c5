"""Flags of diffusers' and kohya's trainers that atomdiff has under another name, or has no need of."""

WHOLE = "how much is trained is one choice, --recipe"
CROPPED = "pictures are cropped to their middle square, always"
FEW = "what is trained is a few thousand numbers, of which AdamW's moments take no memory worth saving"
STATES = "it is --checkpointing_steps here; --timeline_steps keeps concepts to choose from"
CACHED = "latents and prompts are encoded once and kept, always"

FLAG_ALIASES = {
    "--train_data_dir": "it is --instance_dir here, the folder that holds the pictures themselves",
    "--reg_data_dir": "it is --class_data_dir here",
    "--output_name": "it is --name here",
    "--rank": WHOLE,
    "--network_dim": WHOLE,
    "--network_alpha": WHOLE,
    "--network_module": WHOLE,
    "--train_text_encoder": "of the text encoder the trigger's embedding alone is trained, --train_token",
    "--network_train_unet_only": "it is --no-train_token here",
    "--unet_lr": "it is --learning_rate here",
    "--text_encoder_lr": "it is --token_learning_rate here",
    "--use_8bit_adam": FEW,
    "--optimizer_type": FEW,
    "--optimizer": FEW,
    "--max_train_epochs": "it is --num_train_epochs here",
    "--min_snr_gamma": "it is --snr_gamma here, and 5 by default",
    "--flip_aug": "it is --random_flip here",
    "--enable_bucket": CROPPED,
    "--cache_latents": CACHED,
    "--cache_text_encoder_outputs": CACHED,
    "--pre_compute_text_embeddings": CACHED,
    "--save_every_n_steps": STATES,
    "--save_every_n_epochs": STATES,
    "--sample_prompts": "it is --validation_prompt here, one prompt",
    "--sample_every_n_steps": "it is --validation_steps here",
    "--push_to_hub": "`atomdiff push FILE user/name` does it when the training is done",
}
"""Flag -> where it went, in a part of a sentence."""
