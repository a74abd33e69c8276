"""One dish from its attributes: table, vessel, sauce, food; then the light. The same at every size."""

from collections.abc import Mapping

import numpy as np

from common.data.dishes.attributes import check_attributes
from common.data.dishes.ingredients.garnish import GARNISH
from common.data.dishes.ingredients.meats import MEATS
from common.data.dishes.ingredients.pieces import LUCK, Ingredient, Spots, lay_all, patches
from common.data.dishes.ingredients.relief import GLOSS, HEIGHT, Array, Colour, Relief
from common.data.dishes.ingredients.seafood import SEAFOOD
from common.data.dishes.ingredients.staples import STAPLES
from common.data.dishes.ingredients.vegetables import VEGETABLES
from common.data.dishes.layout import LAYOUTS, Flood, FoodLayer
from common.data.dishes.menu import DISHES
from common.data.dishes.tableware.tables import lay_table
from common.data.dishes.tableware.vessels import Area, lay_vessel

FINEST = 96  # smaller pictures are drawn with at least so many points a side and averaged, so that grains of rice stay grains; large ones with twice as many
INGREDIENTS: dict[str, Ingredient] = VEGETABLES | GARNISH | MEATS | SEAFOOD | STAPLES
ON_TOP = ("top", "float")


def draw(attributes: Mapping[str, str], size: int, pose: int = 0) -> np.ndarray:
    """A dish as an image, (3, size, size) uint8.

    attributes  the name of a value for each of ATTRIBUTES
    pose        a seed for what is no attribute: where each piece lies, and how
    """
    check_attributes(attributes)
    rng = np.random.default_rng(pose)
    factor = max(2, -(-FINEST // size))
    relief = Relief.blank(size * factor)
    lay_table(relief, attributes["table"], rng.random(6).tolist())
    area = lay_vessel(relief, attributes["vessel"], attributes["glaze"], rng.random(6).tolist())
    dish = DISHES[attributes["dish"]]
    for layer in dish.layers:
        if isinstance(layer, Flood):
            flood(relief, area, layer, rng.random(4).tolist())
        else:
            lay_food(relief, area, layer, dish.coat if layer.how not in ON_TOP else None, rng)
    return np.rint(shrunk(relief.lit(), factor) * 255).astype(np.uint8)


def shrunk(rgb: Array, factor: int) -> Array:
    """The mean of every factor x factor pixels."""
    rows = np.sum([rgb[:, i::factor] for i in range(factor)], axis=0)
    return np.sum([rows[:, :, i::factor] for i in range(factor)], axis=0) / factor**2


def flood(relief: Relief, area: Area, liquid: Flood, luck: list[float]) -> None:
    """Fill the vessel up to a level: what is deep below vanishes in it, what stands out stays dry."""
    u, v = area.local(relief)
    u, v = u / area.rx, v / area.ry
    wave = 0.05 * np.sin(5 * u + 6.3 * luck[0]) + 0.05 * np.sin(6 * v + 6.3 * luck[1]) if liquid.wide < 1 else 0
    shore = np.clip((liquid.wide + wave - np.sqrt(u * u + v * v)) * area.ry / max(relief.pixel, 0.012) + 0.5, 0, 1)
    level = area.floor + liquid.level * (area.brim - area.floor)
    depth = np.maximum(level - relief.field[HEIGHT], 0)
    share = shore * (1 - np.exp(-depth / liquid.clear))
    surface = relief.field[HEIGHT] + shore * depth
    wet = np.clip(depth / 0.003, 0, 1) * shore
    relief.lay(share, liquid.colour)
    relief.field[HEIGHT] = surface + 0.0012 * wet * np.sin(9 * u + 6.3 * luck[2]) * np.sin(8 * v + 6.3 * luck[3])
    relief.field[GLOSS] += wet * (0.85 - relief.field[GLOSS])


def lay_food(
    relief: Relief, area: Area, layer: FoodLayer, coat: tuple[Colour, float] | None, rng: np.random.Generator
) -> None:
    """All pieces of a layer, in their order."""
    places = LAYOUTS[layer.how](layer, rng)
    n = len(places.u)
    luck = rng.random((n, LUCK + 3))
    x, y = area.place(places.u, places.v)
    sizes = np.array([INGREDIENTS[name].size for name, _ in layer.what])[places.kind]
    sizes *= layer.scale * (0.88 + 0.24 * luck[:, -1])
    spots = Spots(x, y, sizes, places.turn + area.turn, ground(relief, area, layer, places.lift, x, y))
    batches, order = [], [(0, 0)] * n
    for k, (name, _) in enumerate(layer.what):
        which = np.flatnonzero(places.kind == k)
        batches.append(patches(relief, INGREDIENTS[name], spots[which], luck[which, :-1], coat))
        for i, piece in enumerate(which):
            order[piece] = (k, i)
    lay_all(relief, batches, order)


def ground(relief: Relief, area: Area, layer: FoodLayer, lift: Array, x: Array, y: Array) -> Array:
    """Height on which each piece lies: on what is there already, or on a heap."""
    if layer.how == "float":
        return np.full(len(x), area.brim + 0.001)
    base = area.floor + area.heap * lift
    if layer.how == "top":
        column, row = (np.clip(((p + 0.5) / relief.pixel).astype(int), 0, relief.x.shape[0] - 1) for p in (x, -y))
        return np.maximum(relief.field[HEIGHT][row, column], area.floor) + 0.002
    return base
