"""Pictures: sizes, labels in two languages, the choice of moments, animations, and the reading of a run's log."""

import ast
import re
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image

from common import viz
from common.errors import UserError
from common.grade import chapter
from helpers.programs import ROOT
from helpers.source import label, own_files


def flat(value: float, n: int = 1, channels: int = 1, size: int = 4) -> torch.Tensor:
    return torch.full((n, channels, size, size), value)


@pytest.mark.parametrize(
    ("n", "columns", "height", "expected"),
    [
        (6, 3, None, (3 * 6 + 2, 2 * 6 + 2)),  # 4 pixels and a gap of 2 each, one more gap at the end
        (9, None, None, (3 * 6 + 2, 3 * 6 + 2)),  # as square as can be
        (7, None, None, (3 * 6 + 2, 3 * 6 + 2)),
        (1, 1, 80, (80, 80)),  # enlarged by a whole factor
        (1, 1, 3, (4, 4)),  # never made smaller
    ],
)
def test_grid_sizes(n, columns, height, expected):
    picture = viz.grid(flat(0.0, n), columns, height)
    assert picture.size == expected and picture.mode == "RGB"


def test_grid_shows_the_images_in_reading_order():
    images = torch.cat([flat(-1.0), flat(0.0), flat(1.0), flat(5.0)])  # the last is beyond the range
    pixels = np.asarray(viz.grid(images, 2))[..., 0]
    assert [int(pixels[y, x]) for y, x in ((3, 3), (3, 9), (9, 3), (9, 9))] == [0, 128, 255, 255]
    assert (pixels[:2] == 255).all()  # gaps are white


def test_labelled_grid_keeps_the_pixels_at_a_whole_scale_and_writes_the_labels_outside():
    images = torch.cat([flat(-1.0), flat(0.0), flat(1.0), flat(-1.0)])
    plain = np.asarray(viz.grid(images, 2))
    picture = np.asarray(viz.labelled_grid(images, 2, ["a", "b\nc"], ["row", "x₀"], scale=3))
    height, width = plain.shape[0] * 3, plain.shape[1] * 3
    assert (picture[-height:, -width:] == plain.repeat(3, 0).repeat(3, 1)).all()
    assert picture[:-height].min() < 128 and picture[-height:, :-width].min() < 128
    assert viz.labelled_grid(images, 2, scale=3).size == (width, height)


def test_grid_keeps_colours():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert viz.grid(red, 1).getpixel((3, 3)) == (255, 0, 0)


def test_changing_evenly_takes_equal_distances_not_equal_times():
    """A process that stands still for 90 frames and moves in the last 10."""
    frames = [flat(0.0)] * 90 + [flat(0.1 * k) for k in range(1, 11)]
    chosen = viz.changing_evenly(frames, 6)
    assert chosen[0] == 0 and chosen[-1] == len(frames) - 1
    assert chosen == sorted(chosen)
    assert chosen[1:] == [91, 93, 95, 97, 99]


def test_changing_evenly_with_even_changes_is_even():
    assert viz.changing_evenly([flat(0.1 * k) for k in range(11)], 6) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_changing_evenly_with_fewer_frames_than_asked(frames):
    """A sampler of a few steps still fills the strip."""
    chosen = viz.changing_evenly([flat(0.3 * k) for k in range(frames)], 10)
    assert len(chosen) == 10 and chosen[0] == 0 and chosen[-1] == frames - 1 and chosen == sorted(chosen)


def test_changing_evenly_ends_at_the_last_frame_when_the_end_stands_still():
    frames = [flat(0.1 * k) for k in range(5)] + [flat(0.4)] * 5
    chosen = viz.changing_evenly(frames, 3)
    assert torch.equal(frames[chosen[-1]], frames[-1])


def test_strip_has_a_row_per_sample_and_a_column_per_moment():
    frames = [torch.cat([flat(0.1 * k), flat(-0.1 * k)]) for k in range(11)]
    picture = viz.strip(frames, columns=6)
    labels = picture.height - (2 * 6 + 2)
    assert picture.width == 6 * 6 + 2 and 0 < labels < 30
    pixels = np.asarray(picture)[labels:, :, 0].astype(int)
    row, mirrored = pixels[3, 3::6], pixels[9, 3::6]
    assert (np.diff(row) > 0).all() and (np.diff(mirrored) < 0).all()  # time runs to the right


def test_a_strip_names_the_steps(monkeypatch):
    """As whole words where there is room, else as numbers."""
    named = []
    monkeypatch.setattr(viz, "labelled_grid", lambda *args, **_: named.append(args[2]))
    frames = [flat(0.1 * k) for k in range(11)]
    viz.strip(frames, columns=3)
    viz.strip(frames, columns=3, height=100)
    assert named == [["1", "6", "11"], ["step 1", "step 6", "step 11"]]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a red fire creature with bat wings", ["a red fire creature", "with bat wings"]),
        ("一只黄色的电属性小怪兽，长着兔耳朵", ["一只黄色的电属性小怪", "兽，长着兔耳朵"]),
        ("averylongwordthatdoesnotfit here", ["averylongwordthatdoesnotfit", "here"]),
        ("", [""]),
    ],
)
def test_labels_are_broken_into_lines(text, lines):
    assert viz.wrapped(text, 130).split("\n") == lines
    assert all(viz.label_size(line, 12)[0] <= 130 for line in lines if " " in line or not line.isascii())


def test_gif_holds_every_moment_and_loops(tmp_path):
    frames = [flat(-1 + 0.1 * k, n=2) for k in range(21)]
    path = viz.save_gif(frames, tmp_path / "process.gif", n=7, seconds=2.1, hold=1.0, height=40)
    with Image.open(path) as gif:
        durations = [gif.info["duration"]]
        assert gif.n_frames == 7 and gif.info["loop"] == 0
        shades = []
        for k in range(gif.n_frames):
            gif.seek(k)
            durations.append(gif.info["duration"])
            shades.append(gif.convert("L").getpixel((gif.width // 4, gif.height // 2)))
    assert shades == sorted(shades) and shades[0] < 10 and shades[-1] > 245
    assert durations[1] == 300 and durations[-1] == 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_of_an_unknown_kind(tmp_path):
    with pytest.raises(UserError, match="cannot tell the kind of picture from the name grid.xyz; end it in .png"):
        viz.save_picture(viz.grid(flat(0.0)), tmp_path / "grid.xyz")


def test_reading_the_log_of_a_run(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,loss_0\n1,0.5,\n2,0.25,0.125\n")
    metrics = viz.read_metrics(tmp_path)
    assert metrics["step"].tolist() == [1, 2] and metrics["loss"].tolist() == [0.5, 0.25]
    assert np.isnan(metrics["loss_0"][0]) and metrics["loss_0"][1] == 0.125


def test_a_run_without_a_log(tmp_path):
    with pytest.raises(UserError, match="metrics.csv"):
        viz.read_metrics(tmp_path)


def test_smoothing_is_a_mean_over_a_window_that_ignores_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    smooth = viz.smooth(values, share=0.3)
    assert len(smooth) == 10
    assert smooth[2] == pytest.approx(3.0)  # of 2 and 4
    assert smooth[5] == pytest.approx(6.0)
    assert smooth[0] == pytest.approx(1.5)  # the end uses what there is
    assert np.isnan(viz.smooth(np.full(5, np.nan))).all()
    assert viz.smooth(np.array([3.0]))[0] == 3.0


def test_plot_of_a_run(tmp_path):
    header = "step,loss,lr," + ",".join(f"loss_{i}" for i in range(10))
    rows = [f"{k},{1 / k},{0.001},{','.join(['0.1'] * 9)}," for k in range(1, 20)]  # one noise level never seen
    (tmp_path / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    path = viz.plot_run(tmp_path, tmp_path / "loss.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 600


# ---------------------------------------------------------------------------------------------------- Chinese labels

CHARACTERS = FT2Font(str(viz.FONT)).get_charmap()  # code points, with the numbers of their shapes


@pytest.fixture(autouse=True)
def english_afterwards():
    yield
    viz.label_language("en")


@pytest.mark.parametrize("path", [*ROOT.glob("0*/lesson.zh.py"), *own_files("pictures.py")], ids=label)
def test_the_font_has_every_character_of_the_code(path):
    strings = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    wide = {letter for text in strings for letter in viz.RUN.findall(text) if re.match(f"[{viz.CHINESE}]", letter)}
    assert {letter for piece in wide for letter in piece if ord(letter) not in CHARACTERS} == set()


def test_matplotlib_draws_chinese_without_a_warning():
    import matplotlib.pyplot as plt

    viz.label_language("zh")
    figure, axis = plt.subplots()
    axis.set(title="噪声水平 $\\bar\\alpha_t$ 与 x̂₀", xlabel="步数 t ≤ 920", ylabel="误差，原始 − 平均")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    plt.close(figure)
    assert matplotlib.rcParams["font.family"][0] == viz.FONT_NAME
    viz.label_language("en")
    assert matplotlib.rcParams["font.family"] == matplotlib.rcParamsDefault["font.family"]


def test_words_follow_the_language():
    assert viz.words("noise", "噪声") == "noise"
    viz.label_language("zh")
    assert viz.words("noise", "噪声") == "噪声"


def test_a_label_of_two_fonts_is_drawn_outside_of_the_images():
    images = torch.full((2, 1, 8, 8), -1.0)
    picture = np.asarray(viz.labelled_grid(images, 2, ["噪声", "预测\nx̂₀"], ["第 1 行"], scale=3))
    body = np.asarray(viz.labelled_grid(images, 2, scale=3)).shape
    margin = picture[: -body[0]], picture[-body[0] :, : -body[1]]
    assert all((part < 128).any() for part in margin)
    assert (picture[0] == 255).all() and (picture[:, 0] == 255).all(), "no letter is cut off"


def test_a_chinese_lesson_asks_for_chinese_labels(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    folder = chapter.open_chapter("01_ddpm_mnist 中文")
    assert folder == ROOT / "01_ddpm_mnist" and viz.words("noise", "噪声") == "噪声"
    chapter.open_chapter("01_ddpm_mnist")
    assert viz.words("noise", "噪声") == "noise"
    with pytest.raises(UserError, match="none .English. or 中文, not 'fr'"):
        chapter.open_chapter("01_ddpm_mnist fr")
