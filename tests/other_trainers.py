"""The flags of other trainers, by name."""

DIFFUSERS = tuple(
    """
    pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir
    instance_prompt class_prompt validation_prompt num_validation_images validation_epochs
    with_prior_preservation prior_loss_weight num_class_images output_dir seed resolution center_crop
    train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps
    gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles lr_power
    dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
    push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to mixed_precision
    prior_generation_precision local_rank enable_xformers_memory_efficient_attention
    pre_compute_text_embeddings tokenizer_max_length text_encoder_use_attention_mask validation_images
    class_labels_conditioning rank lora_alpha lora_dropout use_dora image_interpolation_mode
""".split()  # noqa: SIM905 - a list of 61 lines would say no more
)
"""Of examples/dreambooth/train_dreambooth_lora.py."""

DIFFUSERS_SDXL = tuple(
    """
    pretrained_vae_model_name_or_path dataset_name dataset_config_name cache_dir image_column caption_column
    repeats do_edm_style_training random_flip text_encoder_lr snr_gamma optimizer
    adam_weight_decay_text_encoder prodigy_beta3 prodigy_decouple prodigy_use_bias_correction
    prodigy_safeguard_warmup output_kohya_format
    """.split()  # noqa: SIM905
)
"""What examples/dreambooth/train_dreambooth_lora_sdxl.py has beside those."""

KOHYA = tuple(
    """
    pretrained_model_name_or_path train_data_dir reg_data_dir output_dir output_name resolution network_module
    network_dim network_alpha learning_rate unet_lr text_encoder_lr lr_scheduler lr_warmup_steps
    optimizer_type train_batch_size max_train_steps max_train_epochs save_every_n_epochs save_precision
    mixed_precision caption_extension shuffle_caption keep_tokens enable_bucket min_bucket_reso
    max_bucket_reso cache_latents xformers seed min_snr_gamma noise_offset clip_skip gradient_checkpointing
    gradient_accumulation_steps network_train_unet_only max_data_loader_n_workers sample_prompts
    sample_every_n_steps v2 v_parameterization zero_terminal_snr masked_loss caption_dropout_rate
    caption_tag_dropout_rate config_file save_model_as prior_loss_weight max_grad_norm flip_aug sdpa
    log_with logging_dir save_state resume optimizer_args text_encoder_lr1 text_encoder_lr2 full_fp16
    full_bf16 no_half_vae lowram dataset_repeats cache_text_encoder_outputs_to_disk vae
""".split()  # noqa: SIM905
)
"""The most used of train_network.py."""
