"""Where the chapter finds its default model, and where it writes.
Nothing heavy is imported here: programs name these in their flags.
"""

from pathlib import Path

# the course's own small Stable Diffusion
PRETRAINED = Path(__file__).resolve().parents[2] / "04_latent_sd" / "pretrained"
OUT = Path("runs/05_finetune_diffusers")
