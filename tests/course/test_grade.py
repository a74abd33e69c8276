"""The grader: the solutions score full marks, the blank stub none,
each classic mistake costs its own exercise and no other.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

import common.grade.grader as grader
import common.grade.program as program
from common.errors import UserError
from common.grade.chapter import COURSE, exercises_of
from common.grade.checks import Chapter, Exercise, expect, lend, load, load_chapter, parts, run_checks, verdict
from common.grade.grader import grade
from common.grade.marking.messages import Catalogue, catalogue
from common.grade.stubs import authors, strip
from helpers.messages import english_left, names_of

NUMBERS = sorted(
    folder.parent.name[:2] for folder in COURSE.glob("[0-9][0-9]_*/exercises") if (folder / "checks.py").exists()
)
CHAPTERS = {number: load_chapter(exercises_of(number)) for number in NUMBERS}
BANKS = {
    number: load(Path(__file__).parent / f"mistakes/chapter_{number}.py", f"mistakes_{number}") for number in NUMBERS
}
MISTAKES = [(n, *mistake) for n in NUMBERS for mistake in BANKS[n].MISTAKES]
GIVEN = [  # programs with a fault, in which learners get code
    (n, exercise.name)
    for n in NUMBERS
    for exercise in CHAPTERS[n].exercises
    if "NotImplementedError" not in inspect.unwrap(getattr(CHAPTERS[n].stub, exercise.name)).__code__.co_names
]
OTHER_WAYS = [(n, *way) for n in NUMBERS for way in BANKS[n].OTHER_WAYS]


def name(case) -> str:
    return f"{case[0]}-{case[1]}-{case[2].replace(' ', '_')}"


def english_words(number: str, message: str) -> list[str]:
    """What the Chinese form of a message has left of its English, but for the text of an exception."""
    folder = exercises_of(number)
    return english_left(without_exceptions(folder).translate(message), names_of(folder))


@cache
def without_exceptions(folder: Path) -> Catalogue:
    """The Chinese catalogue without the parts that are texts of exceptions, {1!}."""
    pairs = catalogue("zh", folder).pairs
    return Catalogue({english: re.sub(r"\{\d+!\}", "", chinese) for english, chinese in pairs.items()})


def verdicts(
    number: str, instead: dict | None = None, seed: int = 0, file: str = "solutions.py", others: bool = True
) -> dict[str, str]:
    """{exercise: message} for the solutions with other functions in their place.

    A goal, which takes seconds and is the same with every seed, is checked with seed 0, and where it is replaced.
    others: whether exercises that are not replaced are checked, too.
    """
    chapter, found = CHAPTERS[number], {}
    for k, exercise in enumerate(chapter.exercises, 1):
        if exercise.goal and (exercise.name not in instead if instead else seed):
            continue
        if instead and exercise.name not in instead and not others:
            continue
        submission = load(exercises_of(number) / file, "submission")
        for function_name, function in (instead or {}).items():
            setattr(submission, function_name, function)
        found[exercise.name] = verdict(chapter, k, submission, seed)
    return found


# ----------------------------------------------------------------------------------------- are the checks right?


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solutions_pass_whatever_the_seed(number):
    for seed in range(8):
        failures = {name: message for name, message in verdicts(number, seed=seed).items() if message}
        assert not failures, f"seed {seed}"


@pytest.mark.parametrize("number", NUMBERS)
def test_the_blank_stub_scores_nothing(number):
    """Programs with a fault do not either, and nothing is said of the fault."""
    chinese = (exercises_of(number) / "exercises.zh.py").read_text(encoding="utf-8")
    for stub in (load_text(strip(solutions_text(number))), load_text(chinese)):
        messages = [verdict(CHAPTERS[number], k, stub(), 0) for k in range(1, len(CHAPTERS[number].exercises) + 1)]
        assert set(messages) == {"not solved yet"}


@pytest.mark.parametrize("case", MISTAKES, ids=map(name, MISTAKES))
def test_a_mistake_costs_its_exercise_and_no_other(case):
    """The others are lent the solution whatever the mistake is, so they are checked for the first one of an exercise."""
    number, exercise, _, says, function = case
    first = case is next(each for each in MISTAKES if each[:2] == case[:2])
    found = verdicts(number, {exercise: function}, others=first)
    failures = {name: message for name, message in found.items() if message}
    assert list(failures) == [exercise]
    assert says in failures[exercise]
    assert english_words(number, failures[exercise]) == []


@pytest.mark.parametrize("case", MISTAKES, ids=map(name, MISTAKES))
def test_public_tests_alone_and_hidden_checks_alone_catch_it(case):
    number, exercise, _, _, function = case
    chapter = CHAPTERS[number]
    only_public = chapter._replace(
        exercises=[replace(e, check=lambda submission, rng: None, covers_public=False) for e in chapter.exercises]
    )
    only_hidden = chapter._replace(tests=ModuleType("no_tests"))
    k = [e.name for e in chapter.exercises].index(exercise) + 1
    for part, seed in ((only_public, 0), (only_hidden, 0), (only_hidden, 1)):
        submission = load(exercises_of(number) / "solutions.py", "submission")
        setattr(submission, exercise, function)
        message = verdict(part, k, submission, seed)
        assert message
        assert english_words(number, message) == []


@pytest.mark.parametrize("case", OTHER_WAYS, ids=map(name, OTHER_WAYS))
def test_another_right_way_scores_full_marks(case):
    number, exercise, _, function = case
    for seed in range(3):
        found = verdicts(number, {exercise: function}, seed, others=not seed)
        assert not any(found.values()), found


@pytest.mark.parametrize("case", GIVEN, ids=map("-".join, GIVEN))
def test_the_fault_of_a_given_program_is_found_when_a_learner_runs_it(case):
    """By the public tests alone and by the hidden checks alone."""
    number, exercise = case
    chapter = load_chapter(exercises_of(number))
    lend(chapter, chapter.stub, exercise)  # a given program may call other exercises
    given = getattr(chapter.stub, exercise)
    k = [e.name for e in chapter.exercises].index(exercise) + 1
    without_checks = chapter._replace(
        exercises=[replace(e, check=lambda submission, rng: None, covers_public=False) for e in chapter.exercises]
    )
    for part in (without_checks, chapter._replace(tests=ModuleType("no_tests"))):
        submission = load(exercises_of(number) / "solutions.py", "submission")
        setattr(submission, exercise, lambda *args, **kw: given(*args, **kw))
        assert verdict(part, k, submission, 0) not in ("", "not solved yet")


@pytest.mark.parametrize("number", NUMBERS)
def test_hints_and_tiers_are_complete(number):
    written = authors(exercises_of(number))
    if written:
        names = [exercise.name for exercise in CHAPTERS[number].exercises]
        assert list(written["HINTS"]) == list(written["TIERS"]) == names
        assert all(len(steps) == 3 and all(step.strip() for step in steps) for steps in written["HINTS"].values())
        assert set(written["TIERS"].values()) <= {1, 2, 3}
        assert {name for chapter, name in GIVEN if chapter == number} <= {
            n for n, t in written["TIERS"].items() if t == 2
        }


@pytest.mark.parametrize("number", NUMBERS)
def test_every_exercise_has_public_tests_points_and_mistakes(number):
    chapter = CHAPTERS[number]
    with_mistakes = {exercise for exercise, *_ in BANKS[number].MISTAKES}
    for k, exercise in enumerate(chapter.exercises, 1):
        assert chapter.public_tests(k) and exercise.points > 0 and exercise.name in with_mistakes
        assert (getattr(chapter.solutions, exercise.name).__doc__ or "").startswith(f"Exercise {k}.")


def test_chapter_1_agrees_with_the_longhand_and_with_common():
    """The solutions are the same mathematics as ddpm.py and the course's U-Net."""
    from common.models.unet import timestep_embedding

    longhand = load(COURSE / "01_ddpm_mnist/ddpm_mnist/ddpm.py", "longhand")
    s, betas = CHAPTERS["01"].solutions, torch.linspace(1e-4, 0.02, 1000)
    ddpm, alpha_bar = longhand.DDPM(betas), s.alpha_bars(betas)
    expect(alpha_bar, ddpm.alpha_bar, "alpha_bar")
    x, eps, z = torch.randn(3, 4, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 17, 400, 1000])
    expect(s.add_noise(x, t, eps, alpha_bar), ddpm.noise(x, t, eps), "noise")
    for k in t.tolist():
        step = ddpm.posterior_mean(x, eps, k) + ddpm.posterior_variance(k) ** 0.5 * z
        expect(s.reverse_step(x, k, eps, z, alpha_bar), step, f"step {k}", atol=1e-3)
    short = longhand.DDPM(torch.linspace(0.02, 0.3, 20))
    *_, image = short.sample(lambda x, t: x.sin(), x.shape, torch.Generator().manual_seed(1))
    got = s.sample(
        lambda x, t: x.sin(), x.shape, short.alpha_bar, list(range(1, 21)), torch.Generator().manual_seed(1)
    )
    expect(got, image, "sample", atol=1e-3)
    expect(s.time_embedding(t, 32), timestep_embedding(t, 32, sin_first=True), "embedding", atol=1e-3)

    from common.evaluate.distances import Frechet
    from common.models.unet import UNet
    from common.models.unet_config import UNetConfig

    a, b = torch.randn(2, 60, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    b = 2 * b[:40] + 1
    assert float(s.frechet_distance(a, b)) == pytest.approx(Frechet(a)(b), rel=1e-6)
    net = UNet(UNetConfig(size=8, channels=(4, 8), attention=(False, False), groups=4, classes=3)).requires_grad_(
        False
    )
    label = torch.tensor([2, 0, 1, 2])
    embedding = s.add_class_embedding(
        net.embed(t, label) - net.class_embedding(label), label, net.class_embedding.weight
    )
    expect(net.embed(t, label), embedding, "class embedding")


def test_chapter_2_agrees_with_the_longhand_and_with_common():
    """The solutions are the same mathematics as guidance.py, the course's attention and thresholding,
    and SciPy's Wilson interval.
    """
    from scipy.stats import binomtest

    from common.diffusion.denoiser import threshold
    from common.diffusion.schedules import make_schedule
    from common.models.unet import Attention

    def same(got, right):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)

    def numbers(*shape, seed=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    s, longhand = (
        CHAPTERS["02"].solutions,
        load(COURSE / "02_cfg_pokemon/cfg_pokemon/guidance.py", "longhand_guidance"),
    )
    x, text, empty, u = (
        numbers(4, 3, 5, 6),
        numbers(4, 2, 7, seed=1),
        numbers(2, 7, seed=2),
        torch.tensor([0.05, 0.5, 0.15, 0.9]),
    )
    same(s.caption_dropout(text, empty, u, 0.2), longhand.drop_captions(text, empty, u, 0.2))

    torch.manual_seed(0)
    attention = Attention(8, heads=2, context_dim=7, bias=False).requires_grad_(False)
    attention.to_out = torch.nn.Identity()
    pixels, weights = numbers(4, 9, 8), [layer.weight for layer in (attention.to_q, attention.to_k, attention.to_v)]
    same(s.cross_attention(pixels, text, *weights, 2), attention(pixels, text))

    def model(x, t, text):
        return (x + text.mean((1, 2)).view(-1, 1, 1, 1)).sin() + t.view(-1, 1, 1, 1) / 1000

    known = {"a cat": text[0], "a dog": text[1], "wings": text[2], "": text[3]}
    context = s.negative_prompt(
        lambda texts: torch.stack([known[each] for each in texts]), ["a cat", "a dog"], ["wings", None]
    )
    uncond, cond = context.chunk(2)
    level = make_schedule("cosine").at(torch.tensor(400))
    level = level._replace(alpha=float(level.alpha), sigma=float(level.sigma), time=float(level.time))
    for phi in (0.0, 0.7):
        network = longhand.Guided(model, "x0", {"text": cond}, {"text": uncond}, 3.0, "dynamic", phi)
        time = torch.full((2,), level.time)
        answer = s.guided(model, x[:2], time, context, 3.0)
        answer = s.rescale(answer, model(x[:2], time, cond), phi)
        same(s.dynamic_threshold(answer, 0.995), network(x[:2], level).x0)
    same(s.dynamic_threshold(3 * x, 0.9), threshold(3 * x, 0.9))

    asked, found = torch.tensor([[1, -1, 2], [0, 3, -1]]), torch.tensor([[1, 1, 2], [0, 1, 1]])  # 3 of 4
    interval = binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert s.attribute_accuracy(found, asked) == pytest.approx((0.75, interval.low, interval.high), abs=1e-4)


def test_chapter_3_agrees_with_common():
    """The solutions are the same mathematics as the course's schedules, predictions, weights and samplers.
    (slerp is not in common.)
    """
    from common.diffusion.denoiser import target, to_x0_eps
    from common.diffusion.losses import GAMMA, loss_weight
    from common.diffusion.samplers import ddim, dpmpp_2m, heun
    from common.diffusion.schedules import DiscreteSchedule, NoiseLevel, add_noise, linear_betas, zero_terminal_snr

    def same(got, right):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)

    def denoise(x, level):
        x0 = (x + level.sigma).cos()
        return x0, (x - level.alpha * x0) / level.sigma

    s, schedule, path = (
        CHAPTERS["03"].solutions,
        DiscreteSchedule(linear_betas()),
        DiscreteSchedule(linear_betas()).noise_levels(7),
    )
    x, eps, z = torch.randn(3, 4, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = (path.levels.time.long() + 1).tolist()  # T ... 0
    levels = [s.Level(level.alpha, level.sigma) for level in path]

    same(DiscreteSchedule(s.respace(schedule.alpha_bar, times[-2::-1])).alpha, path.levels.alpha.flip(0))
    same(s.zero_terminal_snr(schedule.alpha_bar), DiscreteSchedule(zero_terminal_snr(schedule.betas)).alpha_bar)

    for eta in (0.0, 0.6, 1.0):
        state = x
        for k, step in enumerate(ddim(denoise, x, path, eta, noise=lambda k, x: k * z)):
            state = s.ddim_step(
                state, denoise(state, levels[k])[1], times[k], times[k + 1], eta, (k + 1) * z, schedule.alpha_bar
            )
            same(state, step.x)
    state = x
    for k, step in enumerate(heun(denoise, x, path)):
        state = s.heun_step(denoise, state, levels[k], levels[k + 1])
        same(state, step.x)
    state, x0_old, before = x, None, None
    for k, step in enumerate(dpmpp_2m(denoise, x, path)):
        x0, _ = denoise(state, levels[k])
        state = s.dpmpp_2m_step(state, x0, levels[k], levels[k + 1], x0_old, before)
        x0_old, before = x0, levels[k]
        same(state, step.x)

    some = schedule.at(torch.tensor([1, 100, 500, 1000]))
    images = some.like(x)
    noisy, v = s.v_prediction(x, eps, some.alpha, some.sigma, back=False)
    same((noisy, v), (add_noise(x, eps, images), target("v", x, eps, images)))
    same(s.v_prediction(noisy, v, some.alpha, some.sigma, back=True), tuple(to_x0_eps("v", v, noisy, images)))
    for prediction in ("eps", "x0", "v"):
        same(
            s.snr_weight(some.alpha, some.sigma, GAMMA, prediction),
            loss_weight("min_snr", prediction, NoiseLevel(0, some.alpha, some.sigma)),
        )


def test_chapter_4_agrees_with_common():
    """The solutions are the same mathematics as the course's autoencoder, latents, samplers and bytes."""
    from common.diffusion.denoiser import target, to_x0_eps
    from common.diffusion.samplers import ddim
    from common.diffusion.schedules import DiscreteSchedule, add_noise, linear_zero_snr_betas
    from common.io.pixels import to_bytes
    from common.models.vae import Gaussian, measure_scaling_factor

    def same(got, right):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)

    def numbers(*shape, seed=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    s, latent = (
        CHAPTERS["04"].solutions,
        load(COURSE / "04_latent_sd/latent_sd/latent_dataset.py", "chapter_4s_latents"),
    )
    z, eps, eps_z, logvar = (numbers(4, 3, 5, 6, seed=seed) for seed in range(4))
    cloud = Gaussian(3 * z, logvar)
    same(s.kl(*cloud), cloud.kl())
    same(s.reparameterise(*cloud, eps), cloud.sample(eps))
    scale = s.scaling_factor(iter(cloud.mean.split(3)))
    assert scale == pytest.approx(measure_scaling_factor(cloud.mean))

    schedule = DiscreteSchedule(linear_zero_snr_betas())
    level = schedule.at(torch.tensor([1, 100, 500, 1000])).like(z)
    x, v = s.noisy_latent(
        cloud.mean, (logvar / 2).exp(), scale, eps_z, eps, level.alpha.flatten(), level.sigma.flatten()
    )
    scaled = latent.scaled(cloud, scale)
    drawn = scaled["latent"] + scaled["std"] * eps_z
    same((x, v), (add_noise(drawn, eps, level), target("v", drawn, eps, level)))

    path, text = schedule.noise_levels(8), numbers(8, 2, 5)
    N, (times, alpha, sigma) = len(path), (column.float() for column in path.levels)

    def network(x, t, text):
        return (x + text.mean((1, 2)).view(-1, 1, 1, 1)).sin() + t.view(-1, 1, 1, 1) / 1000

    def denoise(x, level):
        uncond, cond = (network(x, torch.full((len(x),), level.time), part) for part in text.chunk(2))
        return to_x0_eps("v", uncond + 3 * (cond - uncond), x, level)

    for strength in (1.0, 0.6):
        first, x = s.img2img_start(z, eps, strength, alpha, sigma)
        rest = path.after(first)
        same(x, add_noise(z, eps, next(iter(rest))))
        assert len(rest) == round(strength * N)
        *_, step = ddim(denoise, x, rest)
        got = s.sample_latent(network, x, first, text, 3.0, times[:-1], alpha, sigma)
        same(got, step.x)
    assert torch.equal(s.decode_picture(got, lambda z: z.cos() * 1.3, scale), to_bytes((got / scale).cos() * 1.3))


# ------------------------------------------------------------------------------------------------ the stub's generator


def solutions_text(number: str) -> str:
    return (exercises_of(number) / "solutions.py").read_text(encoding="utf-8")


def load_text(text: str):
    def fresh():
        module = ModuleType("submission")
        module.__file__ = "submission.py"
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        return module

    return fresh


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_has_not_drifted(number):
    exercises = (exercises_of(number) / "exercises.py").read_text(encoding="utf-8")
    assert exercises == strip(solutions_text(number)), (
        f"run: python -m common.grade.strip_solutions {number} (your own answers in exercises.py differ too, of course)"
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_the_chinese_stub_differs_in_docstrings_and_comments_alone(number):
    english, chinese = (
        ast.parse((exercises_of(number) / name).read_text(encoding="utf-8"))
        for name in ("exercises.py", "exercises.zh.py")
    )
    documented = []
    for module in (english, chinese):
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        documented.append({getattr(node, "name", ""): text for node in nodes if (text := ast.get_docstring(node))})
        for node in nodes:
            node.body = node.body[1 if ast.get_docstring(node) else 0 :]
    assert ast.dump(chinese) == ast.dump(english)
    assert list(documented[0]) == list(documented[1])
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in documented[1].values())


def test_the_stub_keeps_the_docstring_and_loses_the_body():
    source = 'def f(x):\n    """Doc."""\n    # --- solution\n    y = x\n    return y\n    # --- end\n\n\ndef g():\n    # --- solution\n    pass\n    # --- end\n'
    stub = 'def f(x):\n    """Doc."""\n    raise NotImplementedError("exercise 1: f")\n\n\ndef g():\n    raise NotImplementedError("exercise 2: g")\n'
    assert strip(source) == stub


FAULTY = """
def fix_double(x):
    \"\"\"Exercise 2. Twice x.\"\"\"
    # --- solution
    return 2 * x
    # --- given
    #| if x:
    #|     return 3 * x  # three times
    #|
    #| return x
    # --- end
"""


def test_the_stub_of_a_program_with_a_fault_is_the_program():
    stub = '\ndef fix_double(x):\n    """Exercise 2. Twice x."""\n    if x:\n        return 3 * x  # three times\n\n    return x\n'
    assert strip(FAULTY) == stub
    lines = "def f(x):\n    y = x\n    # --- solution\n    y += 1\n    # --- given\n    #| y -= 1\n    # --- end\n    return y\n"
    assert strip(lines) == "def f(x):\n    y = x\n    y -= 1\n    return y\n"
    assert strip(FAULTY + "\n\ndef g():\n    # --- solution\n    pass\n    # --- end\n").endswith('"exercise 2: g")\n')


@pytest.mark.parametrize(
    "lines",
    [
        "# --- solution\n# --- solution\n# --- end",
        "# --- end",
        "# --- solution\n",
        "# --- given\n# --- end",
        "# --- solution\n# --- given\n#| x\n",
        "# --- solution\n# --- given\n# --- given\n# --- end",
        "# --- solution\n# --- given\nx = 1\n# --- end",
    ],
)
def test_markers_must_alternate(lines):
    with pytest.raises(UserError, match="---"):
        strip(lines)


def test_answers_are_not_overwritten(tmp_path, monkeypatch):
    import common.grade.strip_solutions as program

    for file in ("solutions.py", "checks.py"):
        (tmp_path / file).write_text((exercises_of("01") / file).read_text())
    monkeypatch.setattr("common.grade.stubs.exercises_of", lambda chapter: tmp_path)
    program.main(program.Args("01"))
    stub = (tmp_path / "exercises.py").read_text()
    program.main(program.Args("01"))  # an untouched stub may be made anew
    answer = stub.replace('raise NotImplementedError("exercise 1: alpha_bars")', "return 1 - betas")
    (tmp_path / "exercises.py").write_text(answer)
    with pytest.raises(UserError, match="already answers alpha_bars"):
        program.main(program.Args("01"))
    assert (tmp_path / "exercises.py").read_text() == answer
    program.main(program.Args("01", overwrite=True))
    assert (tmp_path / "exercises.py").read_text() == stub


@pytest.fixture
def doubling(tmp_path):
    """A folder of exercises with two of them, the second of which is a program with a fault."""
    folder = tmp_path / "09_doubling" / "exercises"
    folder.mkdir(parents=True)
    first = 'def double(x):\n    """Exercise 1. Twice x."""\n    # --- solution\n    return 2 * x\n    # --- end\n'
    files = {
        "solutions.py": first + FAULTY,
        "exercises.py": strip(first + FAULTY),
        "test_exercises.py": "def test_1_three(ex):\n    assert ex.double(3) == 6, 'twice 3 is 6'\n",
        "checks.py": "from common.grade.checks import Exercise\n"
        "def check(ex, rng):\n    assert ex.fix_double(5) == 10, 'you took x three times'\n"
        "EXERCISES = [Exercise('double', 1, lambda ex, rng: None), Exercise('fix_double', 2, check)]\n",
        "hints.py": "HINTS = {'double': ('How much?', 'Multiply.', '2 * x'), 'fix_double': ('Which line?', 'The if.', 'return 2 * x')}\n"
        "TIERS = {'double': 1, 'fix_double': 2}\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_a_program_with_a_fault_is_not_solved_until_it_is_changed_and_right(doubling, tmp_path):
    """The fault is named only when the learner has changed something, so that finding it is left to them."""
    stub = (doubling / "exercises.py").read_text()
    messages = {}
    for what, old, new in (
        ("the stub", "", ""),
        ("another comment", "three times", "hm"),
        ("a wrong repair", "if x", "if x > 0"),
        ("the repair", "3 * x", "x + x"),
    ):
        file = tmp_path / "mine.py"
        file.write_text(stub.replace(old, new))
        messages[what] = [result.message for result in grade(doubling, file)][1]
    assert messages == {
        "the stub": "not solved yet",
        "another comment": "not solved yet",
        "a wrong repair": "you took x three times",
        "the repair": "",
    }


def test_a_repaired_program_is_an_answer_that_is_not_overwritten(doubling, monkeypatch):
    import common.grade.strip_solutions as program

    monkeypatch.setattr("common.grade.stubs.exercises_of", lambda chapter: doubling)
    program.main(program.Args("09"))  # an untouched stub may be made anew
    (doubling / "exercises.py").write_text(strip(FAULTY).replace("3 * x", "2 * x"))
    with pytest.raises(UserError, match="already answers fix_double;"):
        program.main(program.Args("09"))


def test_public_tests_that_the_check_covers_run_only_where_it_fails():
    ran, public = [], [False]
    tests, right, wrong = ModuleType("tests"), ModuleType("right"), ModuleType("wrong")
    tests.test_1_twice = lambda ex: ran.append(ex.double(3))
    right.double, wrong.double = lambda x: 2 * x, lambda x: 7

    def check(ex, rng):
        assert ex.double(2) == 4, "the check says so"

    exercise = Exercise("double", 1, check, covers_public=True)
    chapter = Chapter([exercise], ModuleType("solutions"), tests, ModuleType("stub"))
    run_checks(chapter, 1, right, 0, public)
    assert (ran, public) == ([], [False])
    with pytest.raises(AssertionError, match="the check says so"):
        run_checks(chapter, 1, wrong, 0, public)
    assert (ran, public) == ([7], [True])  # which is worth the points of --partial
    run_checks(chapter._replace(hidden=False), 1, right, 0, public)
    assert ran == [7, 6]


def test_only_some_exercises_are_checked(doubling, tmp_path):
    results = list(grade(doubling, doubling / "solutions.py", only=(2, 2)))
    assert [(result.number, result.name, result.points) for result in results] == [(2, "fix_double", 2)]
    with pytest.raises(UserError, match="no exercise 3; after --only give numbers from 1 to 2"):
        list(grade(doubling, doubling / "solutions.py", only=(1, 3)))
    slow = tmp_path / "slow.py"
    slow.write_text("def double(x):\n    while True: pass\ndef fix_double(x):\n    return 2 * x\n")
    results = list(grade(doubling, slow, seconds=3, only=(2, 1)))  # the process that hangs is replaced
    assert [result.number for result in results] == [1, 2] and [result.points for result in results] == [0, 2]


def test_the_report_shows_tiers_where_a_chapter_has_them(doubling, monkeypatch, capsys):
    monkeypatch.setattr(grader, "exercises_of", lambda chapter: doubling)
    program.main(program.Args("09", only=(2,), json=doubling / "out.json"))
    _, line, total = capsys.readouterr().out.splitlines()
    assert line.split() == ["2", "fix_double", "tier", "2", "0/2", "failed:", "not", "solved", "yet"]
    assert total.index("0/2") == line.index("0/2")
    assert json.loads((doubling / "out.json").read_text())["exercises"][0]["tier"] == 2


def test_hints_come_in_three_steps(doubling, monkeypatch, capsys):
    monkeypatch.setattr("common.grade.stubs.exercises_of", lambda chapter: doubling)
    for step, text in ((1, "Which line?"), (2, "The if."), (3, "return 2 * x")):
        program.main(program.Args("09", hint=2, step=step))
        first, _, hint, *more = capsys.readouterr().out.splitlines()
        assert first.startswith("Exercise 2, fix_double: a") and f"step {step} of 3" in first
        assert hint == text
        assert [line for line in more if line] == (
            [f"For {('a hint', 'a line of code')[step - 1]}: python -m common.grade 09 --hint 2 --step {step + 1}"]
            if step < 3
            else []
        )
    with pytest.raises(UserError, match="09_doubling has no exercise 3; give a number from 1 to 2"):
        program.main(program.Args("09", hint=3))
    (doubling / "hints.py").write_text("HINTS = {}\n")
    with pytest.raises(UserError, match="exercise 1, double, has no hint"):
        program.main(program.Args("09", hint=1))
    (doubling / "hints.py").unlink()
    with pytest.raises(UserError, match="exercises of 09_doubling have no hints yet"):
        program.main(program.Args("09", hint=1))


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (None, "two values were expected here, x and v, not None: is a `return` missing?"),
        (torch.ones(2), "two values were expected here, x and v, not one Tensor"),
        (0.5, "not one float"),
        ("xv", "not one str"),
        ((1, 2, 3), "two values were expected here, x and v, not three"),
        ([1], "not one"),
    ],
)
def test_several_results_are_asked_for_by_what_is_wrong_with_them(got, says):
    with pytest.raises(AssertionError, match=re.escape(says)):
        parts(got, 2, "x and v")


def test_several_results_may_be_a_tuple_or_a_list():
    assert parts([1, 2], 2, "x and v") == parts((1, 2), 2, "x and v") == (1, 2)


# --------------------------------------------------------------------------------------------------- the command


def command(*args, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "common.grade", *map(str, args)], capture_output=True, text=True, cwd=COURSE, **options
    )


def answers(**replaced: str) -> str:
    """The solutions with the body of some functions replaced by one line."""
    chunks = solutions_text("01").split("# --- end")
    for k, exercise in enumerate(CHAPTERS["01"].exercises):
        if exercise.name in replaced:
            head, _, _ = chunks[k].partition("# --- solution")
            chunks[k] = head + replaced[exercise.name] + "\n    "
    assert len(chunks) - 1 == len(CHAPTERS["01"].exercises)
    return "# --- end".join(chunks)


NASTY = {  # name: (body, word of the message)
    "alpha_bars": ("import sys; print('total 42/42'); sys.exit(0)", "SystemExit"),
    "guess_x0": ("\n    while True: pass", "longer than 10 s"),
    "training_loss": (
        "import os\n"
        "    try: open(OUT, 'w').write('{\"points\": 42}')\n"
        "    except OSError: pass\n"
        "    for fd in range(30):\n"
        '        try: os.write(fd, b\'\\n{"message": ""}\\n unfinished\')\n'
        "        except OSError: pass\n"
        "    os._exit(0)",
        "process that ran it",
    ),
    "reverse_step": (
        "\n    try: input()\n    except EOFError: raise KeyboardInterrupt from None",
        "KeyboardInterrupt",
    ),
    "sample": ("torch.set_default_device('meta'); raise ValueError('x' * 10_000)", "ValueError: xxx"),
    "training_step": ("globals().pop('training_step')", "no function named training_step"),
}


def test_a_nasty_submission_loses_only_what_it_spoils(tmp_path):
    """Exits, a false score on every channel, an endless loop, a crash, waiting for the keyboard,
    settings changed for others.
    """
    file, out = tmp_path / "nasty.py", tmp_path / "out.json"
    bodies = {name: body for name, (body, _) in NASTY.items()}
    file.write_text(answers(**bodies).replace("OUT", repr(str(out))).replace("def training_step", "def trainingstep"))
    done = command("01", "--submission", file, "--json", out, "--seconds", 10)
    assert done.returncode == 0, done.stderr
    grades = json.loads(out.read_text())
    assert {row["name"] for row in grades["exercises"] if not row["passed"]} == set(NASTY)
    assert (grades["points"], grades["possible"]) == (28, 42)
    messages = {row["name"]: row["message"] for row in grades["exercises"]}
    for exercise, (_, word) in NASTY.items():
        assert word in messages[exercise] and word in done.stdout
    assert done.stdout.rstrip().endswith("28/42") and "Traceback" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) < 500


def test_a_file_that_cannot_be_loaded_scores_nothing_and_says_the_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import torch\n\ndef alpha_bars(betas:\n")
    results = list(grade(exercises_of("01"), file))
    assert len(results) == 19 and not any(r.points for r in results)
    assert all("cannot be loaded: line 3" in r.message for r in results)


def test_a_syntax_error_or_a_missing_package_costs_only_what_cannot_run(doubling, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import no_such_package\n\ndef double(x):\n    return 2 * (x\n\ndef fix_double(x):\n    return 2 * x\n"
    )
    first, second = grade(doubling, file)
    assert first.message.startswith("the file cannot be loaded: line 4: '(' was never closed")
    assert (second.points, second.message) == (2, "")
    file.write_text("import no_such_package\ndef double(x):\n    return no_such_package.twice(x)\n")
    message = next(grade(doubling, file)).message
    assert message.startswith("your code stopped in line 3 with NameError: name 'no_such_package' is not defined")
    assert message.endswith("ModuleNotFoundError: No module named 'no_such_package'")


def test_the_same_seed_gives_the_same_checks(tmp_path):
    chapter, seen = CHAPTERS["01"], []
    for seed in (5, 5, 6):
        submission = load(exercises_of("01") / "solutions.py", "submission")
        drawn = []

        def noticing(x0, t, eps, alpha_bar, rightly=submission.add_noise, drawn=drawn):
            drawn.append(float(x0.sum()))
            return rightly(x0, t, eps, alpha_bar)

        submission.add_noise = noticing
        verdict(chapter, 2, submission, seed)
        seen.append(drawn)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["77"], "there is no chapter '77'"),
        (["01", "--submission", "nowhere.py"], "there is no file nowhere.py"),
        (["01", "--submission", "common"], "common is a folder"),
        (["1", "--seconds", "-1"], "--seconds must be above 0"),
        (["01", "--sed", "3"], "--sed"),
        (["01", "--only", "2", "99"], "after --only give numbers from 1 to"),
        (["01", "--only", "0"], "--only must be at least 1"),
        (["01", "--step", "2"], "add the number of the exercise, for instance --hint 2"),
        (["01", "--hint", "99"], "01_ddpm_mnist"),
    ],
)
def test_user_errors_are_one_sentence(args, sentence):
    done = command(*args)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_the_result_may_not_replace_the_submission(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="would overwrite the submission"):
        program.main(program.Args("01", submission=file, json=file))
    assert file.read_text() == "x = 1\n"


def test_broken_checks_are_the_courses_fault_not_the_learners(tmp_path):
    (tmp_path / "checks.py").write_text("import torch\nEXERCISES = missing\n")
    with pytest.raises(UserError, match="cannot be run.*NameError"):
        next(grade(tmp_path, tmp_path / "checks.py"))


def test_a_checking_process_that_cannot_begin_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'ImportError: no torch here' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("common.grade.sandbox.warm.sys.executable", str(program))
    with pytest.raises(
        UserError, match="cannot be run .the process ended without an answer; ImportError: no torch here"
    ):
        next(grade(exercises_of("01"), exercises_of("01") / "solutions.py"))


def test_help_imports_nothing_heavy():
    code = "import sys, common.grade, common.grade.strip_solutions; print(sorted({'torch', 'numpy', 'pytest'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=COURSE).stdout.strip() == "[]"
    )


def test_the_learners_tests_run_under_pytest(tmp_path):
    """They pick the file from the environment, and a failure shows its teaching sentence."""
    file = tmp_path / "mine.py"
    file.write_text(solutions_text("01").replace("(1 - a).sqrt() * eps\n", "(1 - a) * eps\n"))
    pytest_run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-k",
        "test_1_ or test_2_",
        "01_ddpm_mnist/exercises",
    ]
    done = subprocess.run(
        pytest_run, capture_output=True, text=True, cwd=COURSE, env=os.environ | {"EXERCISES": str(file)}
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed and all("::test_2_" in line for line in failed) and done.returncode == 1
    assert "2 failed, 5 passed" in done.stdout  # exercise 1 is right
    assert "did you use 1 - alpha_bar where its square root belongs?" in done.stdout
    assert "FAILED 01_ddpm_mnist/exercises/test_exercises.py::test_2_how_much_noise" in done.stdout


@pytest.mark.parametrize("number", NUMBERS)
def test_every_exercise_has_a_panel_and_those_not_solved_say_so(number, tmp_path, monkeypatch):
    """Tested on the first exercise alone, because the full picture takes some seconds."""
    import matplotlib.figure
    from PIL import Image

    import common.grade.show_exercises as show

    panels = load(exercises_of(number) / "panels.py", "panels")
    assert all(callable(getattr(panels, exercise.name)) for exercise in CHAPTERS[number].exercises)
    file, out, titles = tmp_path / "mine.py", tmp_path / "picture.png", []
    first_solution = solutions_text(number).split("# --- solution\n")[1].split("# --- end")[0].strip()
    file.write_text(
        re.sub(r'raise NotImplementedError\("exercise 1: .*', lambda _: first_solution, strip(solutions_text(number)))
    )
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *args, **kw: (
            titles.extend(axis.get_title() for axis in figure.axes) or save(figure, *args, **kw)
        ),
    )
    show.main(show.Args(number, submission=file, out=out))
    given = [k for k, exercise in enumerate(CHAPTERS[number].exercises) if (number, exercise.name) in GIVEN]
    # an axis without exercise has no title; a program with a fault shows what comes out of it
    assert [i for i, title in enumerate(titles) if title and "not solved yet" not in title] == [0, *given]
    colours = {colour for _, colour in Image.open(out).convert("RGB").crop((0, 0, 337, 292)).getcolors(100_000)}
    assert (31, 119, 180) in colours  # the curve
