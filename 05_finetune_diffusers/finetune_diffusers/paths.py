"""Where the chapter finds its default model, and where it writes.
Nothing heavy is imported here: programs name these in their flags.
"""

from pathlib import Path

PRETRAINED = (
    Path(__file__).resolve().parents[2] / "04_latent_sd" / "pretrained"
)  # the course's own small Stable Diffusion
OUT = Path("runs/05_finetune_diffusers")
