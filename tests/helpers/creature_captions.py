"""What captions of creatures say, read without a look at the program that writes them."""

import re
from collections.abc import Mapping

from common.data.creatures.attributes import ATTRIBUTES

# What a reader understands, written down without a look at the program: what each group of words claims.
ENGLISH = {
    "colour": {colour: (colour,) for colour in ATTRIBUTES["colour"]},
    "body": {"round": ("round", "ball-shaped"), "tall": ("tall", "egg-shaped"), "wide": ("wide", "squat"), "square": ("square", "boxy"),
             "pear": ("pear-shaped",), "fluffy": ("fluffy", "woolly")},
    "element": {e: (f"{e} type", f"{e} creature", f"{e} monster", f"surrounded by {seen}") for e, seen in {
        "fire": "flames", "water": "water drops", "grass": "leaves", "electric": "lightning bolts", "ice": "snowflakes",
        "rock": "rocks", "ghost": "little ghosts", "fairy": "hearts"}.items()},
    "tail": {"long": ("long tail",), "curly": ("curly tail",), "bushy": ("bushy tail",), "pointed": ("pointed tail", "arrow tail")},
    "ears": {"cat": ("cat ears", "pointed cat ears"), "bear": ("bear ears",), "rabbit": ("rabbit ears", "long rabbit ears"),
             "dog": ("dog ears", "floppy dog ears")},
    "wings": {"feathered": ("feathered wings", "bird wings"), "bat": ("bat wings",), "butterfly": ("butterfly wings",)},
    "horns": {"one": ("one horn", "single horn"), "two": ("two horns", "pair of horns"), "antennae": ("antennae", "two antennae")},
    "pattern": {"plain": ("plain",), "belly": ("light belly", "pale belly"), "stripes": ("striped", "stripes"), "spots": ("spotted", "spots")},
    "eyes": {"one": ("one-eyed", "one eye", "single eye"), "two": ("two-eyed", "two eyes"), "three": ("three-eyed", "three eyes")},
    "mood": {"happy": ("happy", "smiling"), "sleepy": ("sleepy", "sleeping"), "angry": ("angry", "grumpy")},
    "background": {"cream": ("cream background",), "sky": ("sky blue background",), "mint": ("mint background",),
                   "rose": ("rose background",), "lilac": ("lilac background",)},
}  # fmt: skip
CHINESE = {
    "colour": {"red": ("红色",), "orange": ("橙色",), "yellow": ("黄色",), "green": ("绿色",), "blue": ("蓝色",), "purple": ("紫色",),
               "pink": ("粉色",), "brown": ("棕色",), "white": ("白色",), "black": ("黑色",)},
    "body": {"round": ("圆滚滚", "圆圆"), "tall": ("高高", "蛋形"), "wide": ("扁扁", "矮胖"), "square": ("方方", "方形"), "pear": ("梨形",),
             "fluffy": ("毛茸茸",)},
    "element": {e: (f"{word}属性", f"身边有{seen}") for e, word, seen in (
        ("fire", "火", "火焰"), ("water", "水", "水滴"), ("grass", "草", "绿叶"), ("electric", "电", "闪电"), ("ice", "冰", "雪花"),
        ("rock", "岩石", "石头"), ("ghost", "幽灵", "小幽灵"), ("fairy", "妖精", "爱心"))},
    "tail": {"long": ("长尾巴", "长长的尾巴"), "curly": ("卷尾巴", "卷卷的尾巴"), "bushy": ("蓬松的尾巴", "蓬蓬的尾巴"), "pointed": ("尖尾巴", "箭头尾巴")},
    "ears": {"cat": ("猫耳朵", "尖尖的猫耳朵"), "bear": ("熊耳朵",), "rabbit": ("兔耳朵", "长长的兔耳朵"), "dog": ("狗耳朵", "垂下来的狗耳朵")},
    "wings": {"feathered": ("羽毛翅膀", "鸟翅膀"), "bat": ("蝙蝠翅膀",), "butterfly": ("蝴蝶翅膀",)},
    "horns": {"one": ("一只角", "独角"), "two": ("两只角", "一对角"), "antennae": ("触角", "一对触角")},
    "pattern": {"plain": ("纯色",), "belly": ("浅色肚皮", "浅色的肚子"), "stripes": ("带条纹", "条纹"), "spots": ("带斑点", "斑点")},
    "eyes": {"one": ("独眼", "一只眼睛"), "two": ("两只眼睛",), "three": ("三眼", "三只眼睛")},
    "mood": {"happy": ("开心", "笑眯眯"), "sleepy": ("困倦", "睡着"), "angry": ("生气", "气呼呼")},
    "background": {"cream": ("奶油色背景",), "sky": ("天蓝色背景",), "mint": ("薄荷色背景",), "rose": ("玫瑰色背景",), "lilac": ("淡紫色背景",)},
}  # fmt: skip
# The plain word says that there is one of some kind: the value "any".
PLAIN = {
    "en": {"wings": "wings", "ears": "ears", "horns": "(?:horn|horns)", "tail": "tail", "pattern": "pattern"},
    "zh": {"wings": "翅膀", "ears": "耳朵", "horns": "角", "tail": "尾巴", "pattern": "花纹"},
}
ABSENT = {
    "en": {
        "wings": "wings",
        "ears": "ears",
        "horns": "horns or antennae|horns|antennae",
        "tail": "(?:a )?tail",
        "pattern": "(?:a )?pattern",
    },
    "zh": {"wings": "翅膀", "ears": "耳朵", "horns": "角和触角|触角|角", "tail": "尾巴", "pattern": "花纹"},
}
GLUE = {
    "en": r"\b(?:a|an|this|little|creature|monster|with|without|but|and|or|is|it|has|no|on)\b|[,;\s]",
    "zh": "一只|这只|小怪兽|怪兽|小怪物|长着|没有|有|是|和|的|[，、]",
}


def claims(text: str, language: str) -> set[tuple[str, str]]:
    """Everything a caption says, as (attribute, value), with the value "any" for a plain word and "none" or "plain" for
    what is absent; fails if a word is left that says nothing known.
    """
    found = set()

    def absent(match: re.Match) -> str:
        rest = match[0]
        for name, words in ABSENT[language].items():
            if re.search(words, rest):
                found.add((name, "plain" if name == "pattern" else "none"))
                rest = re.sub(words, " ", rest)
        return rest

    text = re.sub(r"\b(?:without|no)\b[^,;]*" if language == "en" else "没有[^，]*", absent, text)
    known = [
        (w, n, v) for n, vs in (ENGLISH if language == "en" else CHINESE).items() for v, ws in vs.items() for w in ws
    ]
    for words, name, value in sorted(known, key=lambda k: -len(k[0])):
        pattern = rf"\b{words}\b" if language == "en" else words
        if re.search(pattern, text):
            found.add((name, value))
            text = re.sub(pattern, " creature " if words.endswith(("creature", "monster")) else " ", text)
    for name, words in PLAIN[language].items():
        pattern = rf"\b{words}\b" if language == "en" else words
        if re.search(pattern, text):
            found.add((name, "any"))
            text = re.sub(pattern, " ", text)
    left = re.sub(GLUE[language], "", text).replace(" ", "")
    assert not left, f"what is '{left}'?"
    return found


def is_true(claim: tuple[str, str], attributes: Mapping[str, str]) -> bool:
    """Whether a creature is as this claim of its caption says."""
    name, value = claim
    return (
        attributes[name] not in ("none", "plain", "belly", "antennae") if value == "any" else attributes[name] == value
    )
