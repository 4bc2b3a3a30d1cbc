"""Image files, pictures and tensors as pixels, beside formulas and plain array operations."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from trials_lost import BROKEN, header

from vixlib.errors import BadInput
from vixlib.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 4), dtype=np.uint8)
TURNS = {  # what EXIF says of the stored rows and columns, as operations of arrays
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def hwc(tensor):
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("turn", TURNS)
def test_exif_is_followed_once(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    wanted = TURNS[turn](PIXELS)
    assert np.array_equal(hwc(read_image(tmp_path / "a.png")), wanted)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(hwc(read_image(picture)), wanted)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path, mode):
    share = ALPHA[..., None] / 255
    colours = PIXELS if mode == "RGBA" else PIXELS[..., :1].repeat(3, 2)
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    elif mode == "LA":
        image = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.fromarray(ALPHA)])
    else:  # one colour of the palette is transparent
        image = Image.fromarray(PIXELS[..., 0] // 64)
        image = Image.fromarray(np.array(image), "P")
        image.putpalette([0, 0, 0, 50, 60, 70, 80, 90, 100, 200, 210, 220])
        palette = np.array([[0, 0, 0], [255, 255, 255], [80, 90, 100], [200, 210, 220]])
        colours, share = palette[PIXELS[..., 0] // 64], 1
    options = {"transparency": 1} if mode == "P" else {}
    image.save(tmp_path / "a.png", **options)
    wanted = colours * share + 255 * (1 - share)
    assert np.abs(hwc(read_image(tmp_path / "a.png")) - wanted).max() <= 1


def test_grey_and_cmyk(tmp_path):
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(hwc(read_image(tmp_path / "grey.png")), grey[..., None].repeat(3, 2))
    inks = np.dstack([PIXELS, ALPHA]).astype(float)
    Image.fromarray(inks.astype(np.uint8), "CMYK").save(tmp_path / "inks.tif")
    wanted = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(hwc(read_image(tmp_path / "inks.tif")) - wanted).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path, suffix):
    deep = np.linspace(0, 65535, 24).round().astype(np.uint16).reshape(6, 4)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    wanted = np.round(deep / 65535 * 255)[..., None].repeat(3, 2)
    assert np.array_equal(hwc(read_image(tmp_path / f"a.{suffix}")), wanted)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_colours_of_sixteen_bits(tmp_path, kind, channels):
    """A PNG by its specification: PIL writes none."""
    deep = np.random.default_rng(2).integers(0, 65536, (6, 4, channels))

    def chunk(name, content):
        ends = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(name + content))
        return ends[0] + name + content + ends[1]

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 6, 16, kind, 0, 0, 0))
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    parts = b"\x89PNG\r\n\x1a\n", head, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"".join(parts))
    share = deep[..., 3:] / 65535 if channels == 4 else 1
    wanted = deep[..., :3] / 257 * share + 255 * (1 - share)
    assert np.abs(hwc(read_image(tmp_path / "a.png")) - wanted).max() < 2


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (60, 60), (8, 12)])
def test_the_largest_middle_window_is_scaled(height, width):
    """Cut, then antialiased by torch: another implementation."""
    whole = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    whole = F.avg_pool2d(whole, 5, 1, 2).mul(255).round().byte()
    size, scale = (10, 20), min(height / 10, width / 20)
    high, wide = round(10 * scale), round(20 * scale)
    top, left = (height - high) // 2, (width - wide) // 2
    window = whole[:, top : top + high, left : left + wide].float()
    wanted = F.interpolate(window[None], size, mode="bilinear", antialias=True)[0]
    for image in (whole, Image.fromarray(whole.permute(1, 2, 0).numpy())):
        got = read_image(image, size)
        assert got.shape == (3, 10, 20)
        inner = (got.float() - wanted)[:, 2:-2, 2:-2]  # at its rim ours sees beyond the window
        assert inner.abs().max() <= 1.01
    assert read_image(whole, (height, width)).equal(whole)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (30000, 30000)])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(header(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match=rf"a\.png: .*64,000,000 .*got {width} x {height}"):
            read_image(tmp_path / "a.png")


def test_the_bound_may_be_raised(tmp_path, monkeypatch):
    """Also beyond PIL's own, which stays what it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"at most 23 pixels \(most_pixels\), got 4 x 6"):
        read_image(tmp_path / "a.png", most_pixels=23)
    assert read_image(tmp_path / "a.png", most_pixels=24).shape == (3, 6, 4)
    assert Image.MAX_IMAGE_PIXELS == 5


def test_only_plain_files_of_the_folder_are_opened(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out.png"
    inside.mkdir()
    Image.fromarray(PIXELS).save(outside)
    Image.fromarray(PIXELS).save(inside / "a.png")
    (inside / "near.png").symlink_to(inside / "a.png")
    (inside / "far.png").symlink_to(outside)
    os.mkfifo(inside / "pipe.png")
    assert read_image(inside / "near.png", within=inside).shape == (3, 6, 4)
    assert read_image(inside / "far.png").shape == (3, 6, 4)
    with pytest.raises(BadInput, match=r"far\.png: expected a file in .*, got a link to .*out"):
        read_image(inside / "far.png", within=inside)
    for name in (inside / "pipe.png", "/dev/zero", inside):
        with pytest.raises(BadInput, match=f"image {name}: expected a plain file"):
            read_image(name)


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "png", "webp"):
        file = tmp_path / f"a.{suffix}"
        frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(file)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_in_a_line(tmp_path, what):
    (tmp_path / "a.png").write_bytes(BROKEN[what])
    with pytest.raises(BadInput, match=rf"cannot read the image {tmp_path}/a\.png: .+") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_tensors():
    grey = torch.arange(12, dtype=torch.uint8).view(3, 4)
    for image in (grey, grey[None], grey.expand(3, -1, -1), grey.double() / 255):
        assert read_image(image).equal(grey.expand(3, -1, -1))
    for image, message in {
        torch.full((3, 4, 4), float("nan")): r"floats from 0 to 1, got torch.float32 from nan",
        torch.full((3, 4, 4), 200.0): r"got torch.float32 from 200 to 200",
        torch.full((3, 4, 4), -1.0): r"from -1 to -1",
        torch.ones(3, 4, 4, dtype=torch.int64): r"got torch.int64",
        torch.ones(2, 4, 4): r"expected \(1 or 3, height, width\), got \(2, 4, 4\)",
        torch.ones(3, 0, 4): r"got \(3, 0, 4\)",
        torch.ones(1, 3, 4, 4): r"got \(1, 3, 4, 4\)",
    }.items():
        with pytest.raises(BadInput, match=message):
            read_image(image)
    with pytest.raises(BadInput, match=r"image: expected str or Path or .*, got array"):
        read_image(np.zeros((4, 4, 3)))
