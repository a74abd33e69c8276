"""Schedulers of diffusers by short names, for models that were trained with any of them.

"own" is the scheduler that the model was saved with. Distilled models need it: their few steps are those of one scheduler.
For all others, a scheduler decides how to sample, not what was learned, so any of them goes
with any model of one kind. The table is light: programs refuse an unknown name before torch and diffusers are loaded.
"""

import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, explain

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Short name -> class of diffusers, and its settings beside the configuration that the model came with.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),  # this and the next are for models that were distilled for them
    "tcd": ("TCDScheduler", {}),
}
OWN = "own"  # the scheduler that the model was saved with
STOCHASTIC = (
    "ddpm",
    "euler-a",
    "dpm++-sde",
    "dpm++-sde-karras",
    "lcm",
    "tcd",
)  # these add noise at every step, so their step() takes generators
FLOW_SETTINGS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # for models of flow matching, such as Stable Diffusion 3
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **FLOW_SETTINGS}),
    "unipc": ("UniPCMultistepScheduler", FLOW_SETTINGS),
}


def check_schedulers(names: Sequence[str], own: bool = True) -> None:
    """Refuse unknown names before a model is opened. own: whether the model's own scheduler may be asked for"""
    known = (*([OWN] if own else []), *SCHEDULERS)
    for name in names:
        if name not in known:
            raise UserError(f"unknown scheduler '{name}'; choose one of {', '.join(known)}")


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A scheduler by name for a model that was trained as `config` (pipe.scheduler.config) says.

    Settings that distinguish one name from another are removed from the configuration first. Otherwise they would stay
    for the next scheduler, so that after dpm++-karras every scheduler had the sigmas of Karras et al. (2022).
    """
    check_schedulers([name], own=False)
    import diffusers  # heavy, and the table above is needed for --help

    kind, settings = SCHEDULERS[name]
    if config.get("prediction_type") == "flow_prediction" or ("shift" in config and "beta_schedule" not in config):
        if name not in FLOW_SCHEDULERS:
            raise UserError(
                f"the model was trained for flow matching, where scheduler '{name}' is not defined; choose one of {', '.join(FLOW_SCHEDULERS)}"
            )
        kind, settings = FLOW_SCHEDULERS[name]
        settings = settings | ({"flow_shift": config["shift"]} if settings else {})
    distinguishing = {key for _, others in SCHEDULERS.values() for key in others}
    kept = {key: value for key, value in config.items() if key not in distinguishing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(diffusers, kind).from_config(kept, **settings)


def use_scheduler(pipe: "DiffusionPipeline", name: str) -> None:
    """Replace the pipeline's scheduler by one with this name; "own" keeps it."""
    if name != OWN:
        pipe.scheduler = make_scheduler(name, dict(pipe.scheduler.config))


@contextmanager
def explain_step_errors(scheduler: str) -> Iterator[None]:
    """Turn the failure of a scheduler that counts its steps wrongly into a sentence.

    With the spacing of Karras et al. (2022) and a cosine schedule, whose last steps are very steep, the first two
    timesteps are rounded to the same number;
    diffusers (0.42) then begins at the second and runs out of steps at the end.
    """
    try:
        yield
    except IndexError as problem:
        if Path(traceback.extract_tb(problem.__traceback__)[-1].filename).parent.name != "schedulers":
            raise
        raise UserError(
            f"scheduler '{scheduler}' cannot take so many steps on this model's noise schedule (diffusers: {explain(problem)}); "
            "give other --steps, or another scheduler, for instance dpm++"
        ) from problem
