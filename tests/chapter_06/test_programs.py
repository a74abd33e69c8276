"""make_gif.py and evaluate_gif.py from the command line, and what this chapter ships."""

import re
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.io.tables import read_csv
from common.models.pipeline import SamplingConfig
from helpers.chapter_06 import EVALUATE_GIF, MAKE_GIF, photograph
from helpers.programs import ROOT, run_program
from inpaint_gif.animation import camera, first_picture, render
from inpaint_gif.animation.flags import FilmFlags, file_name
from inpaint_gif.animation.timing import frame_times
from inpaint_gif.clip import dish_names, model
from inpaint_gif.clip.model import ChineseCLIP
from inpaint_gif.evaluation import metrics
from inpaint_gif.inpainting import backends, published
from inpaint_gif.inpainting.edge_fill import FILLS
from inpaint_gif.training import holes
from inpaint_gif.training import scenes as scenes_module
from inpaint_gif.training.flags import HoleFlags


def films(dish_run, nine, tmp_path) -> list:
    return [
        "--dish",
        dish_run,
        "--model",
        nine,
        "--engine",
        "inpaint",
        "--sampler",
        "ddim:2",
        "--device",
        "cpu",
        "--candidates",
        2,
        "--frames",
        6,
    ]


def test_help_waits_for_nothing_heavy():
    programs = sorted(
        path.stem
        for path in (ROOT / "06_inpaint_gif").glob("*.py")
        if "    run(main, Args)\n" in path.read_text(encoding="utf-8")
    )
    assert "make_gif" in programs and len(programs) >= 9
    done = run_program(
        "-c",
        f"import sys; sys.path.insert(0, '06_inpaint_gif'); import {', '.join(programs)}; sys.exit('torch' in sys.modules)",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["inpaint", "controlnet"])
def test_shipped_painters_leave_no_edge(name, shipped):
    """A seam of 1 is invisible, a hard edge 2 and more; and the hole holds what could be there."""
    backend = backends.open_backend(backends.BackendConfig(name, sampling=SamplingConfig(2.0)))
    test = holes.hole_test_set(HoleFlags(), backend.native, 24)
    found = metrics.edge_metrics(backend, test)
    plain = metrics.edge_metrics(FILLS["reflect"], test)
    assert found.seam.value < 1.5 and found.exact and found.error.value < plain.error.value


def test_drift_is_one_for_the_truth_and_grows_with_the_error():
    scenes, captions = scenes_module.load_test_scenes(4, 32)
    path = camera.CameraPath.plan(camera.Move.parse("zoom-out:4"), 32, 32)
    views = (metrics.scene_view(scene, stop.window, 32) for scene in scenes for stop in path.stops())

    def grey(image, mask, prompt, seed):
        return torch.zeros_like(image)

    true = metrics.drift_metrics(lambda *_: next(views), scenes, captions)
    assert true.ratio.value == pytest.approx(1, abs=1e-6) and len(true.painted) == len(true.untouched) == 4
    assert true.step.value == pytest.approx(1, abs=0.05)  # the known side is resampled from keyframe to keyframe
    assert metrics.drift_metrics(grey, scenes, captions).ratio.low > 1.2


def test_statistics_by_hand():
    image, mask = torch.tensor([[[1.0, 3.0, 9.0]], [[0.0, 0.0, 9.0]]]), torch.tensor([[[1.0, 0.5, 0.0]]])
    assert metrics.statistics(image, mask).tolist() == [2, 0, 1, 0]
    with pytest.raises(ValueError, match="leaves the scene"):
        metrics.scene_view(torch.zeros(3, 32, 32), camera.Window(20, 0, 1), 16)


def test_shipped_painter_does_not_drift_and_levels_its_tints(shipped, monkeypatch):
    backend = backends.open_backend(backends.BackendConfig("inpaint", sampling=SamplingConfig(2.0, sampler="ddim:8")))
    test = scenes_module.load_test_scenes(4, backend.native)
    found = metrics.drift_metrics(backend, *test)
    monkeypatch.setattr(backends, "levelled", lambda image, painted, mask: painted)
    unlevelled = metrics.drift_metrics(backend, *test)
    assert found.ratio.value < 1.3 and found.step.value < 0.85 * unlevelled.step.value


@pytest.mark.parametrize("move", ["up-left", "zoom-out"])
def test_shipped_films_go_where_they_were_told_to(move, shipped):
    picture = shipped[0].txt2img(["番茄炒蛋"])[0]
    found = metrics.direction_accuracy(
        picture,
        move,
        backends.open_backend(backends.BackendConfig("inpaint", sampling=SamplingConfig(2.0))),
        "番茄炒蛋",
        frames=12,
    )
    assert found.right == found.frames == 11 and found.exact


def test_what_is_shipped_stays_small():
    """Whoever clones the course downloads all of it."""
    files = [path for path in (ROOT / "06_inpaint_gif").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 14e6
    assert (
        sum(path.stat().st_size for path in files if path.suffix in (".gif", ".webp", ".png", ".mp4", ".jpg")) <= 6e6
    )


@pytest.mark.parametrize(
    ("suffix", "camera_move"),
    [(".gif", "zoom-out"), (".webp", "right:1,zoom-out:1"), (".png", "ring"), (".mp4", "up-left")],
)
def test_a_film(suffix, camera_move, dish_run, nine, tmp_path, command_line):
    out = tmp_path / f"film{suffix}"
    code, said, err = command_line(
        MAKE_GIF, "土鸡蛋炒番茄", "--camera", camera_move, "--out", out, *films(dish_run, nine, tmp_path)
    )
    assert code == 0, err
    assert (
        out.exists()
        and (tmp_path / "film-sheet.png").exists()
        and "6 frames of 384 x 384" in said
        and "seams:" in said
        and "best effort" not in err
    )
    if suffix != ".mp4":
        with Image.open(out) as picture:
            assert picture.n_frames == 6 and picture.size == (384, 384)
    with Image.open(tmp_path / "film-sheet.png") as sheet:
        assert sheet.width > 128 and sheet.height > 4 * 128


def test_films_are_functions_of_their_seed(dish_run, nine, tmp_path, command_line):
    def made(name, *flags) -> bytes:
        code, _, err = command_line(
            MAKE_GIF,
            "番茄炒蛋",
            *films(dish_run, nine, tmp_path),
            "--enlarge",
            1,
            "--camera",
            "left:1",
            "--out",
            tmp_path / name,
            *flags,
        )
        assert code == 0, err
        return (tmp_path / name).read_bytes()

    first = made("a.gif")
    assert first == made("b.gif") and first != made("c.gif", "--seed", 1)
    assert made("d.gif", "--loop", "once", "--max-kb", 8) != first and (tmp_path / "d.gif").stat().st_size <= 8_000


@pytest.mark.parametrize(
    "engine",
    [
        ["--engine", "repaint", "--jump", 1, "--resample", 2],
        ["--engine", "reflect"],
        ["--model", "SD", "--controlnet", "RUN"],
    ],
)
def test_films_without_an_inpainting_network(engine, dish_run, sd, control_run, tmp_path, command_line):
    engine = [{"SD": sd, "RUN": control_run}.get(flag, flag) for flag in engine]
    flags = [
        "--dish",
        dish_run,
        "--sampler",
        "ddim:2",
        "--device",
        "cpu",
        "--candidates",
        1,
        "--frames",
        4,
        "--enlarge",
        1,
    ]
    code, out, err = command_line(
        MAKE_GIF, "番茄炒蛋", *flags, *engine, "--camera", "left:1", "--size", 96, "--out", tmp_path / "film.gif"
    )
    assert code == 0 and "enlarged to 96 x 96" in out and "4 frames of 96 x 96" in out, err


def test_a_film_never_takes_the_place_of_the_picture_it_was_made_from(tmp_path, command_line):
    for name, out in (("plate.png", "plate.png"), ("film-sheet.png", "film.gif")):
        Image.new("RGB", (48, 48), "red").save(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        code, _, err = command_line(
            MAKE_GIF,
            "我的菜",
            "--image",
            tmp_path / name,
            "--engine",
            "reflect",
            "--frames",
            4,
            "--out",
            tmp_path / out,
        )
        assert (
            code == 2 and re.search("would (be written|write) over", err) and (tmp_path / name).read_bytes() == before
        )


def test_as_many_frames_as_it_says_do(tmp_path, command_line, monkeypatch):
    """The number that a refusal names is one that works, keyframes counted."""
    monkeypatch.setattr(render.writers.check_memory, "__defaults__", (0, 10_000_000))

    def refusal(frames: int) -> str:
        try:
            render.plan_path(FilmFlags(name="米饭", camera="right:6", frames=frames, enlarge=3), 64)
        except UserError as problem:
            return str(problem)
        return ""

    most = int(re.search(r"at most --frames (\d+)", refusal(1000))[1])
    assert refusal(most) == "" and f"at most --frames {most}" in refusal(most + 1)


def test_a_picture_of_ones_own_needs_no_network(tmp_path, command_line):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "plate.png")
    code, out, err = command_line(
        MAKE_GIF,
        "我的菜",
        "--image",
        tmp_path / "plate.png",
        "--engine",
        "reflect",
        "--camera",
        "right",
        "--size",
        48,
        "--frames",
        4,
        "--out",
        tmp_path / "film.gif",
    )
    assert code == 0 and "4 frames of 384 x 384" in out, err


def test_a_model_gets_a_language_and_a_guidance_scale_that_it_knows(
    dish_run, sd, english_sd, english_nine, control_run, tmp_path, command_line, monkeypatch
):
    """Whatever the engine. A vocabulary of Chinese texts gets Chinese."""
    told = []
    for kind in (backends.DiffusersBackend, backends.InpaintBackend, backends.RepaintBackend):
        monkeypatch.setattr(
            kind,
            "__call__",
            lambda self, image, mask, prompt, seed: told.append((prompt, self.config.guidance_scale)) or image,
        )
    for flags, expected in (
        (["--model", sd], ("番茄炒蛋", 2.0)),
        (["--model", english_sd], ("tomato and scrambled eggs", 7.5)),
        (["--model", english_nine, "--engine", "inpaint"], ("tomato and scrambled eggs", 7.5)),
        (["--model", english_sd, "--engine", "repaint"], ("tomato and scrambled eggs", 7.5)),
        (["--model", english_sd, "--controlnet", control_run], ("tomato and scrambled eggs", 7.5)),
        (["--model", english_sd, "--prompt", "a plate", "--paint-guidance", 4], ("a plate", 4.0)),
    ):
        told.clear()
        common = ["--dish", dish_run, "--sampler", "ddim:2", "--device", "cpu", "--candidates", 1, "--enlarge", 1]
        film = ["--frames", 3, "--camera", "down:1", "--out", tmp_path / "film.gif"]
        code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *common, *film, *flags)
        assert code == 0 and told == [expected], (flags, told, err)


def test_a_model_goes_through_diffusers(dish_run, sd, tmp_path, command_line):
    """With --model alone."""
    flags = [
        "--dish",
        dish_run,
        "--model",
        sd,
        "--sampler",
        "ddim:2",
        "--device",
        "cpu",
        "--candidates",
        1,
        "--frames",
        3,
        "--camera",
        "down:1",
    ]
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, "--out", tmp_path / "film.gif")
    assert code == 0, err
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, "--size", 36, "--out", tmp_path / "film.gif")
    assert code == 0, err
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, "--size", 50, "--out", tmp_path / "film.gif")
    assert code == 2 and "--size 50 x 50 must be divisible by 4" in err


@pytest.mark.parametrize("form", ["folder", "hub id", "file"])
def test_a_published_model_draws_the_dish(form, sd, english_sd, clip_folder, tmp_path, command_line, monkeypatch):
    """It is told the English name, and the CLIP chooses among its candidates by the Chinese name."""
    told, model = [], english_sd
    if form == "hub id":
        model = "someone/diffusion"
        monkeypatch.setattr(published, "find_pipeline", lambda name: {"someone/diffusion": english_sd}[name])
    if form == "file":
        model = tmp_path / "model.safetensors"
        model.touch()
        monkeypatch.setattr(published, "find_root", lambda path: {model: english_sd}[path])
    real = diffusers.StableDiffusionPipeline.__call__
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline,
        "__call__",
        lambda self, **given: told.append((given["prompt"], given["guidance_scale"])) or real(self, **given),
    )
    looked_for = []
    encode = ChineseCLIP.encode_text
    monkeypatch.setattr(
        ChineseCLIP, "encode_text", lambda self, texts, **more: looked_for.append(texts) or encode(self, texts, **more)
    )
    flags = ["--dish", model, "--clip", clip_folder, "--backend", "transformers", "--engine", "reflect"]
    small = ["--sampler", "ddim:2", "--device", "cpu", "--candidates", 3, "--frames", 3, "--camera", "down:1"]
    out = ["--out", tmp_path / "film.gif"]
    code, said, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, *small, *out)
    assert code == 0 and told == [("tomato and scrambled eggs", 7.5)] * 3, err
    assert looked_for[-1] == ["番茄炒蛋"] and re.search(r"picture [123] of 3, cosine", said)
    assert "3 frames of 384 x 384" in said
    if form != "folder":
        return
    for more, expected in ((["--dish-prompt", "a plate"], "a plate"), ([], "tomato and scrambled eggs")):
        told.clear()
        assert command_line(MAKE_GIF, "番茄炒蛋", *flags, *small, *out, *more, "--candidates", 1)[0] == 0
        assert told[0][0] == expected
    code, _, err = command_line(MAKE_GIF, "我的菜", *flags, *small, *out)
    assert code == 0 and "我的菜 has no English name here; give --dish-prompt" in err
    told.clear()
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, *small, *out, "--dish", sd, "--candidates", 1)
    assert code == 0 and told == [("番茄炒蛋", 3.0)], err  # this one has read Chinese


def test_the_candidate_nearest_to_the_name_is_filmed(dish_run, clip, sd):
    drawn = torch.stack([photograph(seed) for seed in range(3)])

    class Painter:
        size = 64

        def __call__(self, prompts):
            return drawn[: len(prompts)]

    query = dish_names.parse_dish_name(clip, "番茄炒蛋")
    models = first_picture.DishModels(query, clip, Painter(), query.name)
    cosines = clip.encode_image(drawn) @ clip.encode_text(["番茄炒蛋"])[0]
    best = int(cosines.argmax())
    assert best != 0 or cosines.argsort()[0] != 0  # taking the first, or the farthest, would show
    flags = FilmFlags("番茄炒蛋", candidates=3)
    assert torch.equal(first_picture.first_picture(flags, models, 64), drawn[best])


def test_pictures_that_the_safety_checker_withheld_are_no_candidates(english_sd):
    model = published.open_published(str(english_sd), SamplingConfig(7.5, sampler="ddim:1"))
    answers = iter([True, False, True])

    class Pipe:
        unet, vae_scale_factor = model.pipe.unet, model.pipe.vae_scale_factor

        def __call__(self, **_):
            return SimpleNamespace(images=torch.zeros(1, 3, 64, 64), nsfw_content_detected=[next(answers)])

    careful = published.PublishedModel(Pipe(), model.config)
    assert careful.size == 64 and len(careful(["a"] * 2)) == 1
    with pytest.raises(UserError, match="withheld every picture"):
        careful(["a"])


def test_what_is_said_of_names(dish_run, nine, tmp_path, command_line):
    """An unknown dish is a best effort; a foreign name says how."""
    flags = [*films(dish_run, nine, tmp_path), "--camera", "left:1", "--out", tmp_path / "film.gif"]
    code, _, err = command_line(MAKE_GIF, "炸龘龘", *flags)
    assert code == 0 and "best effort" in err and "never read 龘" in err
    code, _, err = command_line(MAKE_GIF, "pizza", *flags)
    assert code == 0 and "is not Chinese" in err
    code, out, err = command_line(MAKE_GIF, "peking duck", *flags)
    assert code == 0 and "is read as 北京烤鸭" in err and "北京烤鸭: picture" in out


def test_without_cn_clip_its_installation_is_named(dish_run, nine, tmp_path, command_line, monkeypatch):
    """And the second backend makes the film."""
    monkeypatch.setattr(model, "cn_clip_installed", lambda: False)
    flags = [*films(dish_run, nine, tmp_path), "--camera", "left:1", "--out", tmp_path / "film.gif"]
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags)
    assert (
        code == 2 and model.INSTALL in err and "--backend transformers" in err and not (tmp_path / "film.gif").exists()
    )
    code, _, err = command_line(MAKE_GIF, "番茄炒蛋", *flags, "--backend", "transformers")
    assert code == 0, err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([" "], "the name of the dish is empty"),
        (["米饭", "--camera", "spin"], "unknown camera move 'spin'; choose one of up, down, left"),
        (["米饭", "--camera", "right,,left"], "unknown camera move ''"),
        (["米饭", "--camera", "ring:3"], "ring needs 4, 8"),
        (["米饭", "--frames", 1], "--frames must be at least 2"),
        (["米饭", "--frames", 10**7], "--frames must be at most 10,000"),
        (["米饭", "--frames", 10_000, "--enlarge", 64], "GiB of memory"),
        (["米饭", "--frames", 0], "--frames must be above 0"),
        (["米饭", "--candidates", 0], "--candidates must be at least 1"),
        (["米饭", "--dish", "nobody/nothing"], "nobody/nothing"),
        (["米饭", "--fps", 0], "--fps must be at least 0.1"),
        (["米饭", "--fps", 500], "--fps must be at most 120"),
        (["米饭", "--size", 8], "at least 16 pixels"),
        (["米饭", "--size", 100000], "--size must be at most 4,096 pixels"),
        (["米饭", "--out", "film.avi"], "end it in .gif"),
        (["米饭", "--new-fraction", 0.9], "--new-fraction must be at least 0.01 and at most 0.75"),
        (["米饭", "--loop", "round"], "--loop round needs a camera that moves straight to one side"),
        (["米饭", "--sampler", "magic:3"], "cannot read the sampler"),
        (["米饭", "--guidance", -1], "--guidance must be 0 or more, not -1; 1 is off"),
        (["米饭", "--seed", -1], "--seed must be 0 or more"),
        (["米饭", "--image", "nothing.png"], "there is no image file"),
        (["米饭", "--dish", "nowhere"], "nowhere is missing"),
        (["米饭", "--engine", "magic"], "invalid choice|expected one of|magic"),
        (["米饭", "--mask-blur", "-1", "--image", "PLATE"], "--mask-blur"),
        (["米饭", "--engine", "diffusers", "--image", "PLATE"], "needs --model"),
        (["米饭", "--mask-blur", "nan", "--image", "PLATE"], "--mask-blur must be 0 or more, not nan"),
        (["米饭", "--colours", 3, "--image", "PLATE", "--engine", "reflect"], "4 to 256 colours"),
        (["米饭", "--fps", 60, "--image", "PLATE", "--engine", "reflect"], "not show more than 50 frames a second"),
        (["米饭", "--max-kb", "inf", "--image", "PLATE", "--engine", "reflect"], "--max-kb must be at most"),
        (
            ["米饭", "--image", "PLATE", "--engine", "reflect", "--out", "FOLDER"],
            "is a folder; give --out the name of a file",
        ),
        (
            ["米饭", "--image", "PLATE", "--engine", "reflect", "--out", "PLATE/film.gif"],
            "plate.png is a file, no folder that can be written to",
        ),
    ],
)
def test_bad_input(flags, sentence, tmp_path, command_line):
    """One sentence, before anything is painted, and nothing written."""
    plate, folder = tmp_path / "plate.png", tmp_path / "folder.gif"
    Image.new("RGB", (64, 64)).save(plate)
    folder.mkdir()
    named = {"PLATE": plate, "FOLDER": folder, "PLATE/film.gif": plate / "film.gif"}
    flags = [named.get(flag, flag) for flag in flags]
    code, out, err = command_line(
        MAKE_GIF, *flags, *([] if "--out" in flags else ["--out", tmp_path / "film.gif"]), "--device", "cpu"
    )
    assert code == 2 and re.search(sentence, err) and "Traceback" not in err, err
    assert not out and sorted(tmp_path.rglob("*")) == [folder, plate]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("nine", "paints into holes, so it cannot draw"), ("pixels", "reads no text, so it cannot draw")],
)
def test_what_cannot_draw_a_dish_is_refused(kind, sentence, nine, pixel_model, clip_folder, tmp_path, command_line):
    """By whoever is given it as --dish."""
    flags = [
        "--dish",
        {"nine": nine, "pixels": pixel_model}[kind],
        "--clip",
        clip_folder,
        "--backend",
        "transformers",
        "--device",
        "cpu",
    ]
    for program, more in (
        (MAKE_GIF, ["米饭", "--engine", "reflect", "--out", tmp_path / "film.gif"]),
        ("06_inpaint_gif/evaluate_gif.py", ["--engines", "reflect"]),
    ):
        code, _, err = command_line(program, *more, *flags)
        assert code == 2 and sentence in err and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())


def test_a_camera_that_turns_slows_down_before():
    flags = FilmFlags("米饭")
    assert flags.chosen_ease == "smooth" and flags.file.suffix == ".webp"
    times = frame_times(48, flags.loop, flags.chosen_ease)
    steps = np.abs(np.diff(times))
    turn = int(np.argmax(times))
    assert steps[turn] < 0.1 * steps.max() and steps[turn - 1] < 0.2 * steps.max()
    assert FilmFlags("米饭", loop="seamless").chosen_ease == "linear"  # a film that goes on for ever does not pause
    assert FilmFlags("米饭", ease="ends").chosen_ease == "ends"


def test_a_name_of_any_length_names_a_file():
    assert file_name("土鸡蛋 炒番茄/") == "土鸡蛋-炒番茄" and file_name("🍅") == "dish"
    assert set(file_name("番" * 300)) == {"番"} and len(f"{file_name('番' * 300)}-sheet.png.partial".encode()) < 150


def test_evaluation_tells_all_four(dish_run, nine, tmp_path, command_line):
    code, out, err = command_line(
        "06_inpaint_gif/evaluate_gif.py",
        "--dish",
        dish_run,
        "--inpaint",
        nine,
        "--backend",
        "transformers",
        "--sampler",
        "ddim:1",
        "--engines",
        "reflect",
        "inpaint",
        "--n",
        3,
        "--frames",
        5,
        "--device",
        "cpu",
        "--out",
        tmp_path / "tables",
    )
    assert code == 0, err
    dishes, holes, drift, moves = (
        {row[name]: row for row in read_csv(tmp_path / "tables" / f"{part}.csv")}
        for part, name in (("dishes", "images"), ("holes", "engine"), ("drift", "engine"), ("moves", "move"))
    )
    assert len(dishes) == 6 and all(0 <= float(row["top1"]) <= 1 for row in dishes.values())
    assert set(holes) == set(drift) == {"untouched", "reflect", "inpaint"}
    assert holes["inpaint"]["exact"] == "True" and not holes["untouched"]["error"]
    assert float(holes["reflect"]["error"]) < float(holes["inpaint"]["error"])
    assert all(drift["reflect"][f"keyframe_{k}"] for k in (1, 2, 3, 4)) and drift["reflect"]["n"] == "3"
    assert set(moves) == set(camera.MOVES) and all(
        (row["exact"], row["frames"]) == ("True", "4") for row in moves.values()
    )
    assert "untouched" in out and "drift" in out and "zoom-in" in out


def test_holes_of_another_size_and_blur(dish_run, tmp_path, command_line):
    """An edge that is softened over more pixels is less visible, also in larger scenes than the dish model draws."""
    seams = []
    for blur in (0, 6):
        code, _, err = command_line(
            EVALUATE_GIF, "--dish", dish_run, "--backend", "transformers", "--only", "holes", "--engines", "repaint",
            "--sampler", "ddim:1", "--n", 2, "--size", 96, "--mask-blur", blur, "--device", "cpu", "--out", tmp_path / str(blur),
        )  # fmt: skip
        assert code == 0, err
        seams.append(float(read_csv(tmp_path / str(blur) / "holes.csv")[1]["seam"]))
    assert seams[1] < seams[0]


def test_the_judge_of_directions():
    picture = photograph(3)
    for name in ("right", "up-left", "zoom-out", "zoom-in", "ring"):
        found = metrics.direction_accuracy(picture, name, FILLS["reflect"], "", frames=13)
        assert found.right >= 11 and found.exact, (name, found)
    assert not metrics.moves_as_requested("left", 0, 4, np.array([-1.0, 0.0]), 0.0) and metrics.moves_as_requested(
        "left", 0, 4, np.array([1.0, 0.1]), 0.0
    )
    # half-way between two directions is neither
    assert not metrics.moves_as_requested("up", 0, 4, np.array([1.0, 1.0]), 0.0)
    assert metrics.moves_as_requested("zoom-out", 0, 4, np.zeros(2), -0.02) and not metrics.moves_as_requested(
        "zoom-out", 0, 4, np.zeros(2), 0.02
    )
