"""Images and masks as one meets them: the right pixels, or one line that names the file."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from ltcam import data as datasets
from ltcam.engine.config import Config
from tests.faults.conftest import contents, evaluate

NAME = "2007_000009"  # of the part `val`, 60 x 45
CONFIGS = [Config("gradcam", "S1-S5", 20.0)]


@pytest.fixture
def pair(trained, voc, tmp_path):
    """The image and the mask, of other data than those that the model was trained on."""
    folder = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    return folder / "JPEGImages" / f"{NAME}.jpg", folder / "SegmentationClass" / f"{NAME}.png"


@pytest.fixture
def pixels():
    """(45, 60, 3): smooth, so that JPEG keeps it."""
    y, x = np.mgrid[:45, :60]
    return np.stack([4 * x, 5 * y, 255 - 4 * x], axis=-1).astype(np.uint8)


def index():
    return [entry.name for entry in datasets.load("voc2012", "val").entries].index(NAME)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(array, kind="PNG"):
    return lambda path: Image.fromarray(array).save(path, kind)


BAD = {
    "an image that is cut off": (0, cut, r"JPEGImages/2007_000009.jpg cannot be read as an image"),
    "an image of zero bytes": (0, lambda p: p.write_bytes(b""), r"JPEGImages/2007_000009.jpg cannot be read as an image"),
    "an image that is text": (0, lambda p: p.write_text("<html>"), r"JPEGImages/2007_000009.jpg cannot be read as an image"),
    "an image that is not there": (0, lambda p: p.unlink(), r"JPEGImages/2007_000009.jpg (cannot be read|is missing)"),
    "an image of real numbers": (0, save(np.zeros((45, 60), np.float32), "TIFF"), r"000009.jpg has PIL's mode F: expected"),
    "a mask that is cut off": (1, cut, r"SegmentationClass/2007_000009.png cannot be read as an image"),
    "a mask of zero bytes": (1, lambda p: p.write_bytes(b""), r"SegmentationClass/2007_000009.png cannot be read as an image"),
    "a mask of another size": (1, save(np.full((60, 45), 8, np.uint8)), r"2007_000009: the mask is 60 x 45, the image 45 x 60"),
    "a mask with unknown labels": (1, save(np.full((45, 60), 99, np.uint8)), r"000009.png holds the labels \[99\]: expected"),
    "a mask in colours": (1, save(np.zeros((45, 60, 3), np.uint8)), r"000009.png has PIL's mode RGB: expected one label"),
    "a mask of 16 bits": (1, save(np.full((45, 60), 300, np.uint16)), r"000009.png has PIL's mode I;16: expected one label"),
    "a list of zero bytes": (2, lambda p: p.write_text(""), r"part 'val' of voc2012 is not in "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_right_is_told_in_one_line(name, trained, pair, fault, tmp_path):
    """By whatever looks at it; nothing is left of the part."""
    number, damage, expected = BAD[name]
    out = tmp_path / "run"
    damage((*pair, pair[0].parents[1] / "ImageSets" / "Segmentation" / "val.txt")[number])
    said = fault(name).attempt(lambda: evaluate(trained, "val", CONFIGS, out), lambda: not contents(out))
    assert re.search(expected, said) and "\n" not in said


def test_an_image_beyond_all_measure(trained, pair, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as if its header said hundreds of millions
    said = fault("an image of more pixels than are safe").attempt(lambda: evaluate(trained, "val", CONFIGS, tmp_path / "run"))
    assert "cannot be read as an image (Image size (2700 pixels) exceeds limit of 2000 pixels" in said


def turned(pixels, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, "PNG", exif=exif)


def wide(pixels, path):
    image = Image.fromarray(pixels).resize((20000, 30))
    image.save(path, "PNG")
    Image.fromarray(np.full((30, 20000), 12, np.uint8)).save(path.parents[1] / "SegmentationClass" / f"{NAME}.png")
    return np.asarray(image)


def single(pixels, path):
    Image.fromarray(pixels[:1, :1]).save(path, "PNG")
    Image.fromarray(np.full((1, 1), 12, np.uint8)).save(path.parents[1] / "SegmentationClass" / f"{NAME}.png")
    return pixels[:1, :1]


def grey(pixels, path, dtype=np.uint8, times=1):
    Image.fromarray(pixels[..., 0].astype(dtype) * times).save(path, "PNG")
    return pixels[..., :1].repeat(3, -1)


def alpha(pixels, path):
    Image.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=-1)).save(path, "PNG")


def clear(pixels, path):
    palette = Image.fromarray(pixels).quantize(64)
    palette.save(path, "PNG", transparency=3)
    return np.asarray(palette.convert("RGB"))


GOOD = {
    "an image of 16 bits": lambda pixels, path: grey(pixels, path, np.uint16, 257),
    "a grey image": grey,
    "a CMYK image": lambda pixels, path: Image.fromarray(pixels).convert("CMYK").save(path, "JPEG", quality=100),
    "an image with alpha": alpha,
    "a palette with a transparent colour": clear,
    "an image with an EXIF rotation, beside its mask": turned,
    "an image of 1 x 1": single,
    "an image 20,000 pixels wide": wide,
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_right_is_right(name, trained, pair, pixels, fault, tmp_path):
    """The pixels as stored, 8 bits of three colours, and the same counts as of a plain file that holds them."""
    made = GOOD[name](pixels, pair[0])
    expected = torch.from_numpy((pixels if made is None else made).astype(int)).permute(2, 0, 1)
    counts = []

    def run():
        counts.append(evaluate(trained, "val", CONFIGS, tmp_path / f"run{len(counts)}"))

    def right():
        image = datasets.load("voc2012", "val")[index()].image
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pair[0], "PNG")
        run()
        return (
            image.shape == expected.shape and (image.int() - expected).abs().max() <= tolerance and counts[0].equals(counts[1])
        )

    tolerance = 8 if "CMYK" in name else 0
    seen = fault(name)
    assert not seen.attempt(run, right) and not seen.lost


def test_a_rotated_photograph_is_explained_upright(fault, tiny, pixels, tmp_path):
    from ltcam.show import picture

    turned(pixels, tmp_path / "photo.png")
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    shown = []

    def explain():
        for name in ("photo", "upright"):
            shown.append(picture.maps(tmp_path / f"{name}.png", (tiny, "abcd", (64, 64)), "1", Config("gradcam", "all", 20.0)))

    seen = fault("a photograph with an EXIF rotation, in `ltcam explain`")
    same = lambda: torch.equal(shown[0][0], shown[1][0]) and torch.equal(*(list(s[2].values())[-1] for s in shown))  # noqa: E731
    assert not seen.attempt(explain, same) and shown[0][0].shape == (3, 60, 45)
