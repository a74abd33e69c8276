"""Widgets whose texts follow the language, and the run of a generator behind a button that can be stopped."""

import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from common.demo.page import show
from common.demo.page.texts import LANGUAGES, Language, PageError, both, text, user_message
from common.errors import UserError, printable, sentence

QUEUE = "work"  # all runs wait in one queue, and one of them runs at a time
NAMES: dict[str, Language] = {"English": "en", "中文": "zh"}  # the values of the language switch

Texts = Callable[[Language], dict[str, Any]]
Show = Callable[[Any], str]


def label_of(key: str) -> Texts:
    return lambda language: {"label": text(key, language)}


def value_of(key: str) -> Texts:
    return lambda language: {"value": text(key, language)}


class Translated:
    """The widgets of the page, with the properties that depend on the language."""

    def __init__(self) -> None:
        self.widgets: list[tuple[Any, Texts]] = []
        self.examples: list[tuple[Any, tuple[str, str]]] = []  # text fields with what they hold at first

    def __call__(self, kind: type, texts: Texts, **properties: Any) -> Any:
        """A widget in English that changes with the language.
        texts: language -> its label and whatever else depends on it
        """
        widget = kind(**texts("en"), **properties)
        self.widgets.append((widget, texts))
        return widget

    def labelled(self, kind: type, label: str, info: str | None = None, **properties: Any) -> Any:
        """The same with the keys of the texts."""

        def texts(language: Language) -> dict[str, Any]:
            return {"label": text(label, language)} | ({"info": text(info, language)} if info else {})

        return self(kind, texts, **properties)

    def example(self, kind: type, texts: Texts, pair: tuple[str, str], **properties: Any) -> Any:
        """A text field that holds an example in the page's language, until the visitor writes something else.
        pair: the example in English and in Chinese
        """
        widget = self(kind, texts, value=pair[0], **properties)
        self.examples.append((widget, pair))
        return widget

    def choices(self, label: str, names: Callable[[Language], list[tuple[str, Any]]], **properties: Any) -> Any:
        """A dropdown. names: language -> (what is shown, value)"""
        return self(
            gr.Dropdown, lambda language: {"label": text(label, language), "choices": names(language)}, **properties
        )

    def connect(self, language: gr.Radio) -> None:
        """Change all widgets with the switch. The HTML holds both languages, and `lang` of the page shows one."""

        fields = [field for field, _ in self.examples]

        def changed(name: str, *values: Any) -> list[Any]:
            chosen = NAMES.get(name, "en")
            k = LANGUAGES.index(chosen)
            kept = {
                field._id: {"value": pair[k]}
                for (field, pair), value in zip(self.examples, values, strict=True)
                if value in pair
            }
            return [gr.update(**texts(chosen) | kept.get(widget._id, {})) for widget, texts in self.widgets]

        language.change(
            changed,
            [language, *fields],
            [widget for widget, _ in self.widgets],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
            js="(name, ...rest) => { document.documentElement.lang = name === 'English' ? 'en' : 'zh-CN'; return [name, ...rest]; }",
        )


def seed(translated: Translated) -> Any:
    return translated.labelled(gr.Number, "seed", "seed.info", value=0, precision=0, minimum=0, maximum=99999)


def slider(translated: Translated, label: str, low: float, high: float, value: float, **more: Any) -> Any:
    return translated.labelled(gr.Slider, label, minimum=low, maximum=high, value=value, buttons=[], **more)


class RunPanel:
    """The buttons, the status line and the result of one tab."""

    def __init__(self, translated: Translated, name: str):
        with gr.Row():
            self.run = translated(gr.Button, value_of("run"), variant="primary", min_width=90, elem_id=f"{name}-run")
            self.stop = translated(gr.Button, value_of("stop"), min_width=90, elem_id=f"{name}-stop")
        self.name = name
        self.stopped: set[str | None] = set()  # visitors who have pressed Stop since they pressed the other button

    def results(self, translated: Translated, history: bool = False) -> None:
        """The right side of the tab. history: a slider that looks back at every moment"""
        self.status = gr.HTML(show.status(both("ready")), elem_id=f"{self.name}-status")
        self.moment: Any = None
        self.past: Any = None
        if history:
            self.moment = slider(
                translated, "moment", 0, 1, 0, step=1, interactive=False, elem_id=f"{self.name}-moment"
            )
            self.past = gr.State([])
        self.result = gr.HTML("", elem_id=f"{self.name}-result")

    def connect(
        self, generate: Callable[..., Iterator[Any]], shown: Show, inputs: list[Any], js: str | None = None
    ) -> None:
        """Run a generator of moments with the values of the inputs. js: what the browser does to the values first"""
        outputs = [self.status, self.result] + ([self.moment, self.past] if self.past else [])
        private = {"api_visibility": "private", "show_progress": "hidden"}
        waiting = self.run.click(self.wait, None, self.status, queue=False, **private)
        waiting.then(
            self.work(generate, shown), inputs, outputs, concurrency_id=QUEUE, concurrency_limit=1, js=js, **private
        )
        # not by `cancels`, after which Gradio shows the word Error
        self.stop.click(self.end, None, None, queue=False, **private)
        if self.past:
            self.moment.input(
                lambda k, past: past[min(int(k), len(past) - 1)] if past else "",
                [self.moment, self.past],
                self.result,
                queue=False,
                **private,
            )

    def wait(self, request: gr.Request) -> str:
        self.stopped.discard(request.session_hash)
        return show.status(both("waiting"))

    def end(self, request: gr.Request) -> None:
        self.stopped.add(request.session_hash)

    def work(self, generate: Callable[..., Iterator[Any]], shown: Show) -> Callable[..., Iterator[list[Any]]]:
        def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            began, past = time.monotonic(), []
            unchanged = [gr.skip()] * (3 if self.past else 1)
            try:
                for moment in generate(*values):
                    state, content = show.progress(moment.done, moment.total), shown(moment)
                    if self.past:
                        past.append(content)
                        back = gr.update(
                            minimum=0, maximum=moment.total, value=moment.done, interactive=moment.done == moment.total
                        )
                        yield [state, content, back, past]
                    else:
                        yield [state, content]
                    if request.session_hash in self.stopped:
                        yield [show.status(both("stopped")), *unchanged]
                        return
                yield [show.status(both("finished", seconds=f"{time.monotonic() - began:.1f}")), *unchanged]
            except Exception as problem:
                yield [show.status(message(problem), error=True), *unchanged]

        return run


def message(problem: Exception) -> str:
    """What a visitor reads about a problem. A fault of the program is reported in the terminal."""
    if isinstance(problem, PageError):
        return both(problem.key, **problem.values)
    if isinstance(problem, UserError):
        return user_message(problem)
    if found := sentence(problem):
        return user_message(UserError(printable(found)))
    traceback.print_exception(problem)
    return both("error.fault")


def names_in(language: Language, *pairs: tuple[str, Any]) -> list[tuple[str, Any]]:
    """Choices of a dropdown from (key of the text, value)."""
    assert language in LANGUAGES
    return [(text(key, language), value) for key, value in pairs]
