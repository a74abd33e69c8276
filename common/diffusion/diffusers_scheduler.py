"""Translate between our schedules and the scheduler_config.json of `diffusers`.

A setting that our schedules do not have is refused by name,
so that no model is sampled on other noise levels than those of its training.
"""

from typing import Annotated

import torch
from torch import Tensor

from common.diffusion.denoiser import SIGMA_DATA, ClipMode, mixture
from common.diffusion.schedules import (
    BETAS,
    T_DEFAULT,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    NoiseLevel,
    Schedule,
    zero_terminal_snr,
)
from common.errors import UserError
from common.io.config_values import Share, check_values, refuse
from common.io.ranges import Range

VERSION = "0.42.1"  # the release of diffusers whose layout we write
BETA_NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid_beta": "sigmoid",
}
PREDICTION_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULER_VALUES = {
    "_class_name": str,
    "num_train_timesteps": Annotated[int, Range(1, 100_000)],
    "beta_schedule": str,
    "beta_start": Share,
    "beta_end": Share,
    "trained_betas": list[Share] | None,
    "prediction_type": str,
    "rescale_betas_zero_snr": bool,
    "clip_sample": bool,
    "thresholding": bool,
    "sample_max_value": Annotated[float, Range(0, 1e6)],
    "dynamic_thresholding_ratio": Share,
    "shift": Annotated[float, Range(1e-3, 1000)],
    "sigma_min": Annotated[float, Range(0, 1e6, above=True)],
    "sigma_max": Annotated[float, Range(0, 1e6, above=True)],
    "sigma_data": Annotated[float, Range(0, 1e6)],
    "rho": Annotated[float, Range(0.1, 100)],
}
NAMED_BY_ENDS = ("linear", "scaled_linear", "cosine")  # the first and the last beta determine these; others are listed


def check_pair(schedule: str, prediction: str) -> None:
    """UserError for unknown names, pairs that diffusers cannot express, and the pair that cannot be learned."""
    mixture(prediction, NoiseLevel(0, 0.6, 0.8))  # refuses unknown names
    if schedule.endswith("zero_snr") and prediction == "eps":
        raise UserError(
            f"schedule '{schedule}' ends at pure noise, where knowing the noise says nothing of the image, "
            "so it does not go with prediction 'eps'; choose v or x0"
        )
    goes_with = {"edm": "edm", "flow": "flow"}
    if goes_with.get(schedule, "") != (prediction if prediction in goes_with else ""):
        raise UserError(
            f"schedule '{schedule}' and prediction '{prediction}' do not go together: "
            "edm goes with edm, flow with flow, and every other schedule with eps, x0 or v"
        )


def scheduler_to_diffusers(
    schedule: Schedule, prediction: str, clip_x0: ClipMode, learned_variance: bool = False
) -> dict:
    """The scheduler_config.json that describes how the network was trained."""
    check_pair(schedule.name, prediction)
    if isinstance(schedule, FlowSchedule):
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "_diffusers_version": VERSION,
            "num_train_timesteps": T_DEFAULT,
            "shift": schedule.shift,
        }
    if isinstance(schedule, EDMSchedule):
        return {
            "_class_name": "EDMEulerScheduler",
            "_diffusers_version": VERSION,
            "sigma_min": schedule.sigma_min,
            "sigma_max": schedule.sigma_max,
            "sigma_data": SIGMA_DATA,
            "rho": schedule.rho,
        }
    named = schedule.name in NAMED_BY_ENDS
    zero_snr = {"rescale_betas_zero_snr": True} if float(schedule.alpha[-1]) == 0 else {}
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.T,
        "beta_schedule": BETA_NAMES[schedule.name] if named else "linear",
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "trained_betas": None if named else schedule.betas.tolist(),
        "prediction_type": PREDICTION_NAMES[prediction],
        "variance_type": "learned_range" if learned_variance else "fixed_small",
        "clip_sample": clip_x0 is True,
        "clip_sample_range": 1.0,
        "thresholding": clip_x0 == "dynamic",
        "sample_max_value": 1000.0 if clip_x0 == "dynamic" else 1.0,
        "timestep_spacing": "trailing",
    } | zero_snr


def scheduler_from_diffusers(config: dict) -> tuple[Schedule, str, ClipMode]:
    """(schedule, prediction, clip_x0) from any diffusers scheduler that describes a training we know."""
    check_values(config, SCHEDULER_VALUES, "this scheduler")
    kind = config.get("_class_name", "")
    if kind == "FlowMatchEulerDiscreteScheduler":
        return FlowSchedule(config.get("shift", 1.0)), "flow", False
    if kind.startswith("EDM"):
        return _edm_from(config), "edm", False
    if "beta_schedule" not in config:
        refuse("scheduler", "_class_name", kind)
    predictions = {theirs: ours for ours, theirs in PREDICTION_NAMES.items()}
    prediction = predictions.get(config.get("prediction_type", "epsilon"))
    if prediction is None:
        refuse("scheduler", "prediction_type", config["prediction_type"])
    if prediction == "eps" and config.get("rescale_betas_zero_snr"):
        refuse("scheduler", "rescale_betas_zero_snr with prediction_type", "epsilon")
    clip_x0 = _clip_mode_from(config, kind)
    return _betas_from(config), prediction, clip_x0


def _edm_from(config: dict) -> EDMSchedule:
    for key, expected in (("sigma_data", SIGMA_DATA), ("prediction_type", "epsilon")):
        if config.get(key, expected) != expected:
            refuse("scheduler", key, config[key])
    sigma_min, sigma_max = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    if sigma_min >= sigma_max:
        refuse("scheduler", "sigma_min", sigma_min)
    return EDMSchedule(sigma_min, sigma_max, config.get("rho", 7.0))


def _clip_mode_from(config: dict, kind: str) -> ClipMode:
    if not config.get("thresholding"):
        return bool(config.get("clip_sample", kind in ("DDPMScheduler", "DDIMScheduler")))  # diffusers' defaults
    largest = config.get("sample_max_value", 1.0)  # diffusers clamps the threshold to it; 1 makes this plain clipping
    if largest <= 1:
        return True
    ratio = config.get("dynamic_thresholding_ratio", 0.995)
    if ratio != 0.995 or largest < 100:
        refuse("scheduler", "dynamic_thresholding_ratio / sample_max_value", (ratio, largest))
    return "dynamic"


def _betas_from(config: dict) -> DiscreteSchedule:
    name, betas = _named_betas(config)
    if len(betas) == 0 or float(betas.max()) == 0 or (config.get("rescale_betas_zero_snr") and len(betas) < 2):
        # no noise, or a single level
        refuse("scheduler", "trained_betas" if name == "custom" else "beta_end", betas.tolist()[:3])
    if not config.get("rescale_betas_zero_snr"):
        return DiscreteSchedule(betas, name)
    if not (betas := zero_terminal_snr(betas)).isfinite().all():  # no signal is left before the last level
        refuse("scheduler", "rescale_betas_zero_snr", True)
    return DiscreteSchedule(betas, f"{name}_zero_snr")  # betas that already end at zero SNR are unchanged


def _named_betas(config: dict) -> tuple[str, Tensor]:
    if config.get("trained_betas") is not None:
        return "custom", torch.tensor(config["trained_betas"], dtype=torch.float64)
    name = {theirs: ours for ours, theirs in BETA_NAMES.items()}.get(config["beta_schedule"])
    if name is None:
        refuse("scheduler", "beta_schedule", config["beta_schedule"])
    T = config.get("num_train_timesteps", 1000)
    if name == "cosine":
        return name, BETAS[name](T)
    return name, BETAS[name](T, config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
