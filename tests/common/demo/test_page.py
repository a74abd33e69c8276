"""The page in a real browser: every tab in both languages, wrong input, stopping, and the switch of the language.

Every visit also asserts that the console shows no error and that nothing is asked of another computer (conftest.py).
"""

import re

import pytest

from common.demo.page.texts import TEXTS

LOCALES = {"en": "en-US", "zh": "zh-CN"}
DONE = {"en": r"Done in [\d.]+ s\.", "zh": r"完成，用时 [\d.]+ 秒。"}
SETTINGS = {  # tab: its number, sliders, and what its result must hold
    "digits": (0, {"digits_steps": 3, "digits_count": 2}, "img", 4),
    "plane": (1, {"plane_steps": 3}, "svg", 2),
    "creatures": (2, {"creatures_steps": 3, "creatures_count": 2}, "img", 2),
    "own": (3, {"own_steps": 10}, "img", 2),
    "film": (4, {"film_steps": 2, "film_frames": 4}, "img.film", 1),
}


def foreign(language: str) -> set[str]:
    """Texts of the page that the other language has and this one has not. The examples are shown in both."""
    k = ("en", "zh").index(language)
    pairs = [pair for key, pair in TEXTS.items() if key != "creatures.example"]
    return {pair[1 - k] for pair in pairs} - {pair[k] for pair in pairs}


def visible_lines(page) -> set[str]:
    return {line.strip() for line in page.inner_text("body").splitlines()}


@pytest.mark.parametrize("language", LOCALES)
@pytest.mark.parametrize("tab", SETTINGS)
def test_every_tab_shows_pictures_in_both_languages(visit, tab, language):
    number, sliders, kind, least = SETTINGS[tab]
    visitor = visit(LOCALES[language])
    page = visitor.page
    visitor.tab(number)
    visitor.fill(**sliders)
    if tab == "own":
        page.click("#own-creature")
        page.wait_for_function("window.demoEasel.picture() !== ''")
    assert re.fullmatch(DONE[language], visitor.run(tab))
    assert page.locator(f"#{tab}-result {kind}").count() >= least
    assert visible_lines(page) & foreign(language) == set()
    scales = page.evaluate(
        "() => [...document.querySelectorAll('img.pixels')].map((i) => [i.clientWidth / i.naturalWidth, getComputedStyle(i).imageRendering])"
    )
    assert all(scale in (2, 3, 4) and rendering == "pixelated" for scale, rendering in scales)


def test_the_switch_changes_every_text_and_keeps_the_result(visit):
    visitor = visit("en-US")
    page = visitor.page
    visitor.fill(digits_steps=2, digits_count=1)
    visitor.run("digits")
    before = page.locator("#digits-result img").first.get_attribute("src")
    page.get_by_text("中文", exact=True).click()
    page.wait_for_function("document.querySelector('#digits-run').innerText.trim() === '生成'")
    for number in range(5):
        visitor.tab(number)
        assert visible_lines(page) & foreign("zh") == set()
    assert page.locator("#digits-result img").first.get_attribute("src") == before
    visitor.tab(0)
    assert page.inner_text("#digits-status").strip().startswith("完成")


def test_examples_follow_the_language_until_something_else_is_written(visit):
    visitor = visit("zh-CN")
    page = visitor.page
    prompt, dish = page.locator("#creatures-prompt textarea"), page.locator("#film-dish input")
    examples = [TEXTS["creatures.example"], TEXTS["film.example"]]
    visitor.tab(2)
    assert prompt.input_value() == examples[0][1]
    visitor.tab(4)
    assert dish.input_value() == examples[1][1]
    visitor.tab(2)
    prompt.fill("一只蓝色的小怪兽")
    page.get_by_text("English", exact=True).click()
    page.wait_for_function("document.querySelector('#creatures-run').innerText.trim() === 'Generate'")
    assert prompt.input_value() == "一只蓝色的小怪兽"
    visitor.tab(4)
    assert dish.input_value() == examples[1][0]


def test_the_moments_can_be_looked_back_at(visit):
    visitor = visit("en-US")
    page = visitor.page
    visitor.fill(digits_steps=2, digits_count=1)
    visitor.run("digits")
    end = page.locator("#digits-result img").first.get_attribute("src")
    visitor.fill(digits_moment=0)
    page.wait_for_function(
        "(end) => document.querySelector('#digits-result img').getAttribute('src') !== end", arg=end
    )


def test_long_work_is_stopped_and_the_next_one_runs(visit):
    visitor = visit("en-US")
    visitor.fill(digits_steps=100, digits_count=16)
    visitor.page.click("#digits-run")
    visitor.page.wait_for_selector("#digits-result img")
    visitor.page.click("#digits-stop")
    assert visitor.status("digits", "Stopped") == "Stopped."
    visitor.tab(1)  # the queue is free again
    visitor.fill(plane_steps=2)
    assert re.fullmatch(DONE["en"], visitor.run("plane"))
    visitor.tab(0)
    assert visitor.page.inner_text("#digits-status").strip() == "Stopped."
    assert 0 <= int(visitor.page.input_value("#digits-moment input[type=number]")) < 100


@pytest.mark.parametrize("language", LOCALES)
def test_wrong_input_shows_a_message(visit, language, tmp_path):
    k = ("en", "zh").index(language)
    visitor = visit(LOCALES[language])
    page = visitor.page
    visitor.tab(2)
    page.fill("#creatures-prompt textarea", "  ")
    assert visitor.run("creatures") == TEXTS["error.prompt"][k]
    page.fill("#creatures-prompt textarea", "red " * 100)
    assert visitor.run("creatures") == TEXTS["error.long"][k].format(most=200)

    visitor.tab(3)
    assert visitor.run("own") == TEXTS["error.picture"][k]
    (tmp_path / "odd.png").write_bytes(b"<html>no picture</html>")
    page.set_input_files("#easel input[type=file]", tmp_path / "odd.png")
    page.wait_for_selector("#easel [data-message=unreadable]")
    assert page.inner_text("#easel [data-message=unreadable]") == TEXTS["own.unreadable"][k]
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(20_000_001)
    page.set_input_files("#easel input[type=file]", tmp_path / "huge.png")
    page.wait_for_selector("#easel [data-message=large]")
    assert page.inner_text("#easel [data-message=large]") == TEXTS["own.large"][k]


def test_a_prompt_is_shown_as_text(visit):
    visitor = visit("en-US")
    visitor.tab(2)
    visitor.fill(creatures_steps=2, creatures_count=1)
    visitor.page.fill("#creatures-prompt textarea", "<img src=x onerror='window.wrong=1'> ${7*7} {{value}}")
    assert re.fullmatch(DONE["en"], visitor.run("creatures"))
    assert visitor.page.evaluate("window.wrong === undefined")
    assert "onerror" in visitor.page.inner_text("#creatures-result")


def test_a_file_is_cut_and_what_is_brushed_over_is_painted_anew(visit, tmp_path):
    from PIL import Image

    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(tmp_path / "wide.jpg")
    visitor = visit("en-US")
    page = visitor.page
    visitor.tab(3)
    page.set_input_files("#easel input[type=file]", tmp_path / "wide.jpg")
    page.wait_for_function("window.demoEasel.picture() !== ''")
    page.click("#own-task input")
    page.get_by_role("option", name=TEXTS["task.inpaint"][0]).click()
    visitor.fill(own_steps=10)
    assert visitor.run("own") == TEXTS["error.hole"][0]
    box = page.locator("#easel canvas.brush").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 200, steps=5)
    page.mouse.up()
    assert re.fullmatch(DONE["en"], visitor.run("own"))
    assert page.locator("#own-result img").count() == 3
