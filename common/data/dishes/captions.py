"""A dish in words, Chinese or English: one of its names, and what it is served in and on.

A caption says nothing that the table of attributes does not; it may leave everything out but the name.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from common.data.dishes.attributes import NAMES, check_attributes
from common.data.dishes.names import NAMES as DISH_NAMES
from common.data.drawn import check_description, choose

# how often a caption speaks of it; of the dish, always
MENTION_RATE = {"style": 0.25, "vessel": 0.75, "glaze": 0.45, "table": 0.6}

STYLES = {
    "stir-fried": ("stir-fried", "炒菜"), "braised": ("braised", "炖菜"), "steamed": ("steamed", "蒸菜"), "boiled": ("boiled", "煮菜"),
    "soup": ("soup", "汤羹"), "cold": ("cold dish", "凉菜"), "fried": ("fried", "煎炸"), "roasted": ("roasted", "烧烤"),
}  # fmt: skip
VESSELS = {  # English, Chinese, the Chinese measure word
    "round plate": (("plate", "round plate"), ("盘子", "圆盘"), "盘"),
    "oval plate": (("plate", "oval plate"), ("盘子", "椭圆盘"), "盘"),
    "square plate": (("plate", "square plate"), ("盘子", "方盘"), "盘"),
    "bowl": (("bowl",), ("碗", "大碗"), "碗"),
    "steamer": (("bamboo steamer", "steamer"), ("蒸笼", "竹蒸笼"), "笼"),
    "clay pot": (("clay pot",), ("砂锅",), "锅"),
}
GLAZES = {"white": "白瓷", "blue-and-white": "青花", "celadon": "青瓷", "black": "黑瓷"}  # English: Chinese
TABLES = {
    "wood": ("a wooden table", "木桌"),
    "linen": ("a linen tablecloth", "亚麻桌布"),
    "gingham": ("a red checked tablecloth", "红格子桌布"),
    "slate": ("a slate table", "石板桌"),
    "marble": ("a marble table", "大理石桌"),
    "bamboo": ("a bamboo mat", "竹席"),
}


def describe(
    attributes: Mapping[str, str], language: str, rng: np.random.Generator, mention: Sequence[str] | None = None
) -> str:
    """A caption for a dish.

    attributes  the name of a value for each attribute
    language    "en" or "zh"
    mention     the attributes to speak of beside the dish; () is the name alone, None leaves some out by chance
    """
    check_attributes(attributes)
    check_description("a dish", NAMES, language, mention)
    name = choose(names_of(attributes["dish"], language), rng)
    luck = rng.random(len(MENTION_RATE))  # drawn in any case: the words do not depend on what is mentioned
    if mention is None:
        mention = [n for n, u in zip(MENTION_RATE, luck, strict=True) if u < MENTION_RATE[n]]
    said = [n for n in mention if n != "glaze" or attributes["glaze"] != "none"]
    return (english if language == "en" else chinese)(name, attributes, said, rng) if said else name


def names_of(dish: str, language: str) -> tuple[str, ...]:
    """All names of a dish in one language."""
    others, english_names = DISH_NAMES[dish]
    return (dish, *others) if language == "zh" else english_names


def english(name: str, a: Mapping[str, str], said: list[str], rng: np.random.Generator) -> str:
    """a white plate of NAME on a wooden table, top view / NAME in a clay pot / NAME, soup, bowl, marble table"""
    form, vessel = choose(("of", "of", "in", "tags"), rng), choose(VESSELS[a["vessel"]][0], rng)
    view = choose(("", "", ", top view"), rng)
    glaze = f"{a['glaze']} " if "glaze" in said else ""
    container = glaze + vessel if "vessel" in said or glaze else ""
    table = TABLES[a["table"]][0] if "table" in said else ""
    style = STYLES[a["style"]][0] if "style" in said else ""
    style = "" if style in name else style
    if form == "tags":
        return ", ".join(words for words in (name, style, container, table.removeprefix("a ")) if words)
    where = f" on {table}" if table else ""
    if container and form == "of":
        text = f"{with_article(container)} of {name}"
    else:
        text = f"{name} {'on' if 'plate' in vessel else 'in'} {with_article(container)}" if container else name
        where = where.replace(" on ", ", on ") if container else where
    return text + where + (f", {style}" if style else "") + view


def with_article(words: str) -> str:
    return f"{'an' if words.startswith('oval') else 'a'} {words}"


def chinese(name: str, a: Mapping[str, str], said: list[str], rng: np.random.Generator) -> str:
    """一盘NAME，木桌 / 白瓷盘里的NAME / 木桌上的一碗NAME / NAME，汤羹，青花碗，大理石桌"""
    form, vessel = choose(("measure", "measure", "in", "tags"), rng), choose(VESSELS[a["vessel"]][1], rng)
    view = choose(("", "", "，俯拍"), rng)
    glaze = GLAZES[a["glaze"]] if "glaze" in said else ""
    container = glaze + (vessel.removesuffix("子") if glaze else vessel) if "vessel" in said or glaze else ""
    table = TABLES[a["table"]][1] if "table" in said else ""
    style = STYLES[a["style"]][1] if "style" in said else ""
    if form == "tags":
        return "，".join(words for words in (name, style, container, table) if words)
    text = name
    if container:
        text = f"一{VESSELS[a['vessel']][2]}{name}" if form == "measure" and not glaze else f"{container}里的{name}"
    if table and rng.random() < 0.5:
        text = f"{table}上的{text}"
    elif table:
        text = f"{text}，{table}"
    return text + (f"，{style}" if style else "") + view
