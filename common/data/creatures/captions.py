"""A creature in words, English or Chinese: several ways to say each thing, and several ways to build the sentence.

A caption says nothing that the table of attributes does not. It may leave things out, and it may say less than the
table knows: a creature "with bat wings" is sometimes only called one "with wings". A model that never read the plain
word beside a picture of wings, but read "without wings", would draw none when it is asked for "wings".
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.data.creatures.attributes import NAMES, check_attributes
from common.data.drawn import check_description, choose

Phrase = tuple[str, str]  # (its place in the sentence, its words)


def adjective(*words: str) -> tuple[Phrase, ...]:
    """Before the noun: a RED creature."""
    return tuple(("adjective", w) for w in words)


def kind(*words: str) -> tuple[Phrase, ...]:
    """Right before the noun: a FIRE creature."""
    return tuple(("kind", w) for w in words)


def part(*words: str) -> tuple[Phrase, ...]:
    """What it has: with BAT WINGS."""
    return tuple(("part", w) for w in words)


def lacks(*words: str) -> tuple[Phrase, ...]:
    """What it has not: without WINGS."""
    return tuple(("lacks", w) for w in words)


def around(*words: str) -> tuple[Phrase, ...]:
    """At the end: ON A SKY BLUE BACKGROUND."""
    return tuple(("around", w) for w in words)


COLOURS_ZH = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色", "pink": "粉色", "brown": "棕色",
    "white": "白色", "black": "黑色",
}  # fmt: skip

ENGLISH: dict[str, dict[str, tuple[Phrase, ...]]] = {
    "mood": {
        "happy": adjective("happy", "smiling"),
        "sleepy": adjective("sleepy", "sleeping"),
        "angry": adjective("angry", "grumpy"),
    },
    "body": {
        "round": adjective("round", "ball-shaped"),
        "tall": adjective("tall", "egg-shaped"),
        "wide": adjective("wide", "squat"),
        "square": adjective("square", "boxy"),
        "pear": adjective("pear-shaped"),
        "fluffy": adjective("fluffy", "woolly"),
    },
    "pattern": {
        "plain": adjective("plain") + lacks("a pattern"),
        "belly": part("a light belly", "a pale belly"),
        "stripes": adjective("striped") + part("stripes"),
        "spots": adjective("spotted") + part("spots"),
    },
    "eyes": {
        "one": adjective("one-eyed") + part("one eye", "a single eye"),
        "two": adjective("two-eyed") + part("two eyes"),
        "three": adjective("three-eyed") + part("three eyes"),
    },
    "colour": {colour: adjective(colour) for colour in COLOURS_ZH},
    "element": {
        "fire": kind("fire") + around("fire type", "surrounded by flames"),
        "water": kind("water") + around("water type", "surrounded by water drops"),
        "grass": kind("grass") + around("grass type", "surrounded by leaves"),
        "electric": kind("electric") + around("electric type", "surrounded by lightning bolts"),
        "ice": kind("ice") + around("ice type", "surrounded by snowflakes"),
        "rock": kind("rock") + around("rock type", "surrounded by rocks"),
        "ghost": kind("ghost") + around("ghost type", "surrounded by little ghosts"),
        "fairy": kind("fairy") + around("fairy type", "surrounded by hearts"),
    },
    "wings": {
        "none": lacks("wings"),
        "feathered": part("feathered wings", "bird wings"),
        "bat": part("bat wings"),
        "butterfly": part("butterfly wings"),
    },
    "ears": {
        "none": lacks("ears"),
        "cat": part("cat ears", "pointed cat ears"),
        "bear": part("bear ears"),
        "rabbit": part("rabbit ears", "long rabbit ears"),
        "dog": part("dog ears", "floppy dog ears"),
    },
    "horns": {
        "none": lacks("horns or antennae", "horns", "antennae"),
        "one": part("one horn", "a single horn"),
        "two": part("two horns", "a pair of horns"),
        "antennae": part("antennae", "two antennae"),
    },
    "tail": {
        "none": lacks("a tail"),
        "long": part("a long tail"),
        "curly": part("a curly tail"),
        "bushy": part("a bushy tail"),
        "pointed": part("a pointed tail", "an arrow tail"),
    },
    "background": {
        "cream": around("on a cream background"),
        "sky": around("on a sky blue background"),
        "mint": around("on a mint background"),
        "rose": around("on a rose background"),
        "lilac": around("on a lilac background"),
    },
}

CHINESE: dict[str, dict[str, tuple[Phrase, ...]]] = {
    "mood": {
        "happy": adjective("开心的", "笑眯眯的"),
        "sleepy": adjective("困倦的", "睡着的"),
        "angry": adjective("生气的", "气呼呼的"),
    },
    "colour": {colour: adjective(word) for colour, word in COLOURS_ZH.items()},
    "body": {
        "round": adjective("圆滚滚的", "圆圆的"),
        "tall": adjective("高高的", "蛋形"),
        "wide": adjective("扁扁的", "矮胖的"),
        "square": adjective("方方的", "方形"),
        "pear": adjective("梨形"),
        "fluffy": adjective("毛茸茸的"),
    },
    "pattern": {
        "plain": adjective("纯色的") + lacks("花纹"),
        "belly": part("浅色肚皮", "浅色的肚子"),
        "stripes": adjective("带条纹的") + part("条纹"),
        "spots": adjective("带斑点的") + part("斑点"),
    },
    "eyes": {
        "one": adjective("独眼的") + part("一只眼睛"),
        "two": part("两只眼睛"),
        "three": adjective("三眼的") + part("三只眼睛"),
    },
    "element": {
        "fire": kind("火属性") + around("火属性", "身边有火焰"),
        "water": kind("水属性") + around("水属性", "身边有水滴"),
        "grass": kind("草属性") + around("草属性", "身边有绿叶"),
        "electric": kind("电属性") + around("电属性", "身边有闪电"),
        "ice": kind("冰属性") + around("冰属性", "身边有雪花"),
        "rock": kind("岩石属性") + around("岩石属性", "身边有石头"),
        "ghost": kind("幽灵属性") + around("幽灵属性", "身边有小幽灵"),
        "fairy": kind("妖精属性") + around("妖精属性", "身边有爱心"),
    },
    "wings": {
        "none": lacks("翅膀"),
        "feathered": part("羽毛翅膀", "鸟翅膀"),
        "bat": part("蝙蝠翅膀"),
        "butterfly": part("蝴蝶翅膀"),
    },
    "ears": {
        "none": lacks("耳朵"),
        "cat": part("猫耳朵", "尖尖的猫耳朵"),
        "bear": part("熊耳朵"),
        "rabbit": part("兔耳朵", "长长的兔耳朵"),
        "dog": part("狗耳朵", "垂下来的狗耳朵"),
    },
    "horns": {
        "none": lacks("角和触角", "角", "触角"),
        "one": part("一只角", "独角"),
        "two": part("两只角", "一对角"),
        "antennae": part("触角", "一对触角"),
    },
    "tail": {
        "none": lacks("尾巴"),
        "long": part("长尾巴", "长长的尾巴"),
        "curly": part("卷尾巴", "卷卷的尾巴"),
        "bushy": part("蓬松的尾巴", "蓬蓬的尾巴"),
        "pointed": part("尖尾巴", "箭头尾巴"),
    },
    "background": {
        "cream": around("奶油色背景"),
        "sky": around("天蓝色背景"),
        "mint": around("薄荷色背景"),
        "rose": around("玫瑰色背景"),
        "lilac": around("淡紫色背景"),
    },
}

# The plain word for what there are several kinds of. "without wings" and "wings" are then one word with two meanings
# to learn, as in captions that people write.
PLAIN_WORDS = {
    "en": {"wings": "wings", "ears": "ears", "horns": "horns", "tail": "a tail", "pattern": "a pattern"},
    "zh": {"wings": "翅膀", "ears": "耳朵", "horns": "角", "tail": "尾巴", "pattern": "花纹"},
}
OTHERS = {("horns", "antennae"), ("pattern", "plain"), ("pattern", "belly")}  # values that this word does not fit
PLAIN_RATE = 0.25  # of the mentions of something that has a plain word

# How often a caption speaks of an attribute; of something that is not there, much less.
MENTION_RATE = {
    "colour": 0.95, "body": 0.7, "element": 0.8, "wings": 0.8, "tail": 0.65, "ears": 0.65, "horns": 0.65, "pattern": 0.6,
    "eyes": 0.5, "mood": 0.5, "background": 0.4,
}  # fmt: skip
MENTION_RATE_OF_NONE = 0.25


class Mention(NamedTuple):
    """The attributes that a caption speaks of."""

    exact: list[str]  # by the words for their value: bat wings
    plain: list[str]  # by their plain word: wings


def describe(
    attributes: Mapping[str, str], language: str, rng: np.random.Generator, mention: Sequence[str] | None = None
) -> str:
    """A caption for a creature.

    attributes  the name of a value for each attribute
    language    "en" or "zh"
    mention     the attributes to speak of, each by the words for its value; None leaves some out at random, and says
                others by their plain word
    """
    check_attributes(attributes)
    check_description("a creature", NAMES, language, mention)
    said = choose_mention(attributes, rng) if mention is None else Mention(list(mention), [])
    phrases = ENGLISH if language == "en" else CHINESE
    found: dict[str, list[str]] = {"adjective": [], "kind": [], "part": [], "lacks": [], "around": []}
    for name, values in phrases.items():  # in the order in which the language likes them
        if name in said.exact:
            place, words = choose(values[attributes[name]], rng)
            found[place].append(words)
        elif name in said.plain:
            one_horn = (language, name, attributes[name]) == ("en", "horns", "one")
            found["part"].append("a horn" if one_horn else PLAIN_WORDS[language][name])
    return (english if language == "en" else chinese)(found, rng)


def choose_mention(attributes: Mapping[str, str], rng: np.random.Generator) -> Mention:
    """The attributes that a caption will speak of; at least one."""
    spoken_of, plainly = rng.random((2, len(NAMES)))
    rates = [MENTION_RATE_OF_NONE if attributes[name] == "none" else MENTION_RATE[name] for name in NAMES]
    said = [name for name, u, rate in zip(NAMES, spoken_of, rates, strict=True) if u < rate] or ["colour"]
    by_plain_word = {name for name, u in zip(NAMES, plainly, strict=True) if u < PLAIN_RATE}
    plain = [name for name in said if name in by_plain_word and has_plain_word(name, attributes[name])]
    return Mention([name for name in said if name not in plain], plain)


def has_plain_word(name: str, value: str) -> bool:
    return name in PLAIN_WORDS["en"] and value != "none" and (name, value) not in OTHERS


def english(found: dict[str, list[str]], rng: np.random.Generator) -> str:
    style = choose(("phrase", "phrase", "sentence", "tags"), rng)
    little, noun = choose((("", "creature"), ("", "monster"), ("little", "monster")), rng)
    noun = " ".join(word for word in (little, *found["kind"], noun) if word)
    has = [listed(found["part"], ", ", " and ")] if found["part"] else []
    lacks = [" or ".join(found["lacks"])] if found["lacks"] else []
    if style == "tags":
        bare = [
            words.removeprefix("on ").removeprefix("an ").removeprefix("a ")
            for words in found["part"] + found["around"]
        ]
        without = [f"no {words.removeprefix('a ')}" for words in found["lacks"]]
        return ", ".join([*found["adjective"], noun, *bare, *without])
    if style == "sentence" and found["adjective"]:
        tail = (
            [f"it has {w}" for w in has]
            + [f"it has no {w.removeprefix('a ').replace(' or a ', ' or ')}" for w in lacks]
            + found["around"]
        )
        return "; ".join([f"this {noun} is {listed(found['adjective'], ', ', ' and ')}", *tail])
    whole = with_article(" ".join([*found["adjective"], noun]))
    whole += "".join(f" with {w}" for w in has) + "".join(f"{' but' if has else ''} without {w}" for w in lacks)
    return ", ".join([whole, *found["around"]])


def chinese(found: dict[str, list[str]], rng: np.random.Generator) -> str:
    style = choose(("phrase", "phrase", "sentence", "tags"), rng)
    noun = choose(("小怪兽", "怪兽", "小怪物"), rng)
    end = [f"没有{words}" for words in found["lacks"]] + found["around"]
    if style == "tags":
        return "，".join([*found["adjective"], "".join([*found["kind"], noun]), *found["part"], *end])
    if found["part"]:
        end = [choose(("长着", "有"), rng) + listed(found["part"], "、", "和"), *end]
    kind = "".join(f"{words}的" for words in found["kind"])
    if style == "sentence" and found["adjective"]:
        qualities = "、".join(words.removesuffix("的") + "的" for words in found["adjective"])
        return "，".join([f"这只{kind}{noun}是{qualities}", *end])
    return "，".join([f"一只{''.join(found['adjective'])}{kind}{noun}", *end])


def listed(words: Sequence[str], comma: str, last: str) -> str:
    """a, b and c"""
    return last.join([comma.join(words[:-1]), words[-1]] if len(words) > 1 else words)


def with_article(words: str) -> str:
    """a red creature, an orange creature; but a one-eyed creature."""
    return f"{'an' if words[0] in 'aeio' and not words.startswith('one-') else 'a'} {words}"
