"""The table of texts: both languages, nothing missing, nothing left over."""

import re
import string
from pathlib import Path

import pytest

import common.demo
from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.demo.page import page
from common.demo.page.texts import TEXTS, PageError, both, text, value_name
from common.demo.pictures import film, own_picture, plane

FOLDER = Path(common.demo.__file__).parent
SOURCE = "".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.rglob("*.py")) if path.name != "texts.py")
SOURCE += re.split(r"\nclass PageError", (FOLDER / "page" / "texts.py").read_text(encoding="utf-8"))[1]
MADE = {  # keys that the code puts together
    *(f"shape.{name}" for name in plane.SHAPES),
    *(f"task.{name}" for name in own_picture.TASKS),
    *(f"camera.{name}" for name in film.CAMERAS),
    *(f"attribute.{name}" for name in NAMES),
    *(f"plane.{name}" for name in ("uncond", "cond", "guided")),
    *(f"picture.{name}" for name in ("given", "mosaic", "bicubic", "hole", "result")),
    *(f"own.{name}" for name in ("creature", "dish", "large", "unreadable")),
    *(f"{tab}.intro" for tab in ("digits", "plane", "creatures", "own", "film")),
}
QUOTED = set(re.findall(r"""["']([a-z0-9]+(?:[.-][a-z0-9-]+)*)["']""", SOURCE))


def fields(pattern: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(pattern) if name}


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_has_two_languages_with_the_same_fields(key):
    english, chinese = TEXTS[key]
    assert english.strip() and chinese.strip()
    assert fields(english) == fields(chinese)
    assert key == "creatures.example" or not re.search("[\u3400-\u9fff]", english.replace("番茄炒蛋", ""))
    assert re.search("[\u3400-\u9fff]", chinese)


def test_every_key_that_is_made_exists():
    assert TEXTS.keys() >= MADE


def test_no_text_is_left_over():
    assert TEXTS.keys() - MADE - QUOTED == set()


def test_a_key_that_is_asked_for_exists():
    asked = re.findall(r"(?:both|text|labelled|slider|PageError)\([^)]*?\"([a-z]+(?:\.[a-z0-9-]+)*)\"", SOURCE)
    named = {key for key in asked if "." in key or key in TEXTS}
    assert len(named) > 20 and named <= TEXTS.keys()


def test_every_value_of_a_creature_has_a_chinese_name():
    names = [value_name(name, value)[1] for name, values in ATTRIBUTES.items() for value in values]
    assert all(re.search("[\u3400-\u9fff]", name) for name in names)
    assert value_name("colour", "red") == ("red", "红色") and value_name("wings", "none") == ("none", "无")


def test_the_example_of_a_dish_is_the_same_on_both_menus():
    english, chinese = TEXTS["film.example"]
    assert film.dish_names("en").index(english) == film.dish_names("zh").index(chinese)


def test_every_example_is_in_the_language_of_the_page():
    """The fields hold the English example at first; the switch gives the other one, and leaves what a visitor wrote."""
    changed = next(each for each in page.build().fns.values() if len(each.inputs) == 3 and len(each.outputs) > 20)
    fields = [TEXTS[key] for key in ("creatures.example", "film.example")]
    for name, k in (("English", 0), ("中文", 1)):
        for given, expected in ((fields, [pair[k] for pair in fields]), ([("mine", "mine")] * 2, [])):
            updates = changed.fn(name, *(pair[1 - k] for pair in given))
            assert len(updates) == len(changed.outputs)
            assert [
                update["value"] for update in updates if update.get("value") in (*sum(fields, ()), "mine")
            ] == expected


def test_values_are_put_in_and_escaped():
    assert text("error.range", "zh", name=TEXTS["seed"], low=0, high=9) == "随机种子须在 0 到 9 之间。"
    shown = both("error.choice", value="<script>")
    assert "&lt;script&gt;" in shown and "<script>" not in shown
    assert shown.startswith('<span class="en">') and '<span class="zh">' in shown


def test_an_error_names_a_text():
    assert PageError("error.long", most=3).key in TEXTS
