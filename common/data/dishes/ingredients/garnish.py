"""What is strewn, sprinkled and dripped: herbs, spices, nuts, oil."""

import numpy as np

from common.data.creatures.shapes import capsule
from common.data.dishes.ingredients.forms import ball, chunk, dome, lump, shred, slice_
from common.data.dishes.ingredients.pieces import Ingredient, Look, Pieces
from common.data.dishes.ingredients.relief import blend


def cilantro(p: Pieces) -> Look:
    """Three toothed leaflets on a stalk."""
    angle, r = np.arctan2(p.v, p.u), p.r()
    leaflets = r - 0.62 - 0.28 * np.cos(3 * angle) - 0.10 * np.cos(11 * angle + 6 * p.luck[0])
    d = np.minimum(leaflets, capsule(p.u, p.v, (-0.2, 0), (-1, 0.1), 0.07, 0.05))
    green = blend(p.tones((0.16, 0.52, 0.10), (0.28, 0.64, 0.15)), (0.08, 0.36, 0.06), np.clip(1 - 1.6 * r, 0, 1))
    return Look(0.6 * d, green, 0.25 * dome(d, 0.3) + 0.06 * np.sin(5 * r), 0.5)


GARNISH = {
    "chili": Ingredient(shred((0.62, 0.04, 0.03), (0.80, 0.10, 0.05), 0.22, 0.40, 0.8, 0.70), 0.058),
    "chili_ring": Ingredient(slice_((0.82, 0.06, 0.03), (0.90, 0.18, 0.06), (0.98, 0.72, 0.35), 0.3, 0.4, 0, 0.7), 0.022),
    "chopped_chili": Ingredient(chunk((0.92, 0.16, 0.05), (0.72, 0.06, 0.02), 0.8, 0.65, 0.25, 0.4, 0.9), 0.026),
    "garlic_leaf": Ingredient(shred((0.16, 0.48, 0.10), (0.50, 0.76, 0.26), 0.15, 0.2, 0.6), 0.062),
    "chive": Ingredient(shred((0.13, 0.42, 0.07), (0.26, 0.56, 0.12), 0.095, 0.3, 0.6), 0.095),
    "jujube": Ingredient(ball((0.72, 0.10, 0.06), (0.42, 0.03, 0.02), 1.35, 0.8), 0.045),
    "goji": Ingredient(ball((0.95, 0.22, 0.06), (0.75, 0.08, 0.02), 1.7, 0.7), 0.021),
    "peanut": Ingredient(ball((0.97, 0.80, 0.50), (0.78, 0.50, 0.22), 1.45, 0.6), 0.040),
    "red_peanut": Ingredient(ball((0.74, 0.27, 0.14), (0.48, 0.12, 0.07), 1.35, 0.6, 0.14), 0.036),
    "pine_nut": Ingredient(ball((0.97, 0.88, 0.62), (0.85, 0.66, 0.34), 1.7), 0.020),
    "sesame": Ingredient(ball((1.0, 0.96, 0.82), (0.90, 0.80, 0.58), 1.5, 0.2), 0.0095),
    "sugar": Ingredient(ball((1.0, 1.0, 1.0), (0.94, 0.93, 0.93), 1.0, 0.9), 0.0085),
    "soy_drop": Ingredient(lump((0.40, 0.18, 0.05), (0.55, 0.28, 0.08), 0.15, 0.0, 0.9, 0.05), 0.050, 1.2, 0.0),
    "red_oil": Ingredient(lump((0.86, 0.16, 0.02), (0.93, 0.30, 0.04), 0.3, 0.0, 1.0, 0.10, 0.62), 0.075, 1.3, 0.0),
    "garlic": Ingredient(chunk((0.99, 0.95, 0.80), (0.88, 0.76, 0.48), 0.75, 0.6, 0.2, 0.4), 0.017),
    "ginger": Ingredient(shred((0.96, 0.86, 0.50), (0.90, 0.76, 0.36), 0.11, 0.25), 0.055),
    "scallion": Ingredient(slice_((0.24, 0.56, 0.10), (0.48, 0.76, 0.22), (0.86, 0.95, 0.62), 0.35, 0.38, 0, 0.4), 0.021),
    "scallion_shred": Ingredient(shred((0.36, 0.66, 0.16), (0.86, 0.93, 0.70), 0.075, 0.5), 0.090),
    "scallion_piece": Ingredient(shred((0.30, 0.60, 0.14), (0.90, 0.95, 0.78), 0.24, 0.1, 0.5), 0.040),
    "cilantro": Ingredient(cilantro, 0.042, 1.2),
    "star_anise": Ingredient(lump((0.30, 0.14, 0.05), (0.42, 0.20, 0.08), 0.5), 0.028),
}  # fmt: skip
