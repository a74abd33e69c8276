"""The evaluator: its distances against closed forms, its error bars, its order of good and bad, and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scipy.linalg import sqrtm

from common.data import Images, load
from common.diffusion.denoiser import Denoiser
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.evaluate.digit_classifier import FEATURES, accuracy, classify, load_digit_classifier, preprocess
from common.evaluate.distances import Frechet, bootstrap, kernel_distance, random_splits
from common.evaluate.evaluator import MIN_SAMPLES, evaluate, load_real, reference_for, save_reference
from common.evaluate.report import table
from common.evaluate.samples import read_folder, read_npy, read_samples
from common.io.pixels import to_bytes, to_float
from common.io.tables import read_csv
from common.models.model_folder import Model, save_model
from common.models.unet import UNet
from common.models.unet_config import UNetConfig
from common.random import generator
from helpers.programs import run_program


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    """The embedded digits with a margin, as MNIST has one: (test, train), 12x12 pixels."""
    return tuple(
        Images(s.name, F.pad(s.pixels, (2, 2, 2, 2)), s.labels) for s in (load("digits", split="test"), load("digits"))
    )


def cloud(n: int, d: int, *place: int) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(*place), dtype=torch.float64)


def exactly(mean: torch.Tensor, covariance: torch.Tensor, n: int = 50) -> torch.Tensor:
    """n points whose sample mean and sample covariance are these to the last digit."""
    x = cloud(n, len(mean), n)
    x = x - x.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(x.T.cov()))
    return x @ whiten.T @ torch.linalg.cholesky(covariance).T + mean


# ------------------------------------------------------------------------------------------------------- the distances


def test_frechet_of_diagonal_gaussians():
    """||mu_1 - mu_2||^2 + sum (s_1 - s_2)^2, by hand: 9 + 16 + (1-3)^2 + (2-2)^2 = 29."""
    a = exactly(torch.tensor([0.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 4.0]).double()), n=40)
    b = exactly(torch.tensor([3.0, 4.0]).double(), torch.diag(torch.tensor([9.0, 4.0]).double()), n=70)
    assert Frechet(a)(b) == pytest.approx(29, abs=1e-9)


def test_frechet_of_gaussians_that_do_not_commute():
    A, B = (x @ x.T + torch.eye(5, dtype=torch.float64) for x in (cloud(5, 5, 1), cloud(5, 5, 2)))
    mean_a, mean_b = cloud(2, 5, 3)
    expected = float((mean_a - mean_b).square().sum() + (A + B).trace()) - 2 * np.trace(sqrtm((A @ B).numpy())).real
    assert Frechet(exactly(mean_a, A))(exactly(mean_b, B, 60)) == pytest.approx(expected, abs=1e-8)


def test_frechet_keeps_its_reference_and_forgets_the_samples():
    frechet, samples = Frechet(cloud(200, 4, 1)), cloud(100, 4, 2)
    first = frechet(samples)
    frechet(samples + 5)
    assert frechet(samples) == pytest.approx(first, abs=1e-12)


def test_kernel_distance_is_the_unbiased_formula():
    x, y, D = cloud(20, 3, 1), cloud(20, 3, 2) + 0.5, 3
    k = lambda a, b: float((a @ b / D + 1) ** 3)  # noqa: E731
    within = lambda z: np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])  # noqa: E731
    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    value, sd = kernel_distance(x, y, size=20)  # the only subset of that size is everything
    assert value == pytest.approx(expected, abs=1e-9)
    assert sd == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_equals_is_about_zero_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    same, sd = kernel_distance(cloud(400, 8, 1), cloud(400, 8, 2))
    assert torch.rand(1) == expected
    assert abs(same) < 3 * sd
    assert kernel_distance(cloud(400, 8, 1) + 1, cloud(400, 8, 2))[0] > 10 * sd


def test_bootstrap_spread_is_the_spread_of_new_samples():
    """For the mean, theory says sd = 1/sqrt(N); the interval is its middle 95 %, centred on the plain value."""
    x = cloud(400, 1, 5)
    estimate = bootstrap(lambda z: float(z.mean()) + 10, x, times=400)
    assert estimate.value == float(x.mean()) + 10
    assert estimate.sd == pytest.approx(1 / 20, rel=0.2)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * estimate.sd, rel=0.15)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value, abs=0.01)


def test_bootstrap_interval_holds_the_value_although_resampled_distances_are_larger():
    frechet, x = Frechet(cloud(2000, 20, 1)), cloud(100, 20, 2)
    estimate = bootstrap(frechet, x, times=100)
    resampled = frechet(x[torch.randint(100, (100,), generator=generator(0))])
    assert resampled > estimate.high  # the bias that the docstring speaks of
    assert estimate.low < estimate.value < estimate.high


def test_random_splits_are_disjoint_until_the_points_are_used_up():
    points = torch.arange(100).double()[:, None]
    hands = [set(hand.flatten().tolist()) for hand in random_splits(points, 30, 5, seed=1)]
    assert all(len(hand) == 30 for hand in hands)
    assert len(set.union(*hands[:3])) == 90
    assert len(set.union(*hands[3:])) == 60
    assert hands[0] != hands[3]


# ------------------------------------------------------------------------------------------------------ the classifier


def test_classifier_input_is_grey_and_28_pixels():
    colour = torch.zeros(2, 3, 32, 32)
    colour[:, 1] = 1.0  # green counts most
    assert preprocess(colour).shape == (2, 1, 28, 28)
    assert torch.allclose(preprocess(colour), torch.full((2, 1, 28, 28), 0.587), atol=2e-3)
    same = 2 * torch.rand(2, 1, 28, 28, generator=generator(1)) - 1
    assert torch.equal(preprocess(same), same)
    checker = torch.ones(1, 1, 4, 4)
    checker[..., ::2] = -1
    assert preprocess(checker).abs().max() <= 1
    with pytest.raises(UserError, match="not \\(2, 4, 8, 8\\)"):
        preprocess(torch.zeros(2, 4, 8, 8))


def test_shipped_classifier_reads_digits_it_has_never_seen(digits):
    """scikit-learn's digits were written by other hands, and have 8x8 pixels."""
    net = load_digit_classifier()
    assert not net.training and all(p.dtype == torch.float32 for p in net.parameters())
    assert accuracy(net, digits[1].pixels, digits[1].labels) > 0.9
    features, classes = classify(net, digits[0].pixels)
    assert features.shape == (len(digits[0]), FEATURES) and torch.allclose(
        classes.sum(1), torch.ones(len(classes)).double()
    )


def test_shipped_classifier_on_mnist():
    test = load("mnist-10k", split="test")
    assert accuracy(load_digit_classifier(), test.pixels, test.labels) > 0.99


def test_damaged_classifier_weights_are_named(tmp_path):
    (tmp_path / "cnn.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cnn.safetensors, cannot be loaded"):
        load_digit_classifier(tmp_path / "cnn.safetensors")


# ------------------------------------------------------------------------------------------------------- the evaluator


def real_samples(digits, n=200) -> torch.Tensor:
    """Real digits, by chance; the test and the training split of this set are of one kind."""
    return to_float(digits[1].pixels[torch.randperm(len(digits[1]), generator=generator(9))[:n]])


def test_real_digits_reach_the_floor_and_noise_raises_the_distance(digits):
    samples = real_samples(digits)
    clean = evaluate(samples, *digits)
    assert clean.n == 200 and clean.reference == len(digits[0])
    assert abs(clean.frechet - clean.frechet_real) < 5 * clean.frechet_real_sd
    assert abs(clean.kid - clean.kid_real) < 5 * clean.kid_real_sd
    noise = torch.randn(samples.shape, generator=generator(10))
    noisy = [evaluate((samples + s * noise).clamp(-1, 1), *digits) for s in (0.2, 0.5, 1.0)]
    for worse, better in zip(noisy, [clean, *noisy], strict=False):
        assert worse.frechet > better.frechet_interval[1]
        assert worse.kid > better.kid
    assert noisy[-1].ratio > 5
    assert noisy[-1].frechet_real == clean.frechet_real  # the floor does not depend on the samples


def test_shifted_digits_are_worse_than_the_floor(digits):
    report = evaluate(real_samples(digits).roll(2, dims=-1), *digits)
    assert report.frechet_interval[0] > report.frechet_real + 5 * report.frechet_real_sd


def test_histogram_sees_a_missing_class(digits):
    labels = digits[1].labels
    only = to_float(digits[1].pixels[(labels == 0) | (labels == 6)])
    report = evaluate(only, *digits)
    assert sum(report.histogram) == pytest.approx(1)
    assert report.histogram[0] > 0.4 and report.histogram[6] > 0.3
    assert max(report.histogram_real) < 0.25
    assert report.ratio > 3


def test_same_seed_same_report(digits):
    samples = real_samples(digits, 100)
    first, again, other = (evaluate(samples, *digits, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert other.frechet == first.frechet  # the distance itself does not depend on the seed, its error bars do
    assert other.frechet_real != first.frechet_real


def test_samples_of_another_size_are_compared_at_their_size(digits):
    samples = to_float(digits[1].resized(7).pixels[torch.randperm(len(digits[1]), generator=generator(9))[:200]])
    grey, colour = evaluate(samples, *digits), evaluate(samples.expand(-1, 3, -1, -1), *digits)
    assert abs(grey.frechet - grey.frechet_real) < 5 * grey.frechet_real_sd
    assert colour.frechet == pytest.approx(grey.frechet, rel=0.02)
    assert grey.frechet_real < 2 * evaluate(real_samples(digits), *digits).frechet_real  # the reference is as blurred


def test_small_sets_and_few_samples_are_told(digits):
    reference, real = digits
    report = evaluate(to_float(real.pixels), reference, real)
    assert report.n == len(real) // 2
    assert any("samples are used" in note for note in report.notes)
    assert any("classifier of MNIST digits" in note for note in report.notes)
    few = evaluate(real_samples(digits, 40), reference, real)
    assert any("very rough" in note for note in few.notes)
    with pytest.raises(UserError, match="too few"):
        evaluate(real_samples(digits, MIN_SAMPLES - 1), reference, real)
    with pytest.raises(UserError, match="too few"):
        evaluate(real_samples(digits, 100), reference, Images("small", real.pixels[:50]))


@pytest.mark.parametrize("shape", [(100, 8, 8), (100, 2, 8, 8), (100, 1, 8, 9)])
def test_wrong_shapes_are_refused(digits, shape):
    with pytest.raises(UserError, match="must be square"):
        evaluate(torch.zeros(shape), *digits)


def test_nan_is_refused(digits):
    samples = real_samples(digits, 100)
    samples[3, 0, 1, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        evaluate(samples, *digits)


def test_table_shows_every_number(digits):
    report = evaluate(real_samples(digits, 100), *digits)
    text = table(report, "digits")
    for number in (
        f"n = {report.n} ",
        f"{report.reference:,}",
        f"{report.frechet:.2f} ± {report.frechet_sd:.2f}",
        f"{report.frechet_real:.2f} ± {report.frechet_real_sd:.2f}",
        f"ratio {report.ratio:.1f}",
        f"{report.kid:.4f} ± {report.kid_sd:.4f}",
        f"{report.frechet_interval[0]:.2f} to {report.frechet_interval[1]:.2f}",
        f"{report.confidence:.3f}",
        f"{report.confidence_noise:.3f}",
        *report.notes,
    ):
        assert number in text


# ------------------------------------------------------------------------------------------------ MNIST, not at hand


def test_mnist_needs_no_download_for_a_frechet_distance(tmp_path):
    test, real = load_real("mnist", tmp_path)
    reference = reference_for(test, 28)
    assert (reference.name, len(reference), reference.features.shape) == ("mnist", 10_000, (10_000, FEATURES))
    report = evaluate(to_float(test.pixels[::4]), reference, real)  # the first ones would be of one kind of writers
    assert report.reference == 10_000 and not report.notes and 0.5 < report.ratio < 1.5
    assert reference_for(test, 14) is test  # features of another size are not embedded


def test_embedded_features_are_those_of_the_test_images(tmp_path):
    net, test = load_digit_classifier(), load("mnist-10k", split="test")
    rng = np.random.default_rng(0)
    rng.permutation(60_000)  # the training images were chosen first
    chosen = torch.from_numpy(np.sort(rng.permutation(10_000)[: len(test)]))
    features = reference_for(test, 28).features[chosen]
    torch.testing.assert_close(features, classify(net, test.pixels)[0], rtol=2e-3, atol=2e-3)  # half precision
    save_reference(net, test.pixels, tmp_path / "features.safetensors")
    saved = load_file(tmp_path / "features.safetensors")["features"]
    torch.testing.assert_close(saved.double(), features, rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------- reading the samples


def write_pngs(folder: Path, pixels: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(
            image.permute(1, 2, 0).numpy().squeeze(-1) if len(image) == 1 else image.permute(1, 2, 0).numpy()
        ).save(folder / f"{i:04}.png")
    return folder


def test_every_way_of_storing_gives_the_same_images(tmp_path, digits):
    pixels = torch.cat([digits[1].pixels[i : i + 40] for i in (0, 40, 80)], dim=1)  # three digits as red, green, blue
    arrays = {
        "nchw": pixels.numpy(),
        "nhwc": pixels.permute(0, 2, 3, 1).numpy(),
        "float": to_float(pixels).numpy(),
        "half": to_float(pixels).half().numpy(),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert torch.equal(to_bytes(read_npy(tmp_path / f"{name}.npy")), pixels), name
    assert torch.equal(to_bytes(read_folder(write_pngs(tmp_path / "rgb", pixels))), pixels)
    grey = read_folder(write_pngs(tmp_path / "grey", pixels[:, :1]))  # read as RGB, too
    assert (preprocess(grey) - preprocess(to_float(pixels[:, :1]))).abs().max() < 0.01


def test_n_chooses_at_random_but_repeatably(tmp_path, digits):
    np.save(tmp_path / "x.npy", digits[1].pixels.numpy())
    chosen = read_samples(tmp_path / "x.npy", 100, "ddim:5", 0, "cpu")
    assert torch.equal(chosen, read_samples(tmp_path / "x.npy", 100, "ddim:5", 0, "cpu"))
    assert not torch.equal(chosen, read_samples(tmp_path / "x.npy", 100, "ddim:5", 1, "cpu"))
    assert not torch.equal(chosen, to_float(digits[1].pixels[:100]))
    with pytest.raises(UserError, match="fewer than --n 5000"):
        read_samples(tmp_path / "x.npy", 5000, "ddim:5", 0, "cpu")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((40, 8, 8), np.uint8), "has the shape"),
        (np.zeros((40, 8, 8, 4), np.uint8), "has the shape"),
        (np.zeros((40, 8, 8, 1), np.int64), "holds int64"),
        (np.linspace(0, 255, 40 * 64).reshape(40, 8, 8, 1), r"run from 0 to 255"),
        (
            np.linspace(0, 1, 40 * 64).reshape(40, 8, 8, 1),
            r"run from 0 to 1, so black is probably 0 there; expected \[-1, 1\]",
        ),
        (np.zeros((0, 8, 8, 1), np.float32), r"holds no images: its shape is"),
        (np.array([{}]), "cannot be read as an array"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        read_npy(tmp_path / "x.npy")
    assert "x.npy" in str(error.value)


def test_folders_that_are_no_samples(tmp_path, digits):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither images nor a model"):
        read_samples(tmp_path / "empty", None, "ddim:5", 0, "cpu")
    mixed = write_pngs(tmp_path / "mixed", digits[1].pixels[:3])
    Image.new("L", (64, 64)).save(mixed / "grid.png")
    with pytest.raises(UserError, match="grid.png is 64x64"):
        read_folder(mixed)
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.new("L", (16, 8)).save(wide / "a.png")
    with pytest.raises(UserError, match="must be square"):
        read_folder(wide)
    bad = write_pngs(tmp_path / "bad", digits[1].pixels[:3])
    (bad / "0001.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 3 images cannot be read"):
        read_folder(bad)


def test_a_model_folder_is_sampled_class_by_class(tmp_path):
    torch.manual_seed(0)
    cfg = UNetConfig(
        size=8,
        in_channels=1,
        out_channels=1,
        channels=(8, 8),
        attention=(False, False),
        layers=1,
        groups=4,
        classes=10,
    )
    model = Model(UNet(cfg).eval(), make_schedule("cosine"), "v", True)
    save_model(tmp_path / "model", model)
    samples = read_samples(tmp_path, 70, "ddim:2", 5, "cpu")  # a run folder; more than one batch
    assert samples.shape == (70, 1, 8, 8)
    denoise = Denoiser(model.net, "v", True, label=torch.tensor([4, 5, 6, 7, 8, 9]))  # images 64 ... 69
    *_, last = Sampler.parse("ddim:2").run(denoise, model.schedule, (6, 1, 8, 8), 5, 64)
    assert torch.allclose(samples[64:], last.x, atol=1e-5)
    with pytest.raises(UserError, match="cannot read the sampler"):
        read_samples(tmp_path, 70, "magic", 0, "cpu")


# ---------------------------------------------------------------------------------------------------- the command line


def test_command_on_a_folder_of_pngs(tmp_path, digits):
    folder = write_pngs(tmp_path / "png", digits[1].pixels[:100])
    done = run_program("-m", "common.evaluate", folder, "--data", "digits", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "n = 100 samples" in done.stdout and "Frechet distance" in done.stdout and "KID" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n"] == 100 and report["data"] == "digits" and f"ratio {report['ratio']:.1f}" in done.stdout


def test_a_table_keeps_one_row_for_each_measurement(tmp_path, digits, command_line):
    folder, file = write_pngs(tmp_path / "png", digits[1].pixels[:100]), tmp_path / "table.csv"
    for n, seed in ((80, 0), (100, 0), (80, 0), (80, 1)):
        flags = ["--data", "digits", "--n", n, "--seed", seed, "--table", file, "--json", tmp_path / "report.json"]
        code, _, err = command_line("common/evaluate/program.py", folder, *flags)
        assert code == 0, err
    rows = read_csv(file)
    assert [(row["n"], row["seed"]) for row in rows] == [("80", "0"), ("100", "0"), ("80", "1")]
    report, last = json.loads((tmp_path / "report.json").read_text()), rows[-1]
    assert last["sampler"] == "" and float(last["floor"]) == pytest.approx(report["frechet_real"])
    assert [float(last[f"frechet{end}"]) for end in ("_low", "", "_high")] == pytest.approx(
        [report["frechet_interval"][0], report["frechet"], report["frechet_interval"][1]]
    )
    half = 1.96 * report["frechet_real_sd"]
    assert float(last["floor_high"]) - float(last["floor"]) == pytest.approx(half)
    assert [float(last[f"share_{k}"]) for k in range(10)] == pytest.approx(report["histogram"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "there is no nowhere"),
        ([__file__, "--data", "digits"], "does not end in .npy or .npz"),
        ([Path(__file__).parent, "--data", "nonsense"], "unknown data 'nonsense'"),
        ([Path(__file__).parent, "--n", "-5"], "--n must be above 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(command_line, flags, message):
    code, out, err = command_line("common/evaluate/program.py", *flags)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1


def test_help_does_not_wait_for_torch():
    done = run_program("-X", "importtime", "-m", "common.evaluate", "--help")
    assert done.returncode == 0 and "--data-dir" in done.stdout
    assert "common.cli" in done.stderr and "torch" not in done.stderr


def test_a_decompression_bomb_among_the_samples(command_line, tmp_path, monkeypatch):
    """A small file that says it has more pixels than any memory: refused as one that cannot be read, as everywhere."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    code, _, err = command_line("common/evaluate/program.py", tmp_path, "--data", "digits")
    assert code == 2 and "Traceback" not in err and "a.png" in err
