"""Settings of a training that do not go together."""

from typing import Any

from atomdiff.errors import SettingsError


def check_together(settings: Any) -> None:
    """Refuses two settings, each right by itself, that contradict each other. Raises SettingsError."""
    if settings.ema_decay and settings.average_last:
        raise SettingsError("--ema_decay and --average_last are two means of the atoms; give one of them.")
    if settings.optimizer == "schedulefree" and (settings.ema_decay or settings.average_last):
        raise SettingsError(
            "--optimizer schedulefree keeps a mean itself; drop --ema_decay and --average_last."
        )
    if settings.optimizer == "schedulefree" and not settings.adam_beta1:
        raise SettingsError("--optimizer schedulefree needs an --adam_beta1 above 0.")
    if settings.zero_terminal_snr and settings.prediction_type == "epsilon":
        raise SettingsError(
            "--zero_terminal_snr needs a base with v_prediction: pure noise has nothing else to predict."
        )
    if settings.hub_model_id and not settings.push_to_hub:
        raise SettingsError("--hub_model_id says where to put the concept; add --push_to_hub.")
    if settings.max_train_steps is not None and settings.num_train_epochs is not None:
        raise SettingsError("--max_train_steps and --num_train_epochs were both given; give one of them.")
    if settings.trigger and settings.instance_prompt and settings.trigger not in settings.instance_prompt:
        raise SettingsError(
            f"The instance prompt '{settings.instance_prompt}' lacks the trigger '{settings.trigger}'; "
            "write it into --instance_prompt or drop --trigger."
        )
