"""The menu: how every dish is cooked, what it is served in, and what lies on the plate, bottom first.
Its names are in names.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.data.dishes.ingredients.relief import Colour
from common.data.dishes.layout import Flood, FoodLayer


@dataclass(frozen=True)
class Dish:
    """layers  of food and sauce, from the bottom up
    coat    a glaze over the food: its colour and how thick
    """

    style: str
    vessels: tuple[str, ...]
    layers: tuple[FoodLayer | Flood, ...]
    coat: tuple[Colour, float] | None = None


def layer(how: str) -> Callable[..., FoodLayer]:
    """heap(egg=17, tomato=12): so many pieces of each kind, laid down together."""

    def make(wide: float = 1.0, scale: float = 1.0, **what: int) -> FoodLayer:
        return FoodLayer(how, tuple(what.items()), wide, scale)

    return make


heap, tangle, ring, fan, pack, flower = map(layer, ("heap", "tangle", "ring", "fan", "pack", "flower"))
one, side, top, float_ = map(layer, ("one", "side", "top", "float"))


def sauce(colour: Colour, level: float = 0.45, wide: float = 0.93, clear: float = 0.003) -> Flood:
    """A thin pool on a plate."""
    return Flood(colour, level, clear, wide)


def broth(colour: Colour, clear: float = 0.020, level: float = 1.0) -> Flood:
    """A vessel full of soup."""
    return Flood(colour, level, clear, 1.13)


def style(name: str) -> Callable[..., Dish]:
    """stir_fried(PLATES, sauce(OIL), heap(egg=16)): a dish of this style, its vessels, then its layers."""

    def make(vessels: tuple[str, ...], *layers: FoodLayer | Flood, coat: tuple[Colour, float] | None = None) -> Dish:
        return Dish(name, vessels, layers, coat)

    return make


stir_fried, braised, steamed, boiled = map(style, ("stir-fried", "braised", "steamed", "boiled"))
soup, cold, fried, roasted = map(style, ("soup", "cold", "fried", "roasted"))

PLATES = ("round plate", "oval plate", "square plate")
ROUND, OVAL = ("round plate", "square plate"), ("oval plate",)
DEEP = ("bowl", "clay pot")

SOY, BROWN, DARK = (0.36, 0.16, 0.03), (0.52, 0.26, 0.07), (0.24, 0.08, 0.02)
RED_OIL, TOMATO, AMBER = (0.84, 0.27, 0.04), (0.93, 0.36, 0.08), (0.88, 0.58, 0.16)
OIL, CLEAR = (0.90, 0.80, 0.42), (0.93, 0.84, 0.58)

DISHES: dict[str, Dish] = {
    # stir-fried
    "番茄炒蛋": stir_fried(PLATES, sauce(TOMATO), heap(egg=20, tomato=17), top(scallion=10)),
    "葱油生菜": stir_fried(PLATES, sauce(OIL), heap(lettuce=17), top(scallion_shred=7, scallion=8, wide=0.7)),
    "香菇青菜": stir_fried(
        ROUND, sauce(AMBER), ring(bok_choy=12, wide=1.05), heap(shiitake=12, wide=0.52), top(garlic=8)
    ),
    "青椒肉丝": stir_fried(PLATES, sauce(BROWN, 0.3), heap(pepper=38, pork_shred=34)),
    "宫保鸡丁": stir_fried(
        PLATES,
        sauce(BROWN),
        heap(chicken_dice=32, peanut=26, chili=18, scallion_piece=16),
        coat=((0.86, 0.42, 0.12), 0.15),
    ),
    "酸辣土豆丝": stir_fried(
        PLATES, sauce(OIL, 0.3), heap(potato_shred=104, red_pepper=7, pepper=5, scale=0.92), top(chili_ring=6)
    ),
    "蒜蓉西兰花": stir_fried(PLATES, sauce(OIL, 0.3), heap(broccoli=36), top(garlic=22)),
    "木须肉": stir_fried(PLATES, sauce(AMBER, 0.35), heap(egg=14, fungus=12, pork_slice=11, cucumber=13)),
    "韭菜炒蛋": stir_fried(PLATES, sauce(OIL, 0.3), heap(egg=16, chive=62)),
    "黄瓜炒虾仁": stir_fried(PLATES, sauce(OIL, 0.3), heap(peeled_shrimp=27, cucumber=26), top(carrot_dice=8)),
    "回锅肉": stir_fried(
        PLATES, sauce(RED_OIL, 0.4), heap(belly_slice=28, garlic_leaf=26, red_chunk=8), coat=((0.86, 0.34, 0.10), 0.12)
    ),
    "胡萝卜炒木耳": stir_fried(PLATES, sauce(OIL, 0.3), heap(carrot=30, fungus=18), top(scallion_piece=8)),
    "苦瓜炒蛋": stir_fried(PLATES, sauce(OIL, 0.3), heap(bitter_melon=30, egg=14)),
    "荷兰豆炒腊肠": stir_fried(PLATES, sauce(OIL, 0.3), heap(snow_pea=34, sausage=24)),
    "干煸四季豆": stir_fried(PLATES, sauce(BROWN, 0.25), heap(green_bean=40), top(mince=26, chili=9, wide=0.85)),
    "松仁玉米": stir_fried(PLATES, sauce(OIL, 0.35), heap(corn=190, pea=34, carrot_dice=30, pine_nut=36)),
    "鱼香肉丝": stir_fried(
        PLATES,
        sauce((0.72, 0.30, 0.06), 0.4, 0.85),
        heap(pork_shred=38, carrot_shred=24, fungus=12, pepper=12),
        coat=((0.85, 0.34, 0.08), 0.22),
    ),
    "鱼香茄子": stir_fried(
        PLATES,
        sauce(RED_OIL, 0.5),
        heap(eggplant=34),
        top(mince=18, scallion=12, chopped_chili=10),
        coat=((0.72, 0.28, 0.08), 0.16),
    ),
    "地三鲜": stir_fried(PLATES, sauce(SOY, 0.45), heap(potato=14, eggplant=12, pepper_chunk=17)),
    "辣子鸡": stir_fried(
        PLATES, sauce(RED_OIL, 0.2), heap(chili=72, crisp_chicken=30), top(sesame=50, scallion_piece=5)
    ),
    "洋葱炒牛肉": stir_fried(PLATES, sauce(SOY, 0.4), heap(beef=22, onion=26)),
    "芹菜炒香干": stir_fried(PLATES, sauce(AMBER, 0.3), heap(celery=40, brown_tofu=22)),
    "清炒豆芽": stir_fried(PLATES, sauce(OIL, 0.3), heap(bean_sprout=80, chive=8)),
    "家常豆腐": stir_fried(PLATES, sauce(BROWN), heap(fried_tofu=22, pepper_chunk=8, red_chunk=7, fungus=4)),
    # braised, in dark sauce
    "麻婆豆腐": braised(
        ("bowl", "round plate", "clay pot"),
        heap(tofu=25),
        sauce(RED_OIL, 0.9, 1.0, 0.006),
        top(red_oil=12),
        top(mince=34, scallion=22),
        coat=((0.97, 0.46, 0.12), 0.25),
    ),
    "红烧肉": braised(
        (*DEEP, "round plate"), sauce(DARK, 0.6, 1.0), heap(braised_pork=24), top(scallion=7, star_anise=2)
    ),
    "糖醋排骨": braised(PLATES, sauce(DARK, 0.45), heap(rib=24), top(sesame=60, scallion=5)),
    "可乐鸡翅": braised(PLATES, sauce(DARK, 0.5), heap(wing=19), top(sesame=22)),
    "红烧狮子头": braised(
        ("clay pot", "bowl"),
        sauce(BROWN, 0.7, 1.1),
        ring(bok_choy=12, wide=1.15),
        pack(meatball=4, wide=0.8),
        top(scallion=6, wide=0.5),
    ),
    "土豆炖牛肉": braised(
        DEEP,
        heap(beef_cube=17, potato=13, carrot=8),
        broth((0.50, 0.22, 0.06), 0.012, 0.72),
        top(cilantro=4, wide=0.6),
    ),
    "黄焖鸡": braised(
        DEEP, heap(chicken_chunk=20, shiitake=9, pepper_chunk=8), broth((0.78, 0.46, 0.12), 0.012, 0.75)
    ),
    "红烧鱼": braised(
        OVAL, sauce((0.42, 0.16, 0.04), 0.6, 1.0), one(brown_fish=1), top(scallion=16, chopped_chili=10, wide=0.7)
    ),
    "卤蛋": braised(("round plate", "bowl"), sauce(SOY, 0.5), pack(brown_egg=8), top(scallion=5)),
    # steamed
    "清蒸鱼": steamed(
        OVAL,
        sauce((0.55, 0.34, 0.12), 0.5, 1.0),
        one(fish=1),
        top(scallion_shred=26, ginger=9, red_pepper=3, wide=0.6, scale=0.8),
    ),
    "蒜蓉粉丝扇贝": steamed(ROUND, flower(scallop=7)),
    "蒸水蛋": steamed(
        ("bowl",), broth((0.99, 0.76, 0.38), 0.003), float_(soy_drop=7, wide=0.8), float_(scallion=14, wide=0.6)
    ),
    "清蒸大闸蟹": steamed(("round plate", "steamer"), pack(crab=3, wide=1.18)),
    "小笼包": steamed(("steamer",), pack(soup_bun=8)),
    "馒头": steamed(("steamer", "round plate"), pack(bun=4)),
    "烧卖": steamed(("steamer",), pack(shaomai=10)),
    "虾饺": steamed(("steamer",), flower(shrimp_dumpling=7)),
    "粽子": steamed(PLATES, pack(zongzi=4, wide=0.95)),
    "米饭": steamed(("bowl",), one(white_mound=1), heap(rice=230)),
    # boiled
    "白灼虾": boiled(ROUND, ring(shrimp=11, wide=1.12), ring(shrimp=6, wide=0.66), one(dip=1)),
    "白切鸡": boiled(PLATES, sauce(OIL, 0.3), fan(white_chicken=15), top(scallion=12, ginger=4, wide=0.6)),
    "饺子": boiled(PLATES, heap(dumpling=19)),
    "水煮鱼": boiled(
        ("bowl",),
        heap(fish_slice=19, bean_sprout=6),
        broth((0.88, 0.24, 0.03), 0.010, 0.92),
        top(red_oil=7),
        top(chili=24, cilantro=4, sesame=20),
    ),
    "牛肉面": boiled(
        ("bowl",),
        tangle(noodle=46),
        broth((0.62, 0.30, 0.08), 0.016, 0.85),
        top(beef=7, wide=0.5, scale=1.1),
        side(spinach=4),
        top(scallion=10, wide=0.8),
    ),
    "番茄鸡蛋面": boiled(
        ("bowl",),
        tangle(noodle=46),
        broth((0.96, 0.46, 0.12), 0.016, 0.85),
        top(egg=7, tomato=6, wide=0.62),
        top(scallion=8, wide=0.7),
    ),
    "炸酱面": boiled(
        ("bowl",),
        tangle(noodle=56),
        side(cucumber_shred=18),
        one(bean_sauce=1),
        top(mince=16, wide=0.26),
        top(bean_sprout=5, wide=0.8),
    ),
    "葱油拌面": boiled(
        ("bowl", "round plate"), sauce(SOY, 0.3), tangle(brown_noodle=60), top(scallion_shred=22, wide=0.55)
    ),
    "馄饨": boiled(("bowl",), heap(wonton=13), broth(CLEAR, 0.016, 0.85), top(scallion=14, seaweed=2, wide=0.8)),
    "汤圆": boiled(("bowl",), pack(rice_ball=11), broth((0.90, 0.80, 0.62), 0.05, 0.75), float_(goji=7, wide=0.8)),
    # soup
    "西红柿鸡蛋汤": soup(
        DEEP,
        heap(tomato=10, wide=0.9),
        broth((0.95, 0.50, 0.16), 0.022),
        float_(egg_ribbon=18, wide=0.95, scale=0.85),
        float_(tomato=5, scallion=12, wide=0.85),
    ),
    "紫菜蛋花汤": soup(
        DEEP, broth(CLEAR, 0.011), float_(seaweed=15), float_(egg_ribbon=17, scale=0.8), float_(scallion=8)
    ),
    "玉米排骨汤": soup(
        DEEP, heap(pale_rib=9, corn_round=9, carrot=7), broth((0.95, 0.86, 0.62), 0.026, 0.85), float_(goji=5)
    ),
    "冬瓜排骨汤": soup(
        DEEP, heap(winter_melon=16, pale_rib=8), broth((0.90, 0.90, 0.78), 0.030, 0.85), float_(scallion=9, cilantro=3)
    ),
    "酸辣汤": soup(
        DEEP,
        broth((0.52, 0.23, 0.06), 0.006),
        float_(tofu_shred=22, fungus=7, egg_ribbon=6, carrot_shred=9),
        float_(cilantro=5),
    ),
    "银耳莲子汤": soup(
        ("bowl",), heap(white_fungus=9), broth((0.97, 0.90, 0.72), 0.03, 0.8), float_(jujube=6, goji=12)
    ),
    "菠菜豆腐汤": soup(DEEP, heap(tofu=15, spinach=16), broth((0.80, 0.86, 0.62), 0.028, 0.85), float_(goji=3)),
    "鲫鱼豆腐汤": soup(
        DEEP,
        one(little_fish=1),
        ring(tofu=9, wide=1.15),
        broth((0.99, 0.97, 0.90), 0.020, 0.88),
        float_(scallion=12, cilantro=4),
    ),
    "皮蛋瘦肉粥": soup(
        ("bowl",),
        broth((0.95, 0.93, 0.87), 0.003),
        float_(century_egg=8, pork_shred=12, wide=0.85),
        float_(scallion=12),
    ),
    "小米粥": soup(
        ("bowl",), broth((0.97, 0.71, 0.26), 0.003), float_(millet=210, wide=1.05), float_(jujube=3, wide=0.4)
    ),
    # cold
    "拍黄瓜": cold(PLATES, sauce((0.62, 0.42, 0.16), 0.35), heap(cucumber_chunk=28), top(garlic=24, chili_ring=9)),
    "皮蛋豆腐": cold(
        ROUND, sauce(SOY, 0.45, 0.9), one(tofu_slab=1), ring(century_egg=8, wide=0.62), top(scallion=12, wide=0.3)
    ),
    "小葱拌豆腐": cold(PLATES, sauce(OIL, 0.25), heap(tofu=25), top(scallion=46)),
    "凉拌木耳": cold(
        PLATES, sauce((0.45, 0.25, 0.10), 0.3), heap(fungus=34), top(chili_ring=9, cilantro=8, garlic=10)
    ),
    "糖拌西红柿": cold(PLATES, ring(tomato_slice=11, wide=1.05), ring(tomato_slice=5, wide=0.42), top(sugar=150)),
    "油炸花生米": fried(PLATES, heap(red_peanut=120), top(sugar=40)),
    "凉拌海带丝": cold(PLATES, sauce((0.36, 0.24, 0.08), 0.3), heap(kelp=62), top(red_pepper=5, garlic=12, sesame=36)),
    "口水鸡": cold(
        ("bowl", "round plate"),
        sauce(RED_OIL, 0.9, 1.0, 0.005),
        fan(white_chicken=12),
        top(red_oil=9),
        top(peanut=13, sesame=40, scallion=10, wide=0.8),
    ),
    "糖醋藕片": cold(PLATES, sauce(OIL, 0.25), heap(lotus=17), top(chili_ring=6, scallion=6)),
    # fried and roasted
    "蛋炒饭": fried(
        ("round plate", "bowl"),
        one(gold_mound=1),
        heap(fried_rice=190, egg_bits=40, pea=16, carrot_dice=14),
        top(scallion=16),
    ),
    "糖醋里脊": fried(PLATES, sauce((0.88, 0.32, 0.05), 0.45), heap(sweet_pork=34), top(sesame=60)),
    "煎饺": fried(PLATES, fan(potsticker=10, wide=1.02), top(sesame=24)),
    "春卷": fried(PLATES, fan(spring_roll=5), top(cilantro=3, wide=0.3)),
    "荷包蛋": fried(ROUND, pack(fried_egg=2, wide=1.0), top(scallion=6)),
    "麻团": fried(PLATES, pack(sesame_ball=8), top(sesame=150, wide=0.98)),
    "北京烤鸭": roasted(OVAL, fan(duck=21, wide=1.02), side(cucumber_shred=8, scallion_shred=6)),
    "烤羊肉串": roasted(OVAL, one(skewer=4, wide=0.95), top(sesame=60, chopped_chili=8)),
}
