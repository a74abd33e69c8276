"""Translate between our schedules and the scheduler_config.json of `diffusers`.

Nothing is guessed: a setting we cannot honour is refused by name, so that no model is sampled on other noise levels than it was trained on.
"""

from typing import Annotated, NoReturn

import torch
from torch import Tensor

from common.diffusion.denoiser import ClipMode, mixture
from common.diffusion.schedules import BETAS, DiscreteSchedule, EDMSchedule, FlowSchedule, NoiseLevel, Schedule, zero_terminal_snr
from common.errors import UserError, shown
from common.io.config_values import Share, check_values
from common.io.ranges import Range

VERSION = "0.42.1"  # the release of diffusers whose layout we write
BETA_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid_beta": "sigmoid"}
PREDICTION_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULER_VALUES = {
    "_class_name": str, "num_train_timesteps": Annotated[int, Range(1, 100_000)], "beta_schedule": str, "beta_start": Share, "beta_end": Share,
    "trained_betas": list[Share] | None, "prediction_type": str, "rescale_betas_zero_snr": bool, "clip_sample": bool, "thresholding": bool,
    "sample_max_value": Annotated[float, Range(0, 1e6)], "dynamic_thresholding_ratio": Share, "shift": Annotated[float, Range(1e-3, 1000)],
    "sigma_min": Annotated[float, Range(0, 1e6, above=True)], "sigma_max": Annotated[float, Range(0, 1e6, above=True)],
    "sigma_data": Annotated[float, Range(0, 1e6)], "rho": Annotated[float, Range(0.1, 100)],
}  # fmt: skip


def _refuse(key: str, value: object) -> NoReturn:
    raise UserError(f"this scheduler sets {key} = {shown(value)}, which the course's scheduler does not have, so it is not loaded")


def check_pair(schedule: str, prediction: str) -> None:
    """Refuse the pairs that no scheduler of diffusers can express, the one that no network can learn, and unknown names."""
    mixture(prediction, NoiseLevel(0, 0.6, 0.8))  # for its refusal
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


def scheduler_to_diffusers(schedule: Schedule, prediction: str, clip_x0: ClipMode, learned_variance: bool = False) -> dict:
    """The scheduler_config.json that describes how the network was trained."""
    check_pair(schedule.name, prediction)
    if isinstance(schedule, FlowSchedule):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION,
                "num_train_timesteps": 1000, "shift": schedule.shift}  # fmt: skip
    if isinstance(schedule, EDMSchedule):
        return {"_class_name": "EDMEulerScheduler", "_diffusers_version": VERSION, "sigma_min": schedule.sigma_min,
                "sigma_max": schedule.sigma_max, "sigma_data": 0.5, "rho": schedule.rho}  # fmt: skip
    named = schedule.name in ("linear", "scaled_linear", "cosine")  # the others' first and last beta do not tell them all
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
        for key, expected in (("sigma_data", 0.5), ("prediction_type", "epsilon")):
            if config.get(key, expected) != expected:
                _refuse(key, config[key])
        if config.get("sigma_min", 0.002) >= config.get("sigma_max", 80.0):
            _refuse("sigma_min", config.get("sigma_min", 0.002))
        return EDMSchedule(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), rho=config.get("rho", 7.0)), "edm", False
    if "beta_schedule" not in config:
        _refuse("_class_name", kind)
    predictions = {theirs: ours for ours, theirs in PREDICTION_NAMES.items()}
    prediction = predictions.get(config.get("prediction_type", "epsilon"))
    if prediction is None:
        _refuse("prediction_type", config["prediction_type"])
    if prediction == "eps" and config.get("rescale_betas_zero_snr"):
        _refuse("rescale_betas_zero_snr with prediction_type", "epsilon")
    largest = config.get("sample_max_value", 1.0)  # beyond which diffusers' thresholding only clips; 1 makes it plain clipping
    if config.get("thresholding") and largest > 1:
        if config.get("dynamic_thresholding_ratio", 0.995) != 0.995 or largest < 100:
            _refuse("dynamic_thresholding_ratio / sample_max_value", (config.get("dynamic_thresholding_ratio", 0.995), largest))
        return _betas_from(config), prediction, "dynamic"
    clip = config.get("thresholding") or config.get("clip_sample", kind in ("DDPMScheduler", "DDIMScheduler"))  # their default where nothing is said
    return _betas_from(config), prediction, bool(clip)


def _betas_from(config: dict) -> DiscreteSchedule:
    name, betas = _named_betas(config)
    if len(betas) == 0 or float(betas.max()) == 0 or (config.get("rescale_betas_zero_snr") and len(betas) < 2):
        _refuse("trained_betas" if name == "custom" else "beta_end", betas.tolist()[:3])  # no noise, or one level that is both ends
    if not config.get("rescale_betas_zero_snr"):
        return DiscreteSchedule(betas, name)
    if not (betas := zero_terminal_snr(betas)).isfinite().all():  # all signal is gone long before the last level
        _refuse("rescale_betas_zero_snr", True)
    return DiscreteSchedule(betas, f"{name}_zero_snr")  # betas that end at zero already stay what they are


def _named_betas(config: dict) -> tuple[str, Tensor]:
    if config.get("trained_betas") is not None:
        return "custom", torch.tensor(config["trained_betas"], dtype=torch.float64)
    name = {theirs: ours for ours, theirs in BETA_NAMES.items()}.get(config["beta_schedule"])
    if name is None:
        _refuse("beta_schedule", config["beta_schedule"])
    T = config.get("num_train_timesteps", 1000)
    if name == "cosine":
        return name, BETAS[name](T)
    return name, BETAS[name](T, config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
