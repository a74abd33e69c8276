"""The five tabs."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from common.demo.page import checks, show
from common.demo.page.texts import TEXTS, Language, text
from common.demo.page.widgets import NAMES, RunPanel, Translated, label_of, names_in, seed, slider, value_of
from common.demo.pictures import creatures, digits, film, own_picture, plane

MOST_SEED, MOST_GUIDANCE = 99999, 12
EASEL_INPUTS = "(picture, brush, ...rest) => [window.demoEasel.picture(), window.demoEasel.brush(), ...rest]"
FIRST_LANGUAGE = "() => (navigator.language || '').toLowerCase().startsWith('zh') ? '中文' : 'English'"


def build() -> gr.Blocks:
    """The page. Its style and script are given to launch()."""
    translated = Translated()
    with gr.Blocks(title=TEXTS["title"][0], analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_classes="demo-top"):
            gr.HTML(show.heading())
            language = gr.Radio(list(NAMES), value="English", show_label=False, container=False, elem_id="language")
        with gr.Tabs():
            for name, fill in (
                ("digits", digit_tab),
                ("plane", plane_tab),
                ("creatures", creature_tab),
                ("own", own_tab),
                ("film", film_tab),
            ):
                with translated(gr.Tab, label_of(name), elem_id=f"tab-{name}"):
                    gr.HTML(show.introduction(f"{name}.intro"))
                    with gr.Row():
                        fill(translated)
        translated.connect(language)
        page.load(None, None, language, js=FIRST_LANGUAGE, api_visibility="private")
    return page


def controls() -> gr.Column:
    return gr.Column(scale=1, min_width=280)


def results() -> gr.Column:
    return gr.Column(scale=3, min_width=420)


def guidance(translated: Translated, value: float) -> Any:
    return translated.labelled(
        gr.Slider, "guidance", "guidance.info", minimum=0, maximum=MOST_GUIDANCE, value=value, step=0.5, buttons=[]
    )


# --------------------------------------------------------------------------------------------------------------- digits


def digit_tab(translated: Translated) -> None:
    names = [(name, name) for name in digits.CHOICES]
    with controls():
        first = translated.choices("digits.first", lambda _: names, value="ddim")
        second = translated.choices("digits.second", lambda _: names, value="dpmpp_2m")
        steps = slider(translated, "steps", 2, digits.MOST_STEPS, 20, step=1, elem_id="digits-steps")
        count = slider(translated, "digits.count", 1, digits.MOST_DIGITS, 8, step=1, elem_id="digits-count")
        number = seed(translated)
        panel = RunPanel(translated, "digits")
    with results():
        panel.results(translated, history=True)

    def generate(one: Any, two: Any, steps: Any, n: Any, number: Any) -> Iterator[digits.DigitMoment]:
        samplers = [checks.choice(name, digits.CHOICES) for name in (one, two)]
        steps = checks.whole(steps, "steps", 2, digits.MOST_STEPS)
        n = checks.whole(n, "digits.count", 1, digits.MOST_DIGITS)
        return digits.denoise_digits(samplers, steps, n, checks.whole(number, "seed", 0, MOST_SEED))

    panel.connect(generate, show.digits, [first, second, steps, count, number])


# ---------------------------------------------------------------------------------------------------------------- plane

CLOUD = 500


def class_names(language: Language) -> list[tuple[str, Any]]:
    numbered = [(text("class.number", language, number=k + 1), k) for k in range(plane.CLASSES)]
    return [(text("class.all", language), -1), *numbered]


def plane_tab(translated: Translated) -> None:
    with controls():
        shape = translated.choices(
            "plane.shape",
            lambda lang: names_in(lang, *((f"shape.{name}", name) for name in plane.SHAPES)),
            value="moons",
        )
        label = translated.choices("plane.class", class_names, value=0)
        w = guidance(translated, 2)
        sampler = translated.choices(
            "plane.sampler", lambda _: [(name, name) for name in digits.CHOICES], value="ddim"
        )
        steps = slider(translated, "steps", 2, 100, 30, step=1, elem_id="plane-steps")
        number = seed(translated)
        panel = RunPanel(translated, "plane")
    with results():
        panel.results(translated, history=True)

    def generate(shape: Any, label: Any, w: Any, sampler: Any, steps: Any, number: Any) -> Iterator[plane.PlaneMoment]:
        shape, label = checks.choice(shape, plane.SHAPES), checks.choice(label, range(-1, plane.CLASSES))
        label = None if label < 0 else label
        w = checks.number(w, "guidance", 0, MOST_GUIDANCE)
        sampler, steps = checks.choice(sampler, digits.CHOICES), checks.whole(steps, "steps", 2, 100)
        return plane.denoise_plane(shape, label, w, sampler, steps, CLOUD, checks.whole(number, "seed", 0, MOST_SEED))

    panel.connect(generate, show.plane, [shape, label, w, sampler, steps, number])


# ------------------------------------------------------------------------------------------------------------ creatures


def creature_tab(translated: Translated) -> None:
    with controls():
        example = TEXTS["creatures.example"]
        prompt = translated.example(gr.Textbox, label_of("prompt"), example, elem_id="creatures-prompt", lines=2)
        gr.Examples([[each] for each in example], prompt, label="English / 中文")
        negative = translated.labelled(gr.Textbox, "creatures.negative", "creatures.negative.info")
        w = guidance(translated, 3)
        steps = slider(translated, "steps", 2, creatures.MOST_STEPS, 20, step=1, elem_id="creatures-steps")
        count = slider(translated, "creatures.count", 1, creatures.MOST_PICTURES, 4, step=1, elem_id="creatures-count")
        number = seed(translated)
        panel = RunPanel(translated, "creatures")
    with results():
        panel.results(translated)

    def generate(
        prompt: Any, negative: Any, w: Any, steps: Any, n: Any, number: Any
    ) -> Iterator[creatures.CreatureMoment]:
        prompt, negative = checks.words(prompt, "error.prompt"), checks.words(negative)
        w = checks.number(w, "guidance", 0, MOST_GUIDANCE)
        steps = checks.whole(steps, "steps", 2, creatures.MOST_STEPS)
        n = checks.whole(n, "creatures.count", 1, creatures.MOST_PICTURES)
        return creatures.draw_creatures(prompt, negative, w, n, steps, checks.whole(number, "seed", 0, MOST_SEED))

    panel.connect(generate, show.creatures, [prompt, negative, w, steps, count, number])


# ---------------------------------------------------------------------------------------------------------- own picture


def own_tab(translated: Translated) -> None:
    with gr.Column(scale=0, min_width=400):
        gr.HTML(
            show.easel(own_picture.SIZE),
            elem_id="easel",
            js_on_load="window.demoEasel.attach(element);",
            padding=False,
        )
        picture, brush = gr.Textbox(visible=False), gr.Textbox(visible=False)
        with gr.Row():
            for kind in ("creature", "dish"):
                drawn = translated(gr.Button, value_of(f"own.{kind}"), elem_id=f"own-{kind}", size="sm")
                drawing = drawn.click(
                    lambda index, kind=kind: draw(kind, index),
                    picture,
                    picture,
                    js="() => String(Math.floor(Math.random() * 1000))",
                    queue=False,
                    show_progress="hidden",
                    api_visibility="private",
                )
                drawing.then(
                    None, picture, None, js="(url) => { window.demoEasel.load(url); }", api_visibility="private"
                )
    with gr.Column(scale=1, min_width=260):
        task = translated.choices(
            "own.task",
            lambda lang: names_in(lang, *((f"task.{name}", name) for name in own_picture.TASKS)),
            value="img2img",
            elem_id="own-task",
        )
        prompt = translated.labelled(gr.Textbox, "prompt", "own.prompt.info", elem_id="own-prompt")
        strength = translated.labelled(
            gr.Slider, "own.strength", "own.strength.info", minimum=0.1, maximum=1, value=0.6, step=0.05, buttons=[]
        )
        block = translated.choices("own.block", lambda _: [(str(n), n) for n in own_picture.BLOCKS], value=8)
        w = guidance(translated, 4)
        steps = slider(translated, "steps", 10, creatures.MOST_STEPS, 20, step=1, elem_id="own-steps")
        number = seed(translated)
        panel = RunPanel(translated, "own")
    with gr.Column(scale=2, min_width=300):
        panel.results(translated)

    def generate(
        picture: Any, brush: Any, task: Any, prompt: Any, strength: Any, block: Any, w: Any, steps: Any, number: Any
    ) -> Iterator[own_picture.PictureMoment]:
        given = own_picture.to_picture(checks.image(picture))
        prompt, task = checks.words(prompt), checks.choice(task, own_picture.TASKS)
        w, number = checks.number(w, "guidance", 0, MOST_GUIDANCE), checks.whole(number, "seed", 0, MOST_SEED)
        strength = checks.number(strength, "own.strength", 0.1, 1)
        steps = checks.whole(steps, "steps", 10, creatures.MOST_STEPS)
        if task == "img2img":
            return own_picture.change_picture(given, prompt, strength, w, steps, number)
        if task == "mosaic":
            block = checks.choice(block, own_picture.BLOCKS)
            return own_picture.repair_mosaic(given, prompt, block, strength, w, steps, number)
        hole = own_picture.to_hole(checks.image(brush))
        if not hole.any():
            raise checks.PageError("error.hole")
        return own_picture.repaint_hole(given, hole, prompt, w, steps, number)

    inputs = [picture, brush, task, prompt, strength, block, w, steps, number]
    panel.connect(generate, show.own_picture, inputs, js=EASEL_INPUTS)


def draw(kind: str, index: Any) -> str:
    """A drawn picture for the easel, as a data URL."""
    number = int(index) if isinstance(index, str) and index.isascii() and index.isdigit() else 0
    return show.png(own_picture.drawn_picture(kind, number % 1000))


# ----------------------------------------------------------------------------------------------------------------- film


def film_tab(translated: Translated) -> None:
    with controls():
        dish = translated.example(
            gr.Dropdown,
            lambda lang: {
                "label": text("film.dish", lang),
                "info": text("film.dish.info", lang),
                "choices": list(dict.fromkeys(film.dish_names(lang))),
            },
            TEXTS["film.example"],
            allow_custom_value=True,
            elem_id="film-dish",
        )
        camera = translated.choices(
            "film.camera",
            lambda lang: names_in(lang, *((f"camera.{name}", name) for name in film.CAMERAS)),
            value="zoom-out",
        )
        frames = slider(translated, "film.frames", 4, film.MOST_FRAMES, 24, step=1, elem_id="film-frames")
        steps = slider(translated, "steps", 2, film.MOST_STEPS, 20, step=1, elem_id="film-steps")
        number = seed(translated)
        panel = RunPanel(translated, "film")
    with results():
        panel.results(translated)

    def generate(dish: Any, camera: Any, frames: Any, steps: Any, number: Any) -> Iterator[film.FilmMoment]:
        dish = checks.words(dish, "error.dish", film.LONGEST_NAME)
        camera = checks.choice(camera, film.CAMERAS)
        frames = checks.whole(frames, "film.frames", 4, film.MOST_FRAMES)
        steps = checks.whole(steps, "steps", 2, film.MOST_STEPS)
        return film.make_film(dish, camera, frames, steps, checks.whole(number, "seed", 0, MOST_SEED))

    panel.connect(generate, show.film, [dish, camera, frames, steps, number])
