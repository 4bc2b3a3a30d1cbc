"""Datasets: what is read, what is refused, how images are drawn and augmented. No network."""

import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.overrides import TorchFunctionMode

from vixlib import data, download, paths
from vixlib.errors import BadInput, DataError

CLASSES = data.SOURCES["cifar10"].classes
BATCHES, ARCHIVE = data.SOURCES["cifar10"].forms[0].rstrip("/"), data.SOURCES["cifar10"].forms[1]
KEPT, TINY_ARCHIVE, TINY = (form.rstrip("/") for form in data.SOURCES["tiny-imagenet"].forms)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


def change(monkeypatch, name, **fields):
    """Other fields of a dataset's source."""
    monkeypatch.setitem(data.SOURCES, name, data.SOURCES[name]._replace(**fields))


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    """No dataset, mirror or cache of the machine that runs the tests."""
    monkeypatch.delenv("VIXLIB_DATA", raising=False)
    monkeypatch.delenv("VIXLIB_MIRROR", raising=False)
    for name in data.SOURCES:
        change(monkeypatch, name, mirrors=())
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path / "project"))
    data._load.cache_clear()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 in the official layout, its checksums taken for the official ones."""
    from torchvision.datasets import CIFAR10  # here: vixlib makes torchvision importable first

    folder = tmp_path / "copy" / BATCHES
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name, count=6):
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": random.integers(0, 5, count).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
        return [name, md5(folder / name)]

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", 5)])
    meta = folder / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    official = {"filename": meta.name, "key": "label_names", "md5": md5(meta)}
    monkeypatch.setattr(CIFAR10, "meta", official)
    return folder


@pytest.fixture
def archive(cifar, tmp_path, monkeypatch):
    served = tmp_path / "served" / ARCHIVE
    served.parent.mkdir()
    with tarfile.open(served, "w:gz") as tar:
        tar.add(cifar, BATCHES)
    change(monkeypatch, "cifar10", md5=md5(served), size=served.stat().st_size)
    return served


def check(dataset, folder):
    """The dataset holds what the pickles in the folder hold."""
    for part, names in {
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
    }.items():
        raw = [pickle.loads((folder / name).read_bytes()) for name in names]
        pixels = np.concatenate([batch["data"] for batch in raw]).reshape(-1, 3, 32, 32)
        assert np.array_equal(getattr(dataset, f"{part}_images").numpy(), pixels)
        labels = [label for batch in raw for label in batch["labels"]]
        assert getattr(dataset, f"{part}_labels").tolist() == labels
    assert dataset.classes == CLASSES
    assert dataset.name == "cifar10"


class TestDigits:
    def test_contents(self):
        digits = data.load("digits")
        assert digits.train_images.shape == (1437, 3, 8, 8)
        assert digits.test_images.shape == (360, 3, 8, 8)
        assert digits.train_images.dtype == digits.test_images.dtype == torch.uint8
        assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
        assert digits.classes == tuple("0123456789")
        values = torch.cat([digits.train_images, digits.test_images])
        assert set(values.unique().tolist()) == {round(i * 255 / 16) for i in range(17)}
        assert (values == values[:, :1]).all()  # grey

    def test_every_class_has_its_share(self):
        digits = data.load("digits")
        test, train = digits.test_labels.bincount(), digits.train_labels.bincount()
        assert ((test - (test + train) * 360 / 1797).abs() < 1).all()

    def test_loaded_once(self):
        assert data.load("digits") is data.load("digits")

    def test_size(self):
        digits, large = data.load("digits"), data.load("digits", size=16)
        assert large.train_images.shape == (1437, 3, 16, 16)
        assert large.train_images.dtype == torch.uint8
        assert large.train_labels.equal(digits.train_labels)
        assert data.load("digits", size=8).train_images.equal(digits.train_images)
        # corners stay; each pixel between two is three quarters of one, a quarter of the other
        assert large.train_images[..., 0, 0].equal(digits.train_images[..., 0, 0])
        row = digits.train_images[:, 0, 0].float()
        between = 0.75 * row[:, :-1] + 0.25 * row[:, 1:]
        assert large.train_images[:, 0, 0, 1:-1:2].equal(between.round().byte())

    def test_smaller_size_refused(self):
        with pytest.raises(BadInput, match="size: expected at least 8, got 4"):
            data.load("digits", size=4)

    def test_unknown_name(self):
        with pytest.raises(BadInput, match=r"did you mean cifar10.*legal: digits, cifar10"):
            data.load("cifar-10")


class TestCopy:
    def test_folder_that_holds_it(self, cifar):
        check(data.load("cifar10", folder=cifar.parent), cifar)

    def test_folder_itself_whatever_its_name(self, cifar):
        renamed = cifar.rename(cifar.with_name("mine"))
        check(data.load("cifar10", folder=str(renamed)), renamed)

    def test_folder_with_the_archive(self, archive, cifar):
        check(data.load("cifar10", folder=archive.parent), cifar)
        assert sorted(os.listdir(archive.parent)) == [BATCHES, ARCHIVE]

    def test_environment(self, cifar, monkeypatch):
        monkeypatch.setenv("VIXLIB_DATA", str(cifar.parent))
        check(data.load("cifar10"), cifar)

    def test_folder_goes_before_environment(self, cifar, monkeypatch):
        monkeypatch.setenv("VIXLIB_DATA", "/nowhere")
        check(data.load("cifar10", folder=cifar.parent), cifar)

    def test_project_folder(self, cifar):
        paths.root().mkdir()
        cifar.parent.rename(paths.root() / "data")
        check(data.load("cifar10"), paths.root() / "data" / BATCHES)

    @pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
    def test_wrong_checksum_refused_before_unpickling(self, cifar, tmp_path, file):
        flag = tmp_path / "flag"

        class Payload:
            def __reduce__(self):
                return Path.touch, (flag,)

        (cifar / file).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(
            DataError, match=rf"{file} is not .* expected md5 \w{{32}}, got \w{{32}}"
        ):
            data.load("cifar10", folder=cifar)
        assert not flag.exists()
        pickle.loads((cifar / file).read_bytes())
        assert flag.exists()  # it would have run

    def test_missing_file_named(self, cifar):
        (cifar / "data_batch_2").unlink()
        with pytest.raises(DataError, match="data_batch_2"):
            data.load("cifar10", folder=cifar)

    def test_unreadable_file_named(self, cifar):
        (cifar / "data_batch_2").unlink()
        (cifar / "data_batch_2").mkdir()
        with pytest.raises(DataError, match="data_batch_2"):
            data.load("cifar10", folder=cifar)

    @pytest.mark.parametrize("kind", ["absent", "empty", "file"])
    def test_given_folder_without_it_is_no_download(self, archive, tmp_path, monkeypatch, kind):
        change(monkeypatch, "cifar10", mirrors=(archive.as_uri(),))
        folder = tmp_path / kind
        if kind != "absent":
            folder.mkdir() if kind == "empty" else folder.touch()
        expected = f"no CIFAR-10 in {folder}: looked for {BATCHES}/.*{ARCHIVE}"
        with pytest.raises(DataError, match=expected):
            data.load("cifar10", folder=folder)
        monkeypatch.setenv("VIXLIB_DATA", str(folder))
        with pytest.raises(DataError, match=expected):
            data.load("cifar10")
        assert not paths.root().exists()

    def test_wrong_archive_refused(self, archive):
        whole = archive.read_bytes()
        archive.write_bytes(whole[:-1])
        told = f"{ARCHIVE} is truncated: {len(whole) - 1} of {len(whole)} bytes"
        with pytest.raises(DataError, match=told):
            data.load("cifar10", folder=archive.parent)
        archive.write_bytes(whole[:-1] + b"?")
        with pytest.raises(DataError, match=f"{ARCHIVE} is not .* expected md5"):
            data.load("cifar10", folder=archive.parent)
        assert os.listdir(archive.parent) == [ARCHIVE]


class TestMirrors:
    @pytest.fixture
    def web(self, archive):
        """Serves the archive's folder from this machine: (address, paths asked for)."""
        asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        handler = partial(Handler, directory=str(archive.parent))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", asked
            server.shutdown()

    def test_tried_in_order(self, web, archive, cifar, monkeypatch):
        url, asked = web
        (archive.parent / "bad").write_bytes(b"a login page")
        (archive.parent / "cut").write_bytes(archive.read_bytes()[:-100])
        names = ["absent", "bad", "cut", ARCHIVE, "never"]
        mirrors = tuple(f"{url}/{name}" for name in names)
        change(monkeypatch, "cifar10", mirrors=mirrors)
        check(data.load("cifar10"), cifar)
        tried = list(dict.fromkeys(asked))  # an error is logged twice
        assert [p for p in tried if p.startswith("/")] == [f"/{name}" for name in names[:-1]]
        assert os.listdir(paths.root() / "data") == [BATCHES]

    def test_second_process_reads_the_first_one_s(self, web, cifar, monkeypatch):
        url, asked = web
        change(monkeypatch, "cifar10", mirrors=(f"{url}/{ARCHIVE}",))
        data.load("cifar10")
        data._load.cache_clear()
        check(data.load("cifar10"), cifar)
        assert asked == [f"/{ARCHIVE}"]

    def test_two_processes_at_once(self, archive, cifar, monkeypatch):
        """The other one finishes first: its copy is used and ours vanishes."""
        receive = download._receive

        def slow(url, *how):
            receive(url, *how)
            shutil.copytree(cifar, paths.root() / "data" / BATCHES)

        change(monkeypatch, "cifar10", mirrors=(archive.as_uri(),))
        monkeypatch.setattr(download, "_receive", slow)
        check(data.load("cifar10"), cifar)
        assert os.listdir(paths.root() / "data") == [BATCHES]

    def test_own_mirror_first(self, archive, cifar, monkeypatch):
        monkeypatch.setenv("VIXLIB_MIRROR", archive.as_uri())
        change(monkeypatch, "cifar10", mirrors=("http://127.0.0.1:9/never",))
        check(data.load("cifar10"), cifar)

    def test_all_fail(self, web, archive, monkeypatch):
        url, _ = web
        (archive.parent / "bad").write_bytes(b"a login page")
        monkeypatch.setattr(download, "TIMEOUT", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            dead = f"http://127.0.0.1:{silent.getsockname()[1]}/dead"
            mirrors = (f"{url}/absent", f"{url}/bad", dead)
            change(monkeypatch, "cifar10", mirrors=mirrors)
            monkeypatch.setenv("VIXLIB_MIRROR", "not a url")
            with pytest.raises(DataError) as caught:
                data.load("cifar10")
        first, reasons = str(caught.value).split(" (", 1)
        assert first.endswith("--data DIR")
        for line, mirror, reason in zip(
            reasons.split("; "),
            ("not a url", *mirrors),
            ("unknown url type", "404", "another file", "timed out"),
            strict=True,
        ):
            assert line.startswith(f"{mirror}: ")
            assert reason in line
        assert not os.listdir(paths.root() / "data")
        assert socket.getdefaulttimeout() is None

    def test_no_download_when_told_so(self, archive, monkeypatch):
        change(monkeypatch, "cifar10", mirrors=(archive.as_uri(),))
        with pytest.raises(DataError, match="--data DIR"):
            data.load("cifar10", download=False)
        assert not paths.root().exists()


WNIDS = ("n03", "n01", "n02")  # as wnids.txt may list them: not sorted


def jpeg(seed, grey=False, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image, stream = Image.fromarray(pixels), io.BytesIO()
    (image.convert("L") if grey else image).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Tiny ImageNet in the official layout, unpacked: three classes, 2 + 1 images of each."""
    change(monkeypatch, "tiny-imagenet", classes=("", "", ""))
    monkeypatch.setattr(data, "TRAIN_EACH", 2)
    monkeypatch.setattr(data, "TEST_EACH", 1)
    annotated = {"val_2.JPEG": "n02", "val_0.JPEG": "n03", "val_1.JPEG": "n02"}
    words = {"n00": "entity", "n01": "goldfish, Carassius", "n02": "bee", "n03": "lion, king"}
    content = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(),
        "words.txt": "".join(f"{wnid}\t{names}\n" for wnid, names in words.items()).encode(),
        "val/val_annotations.txt": "".join(
            f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in annotated.items()
        ).encode(),
        "test/images/test_0.JPEG": b"never read",
    }
    for i, wnid in enumerate(WNIDS):
        content[f"train/{wnid}/{wnid}_boxes.txt"] = b"never read"
        content[f"val/images/val_{i}.JPEG"] = jpeg(100 + i)
        for j in range(2):
            content[f"train/{wnid}/images/{wnid}_{j}.JPEG"] = jpeg(10 * i + j, grey=i == j == 1)
    for name, written in content.items():
        file = tmp_path / "unpacked" / TINY / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(written)
    return tmp_path / "unpacked" / TINY


@pytest.fixture
def packed(official, tmp_path, monkeypatch):
    """Its zip, in a folder of its own."""
    archive = tmp_path / "packed" / TINY_ARCHIVE
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(official.rglob("*")):  # folders too, as in the official one
            file.write(path, path.relative_to(official.parent))
    change(monkeypatch, "tiny-imagenet", md5=md5(archive), size=archive.stat().st_size)
    return archive


def check_tiny(tiny, official):
    """The dataset holds what the official files hold."""
    train = [f"train/{c}/images/{c}_{i}.JPEG" for c in sorted(WNIDS) for i in range(2)]
    test = [f"val/images/val_{i}.JPEG" for i in (2, 0, 1)]
    for images, names in ((tiny.train_images, train), (tiny.test_images, test)):
        pixels = [np.array(Image.open(official / name).convert("RGB")) for name in names]
        assert images.permute(0, 2, 3, 1).numpy().tolist() == np.stack(pixels).tolist()
        assert images.dtype == torch.uint8
        assert images.shape == (len(names), 3, 64, 64)
    assert tiny.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert tiny.test_labels.tolist() == [1, 2, 1]
    assert tiny.train_labels.dtype == tiny.test_labels.dtype == torch.int64
    assert tiny.classes == ("goldfish", "bee", "lion")
    assert tiny.name == "tiny-imagenet"


class TestTinyImageNet:
    def test_official_numbers(self):
        assert len(data.SOURCES["tiny-imagenet"].classes) == 200
        assert (data.TRAIN_EACH, data.TEST_EACH) == (500, 50)

    def test_from_the_zip(self, packed, official):
        tiny = data.load("tiny-imagenet", folder=packed.parent)
        check_tiny(tiny, official)
        grey = tiny.train_images[1]  # n01_1
        assert (grey == grey[:1]).all()
        assert not (tiny.train_images[0] == tiny.train_images[0, :1]).all()
        assert sorted(os.listdir(packed.parent)) == [KEPT, TINY_ARCHIVE]
        assert (packed.parent / KEPT / "words.txt").stat().st_mode & 0o777 == 0o644

    def test_from_the_folder(self, official, monkeypatch):
        monkeypatch.setenv("VIXLIB_DATA", str(official.parent))
        check_tiny(data.load("tiny-imagenet"), official)
        assert os.listdir(official.parent) == [TINY]

    def test_zip_goes_before_a_folder_unpacked_in_part(self, packed, official):
        shutil.copytree(official / "train", packed.parent / TINY / "train")
        check_tiny(data.load("tiny-imagenet", folder=packed.parent), official)

    def test_unpacked_once(self, packed, official):
        data.load("tiny-imagenet", folder=packed.parent)
        packed.unlink()
        data._load.cache_clear()
        check_tiny(data.load("tiny-imagenet", folder=packed.parent, download=False), official)

    def test_size_and_subset(self, packed):
        tiny = data.load("tiny-imagenet", folder=packed.parent, size=66)
        assert tiny.train_images.shape == (6, 3, 66, 66)
        assert data.subset(tiny, train=3).train_labels.tolist() == [0, 1, 2]
        with pytest.raises(BadInput, match="size: expected at least 64, got 32"):
            data.load("tiny-imagenet", folder=packed.parent, size=32)

    def test_downloaded(self, packed, official, monkeypatch):
        cut = packed.with_name("cut")
        cut.write_bytes(packed.read_bytes()[:-1])
        mirrors = (cut.as_uri(), packed.as_uri())
        change(monkeypatch, "tiny-imagenet", mirrors=mirrors)
        check_tiny(data.load("tiny-imagenet"), official)
        assert os.listdir(paths.root() / "data") == [KEPT]

    def test_absent(self, tmp_path):
        looked = f"looked for {KEPT}/, {TINY_ARCHIVE}, {TINY}/"
        with pytest.raises(DataError, match=f"no Tiny ImageNet in {tmp_path}: {looked}"):
            data.load("tiny-imagenet", folder=tmp_path)
        with pytest.raises(DataError, match=r"Tiny ImageNet could not be downloaded.*--data DIR"):
            data.load("tiny-imagenet")

    def test_broken_zip(self, packed):
        packed.write_bytes(packed.read_bytes()[:-1])
        with pytest.raises(DataError, match=f"{TINY_ARCHIVE} is truncated: "):
            data.load("tiny-imagenet", folder=packed.parent)
        assert os.listdir(packed.parent) == [TINY_ARCHIVE]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("wnids.txt", b"n01\nn02\n", "expected 3 classes in wnids.txt, got 2"),
            ("words.txt", b"n01\tgoldfish\nn02", "expected 3 of them in words.txt, got 2"),
            ("words.txt", None, "cannot read .*words.txt"),
            ("val/val_annotations.txt", None, "cannot read .*val_annotations.txt"),
            ("val/val_annotations.txt", b"val_0.JPEG\tn01\n\xff", "expected 3 images of .* got 1"),
            ("val/val_annotations.txt", b"a\tn01\nb\tn02\nc\tn04", "of them in val/.* got 2"),
            ("train/n02/images/n02_1.JPEG", None, "cannot read the image .*n02_1.JPEG"),
            ("train/n02/images/n02_1.JPEG", b"no image", "cannot read the image .*n02_1.JPEG"),
            (
                "val/images/val_1.JPEG",
                jpeg(0)[:-999],
                "cannot read the image .*val_1.JPEG.*truncated",
            ),
            (
                "val/images/val_1.JPEG",
                jpeg(0, size=(32, 64)),
                r"val_1.JPEG: expected \(64, 64\), .*got \(32, 64\)",
            ),
        ],
    )
    def test_incomplete_folder(self, official, name, content, message):
        (official / name).unlink() if content is None else (official / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            data.load("tiny-imagenet", folder=official.parent)
        assert str(official) in str(caught.value)
        assert os.listdir(official.parent) == [TINY]

    def test_file_missing_in_the_zip(self, packed, monkeypatch):
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr(f"{TINY}/wnids.txt", "")
        change(monkeypatch, "tiny-imagenet", md5=md5(packed), size=packed.stat().st_size)
        with pytest.raises(DataError, match=f"{packed.parent}/{KEPT}/words.txt"):
            data.load("tiny-imagenet", folder=packed.parent)

    def test_full_disk(self, packed, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "unpack_archive", full)
        with pytest.raises(DataError, match=r"cannot read or unpack .*No space left"):
            data.load("tiny-imagenet", folder=packed.parent)
        assert os.listdir(packed.parent) == [TINY_ARCHIVE]

    @pytest.mark.parametrize("file", ["words.txt", "train/n01/images/n01_1.JPEG"])
    def test_damaged_after_it_was_unpacked(self, packed, file):
        data.load("tiny-imagenet", folder=packed.parent)
        damaged = packed.parent / KEPT / file
        damaged.write_bytes(b"")
        data._load.cache_clear()
        with pytest.raises(DataError, match=rf"incomplete: .* got 0|read the image {damaged}"):
            data.load("tiny-imagenet", folder=packed.parent)


few_examples = settings(max_examples=20, deadline=None, derandomize=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestImages:
    images = torch.randint(256, (64, 3, 8, 10), dtype=torch.uint8, generator=seeded(1))

    def test_normalise(self):
        out = data.normalise(torch.tensor([0, 51, 255], dtype=torch.uint8))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, torch.tensor([-1.0, -0.6, 1.0]))

    @pytest.mark.parametrize("padding", [0, 1, 4])
    def test_augment_is_crop_and_flip(self, padding):
        """One image at a time: padded, cropped, then flipped or not."""
        out = data.augment(self.images, seeded(), padding)
        draws = seeded()
        down, right = (
            torch.randint(2 * padding + 1, (64, 1), generator=draws).flatten().tolist()
            for _ in range(2)
        )
        flip = torch.randint(2, (64, 1), generator=draws).flatten().tolist()
        for i, image in enumerate(self.images):
            black = torch.zeros(3, 8 + 2 * padding, 10 + 2 * padding, dtype=torch.uint8)
            black[:, padding : padding + 8, padding : padding + 10] = image
            crop = black[:, down[i] : down[i] + 8, right[i] : right[i] + 10]
            assert out[i].equal(crop.flip(-1) if flip[i] else crop)
        assert out.dtype == torch.uint8
        assert 16 < sum(flip) < 48
        assert {*down} == {*right} == {*range(2 * padding + 1)}

    def test_augment_differs_between_images(self):
        same = self.images[:1].repeat(64, 1, 1, 1)
        assert len(data.augment(same, seeded()).flatten(1).unique(dim=0)) > 32

    def test_generator_decides(self):
        assert data.augment(self.images, seeded()).equal(data.augment(self.images, seeded()))
        assert not data.augment(self.images, seeded()).equal(data.augment(self.images, seeded(1)))
        torch.manual_seed(0)
        first = data.augment(self.images)
        torch.manual_seed(0)
        assert first.equal(data.augment(self.images))

    @few_examples
    @given(
        size=st.tuples(*[st.integers(1, 4), st.integers(1, 3)], *[st.integers(1, 9)] * 2),
        padding=st.integers(0, 5),
        seed=st.integers(0, 99),
    )
    def test_augment_only_shifts_and_mirrors(self, size, padding, seed):
        """Each is one of the windows of its own image in a black frame, or its mirror image."""
        images = torch.randint(1, 256, size, dtype=torch.uint8, generator=seeded(seed))
        h, w = size[2:]
        for image, out in zip(images, data.augment(images, seeded(seed), padding), strict=True):
            framed = np.pad(image.numpy(), [(0, 0), (padding, padding), (padding, padding)])
            windows = [
                framed[:, y : y + h, x : x + w]
                for y in range(2 * padding + 1)
                for x in range(2 * padding + 1)
            ]
            legal = [*windows, *(window[:, :, ::-1] for window in windows)]
            assert any(np.array_equal(out, window) for window in legal)

    @few_examples
    @given(seed=st.integers(0, 2**31))
    def test_without_a_generator_the_global_one_draws(self, seed):
        torch.manual_seed(seed)
        shifted = data.augment(self.images)
        moved_on = torch.get_rng_state()
        assert shifted.equal(data.augment(self.images, seeded(seed)))
        assert torch.get_rng_state().equal(moved_on)  # a generator leaves the global one alone
        assert not shifted.equal(data.augment(self.images))

    def test_a_generator_moves_on(self):
        draws = seeded()
        first, second = data.augment(self.images, draws), data.augment(self.images, draws)
        assert not first.equal(second)

    def test_normalise_is_the_same_in_any_shape(self):
        """Every byte, by the words: 0 to 255 become -1 to 1, evenly."""
        every = torch.arange(256, dtype=torch.uint8)
        wanted = torch.tensor([(2 * byte - 255) / 255 for byte in range(256)])
        for shape in ((256,), (4, 1, 8, 8), (2, 128)):
            out = data.normalise(every.view(shape))
            torch.testing.assert_close(out, wanted.view(shape), rtol=0, atol=1e-7)

    def test_augment_leaves_its_input(self):
        before = self.images.clone()
        data.augment(self.images, seeded())
        assert self.images.equal(before)


class TestSubset:
    @few_examples
    @given(
        classes=st.integers(1, 7),
        each=st.integers(1, 40),
        sizes=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        part=st.sampled_from(["train", "test"]),
    )
    def test_shares_and_nesting_by_a_plain_count(self, classes, each, sizes, part):
        """Of classes of one size, in any order; an image says its number."""
        count = classes * each
        small, large = sorted(1 + int(size * (count - 1)) for size in sizes)
        numbers = torch.arange(count)
        images = torch.stack([numbers // 256, numbers % 256, 0 * numbers], 1).to(torch.uint8)
        labels = torch.randperm(count, generator=seeded(count)) % classes
        split = images[:, :, None, None], labels
        dataset = data.Dataset(*split, *split, tuple("abcdefg"[:classes]), "numbers")
        kept = {}
        for n in (small, large):
            found = data.subset(dataset, **{part: n})
            pixels, own = (getattr(found, f"{part}_{what}") for what in ("images", "labels"))
            kept[n] = (256 * pixels[:, 0, 0, 0].long() + pixels[:, 1, 0, 0]).tolist()
            assert own.tolist() == labels[kept[n]].tolist()
            assert len(set(kept[n])) == len(kept[n]) == n
            assert kept[n] == sorted(kept[n])
            assert {own.tolist().count(c) for c in range(classes)} <= {
                n // classes,
                -(-n // classes),
            }
            other = {"train": "test", "test": "train"}[part]
            assert getattr(found, f"{other}_images") is getattr(dataset, f"{other}_images")
        assert set(kept[small]) <= set(kept[large])

    def test_images_for_testing_are_drawn_as_those_for_training(self):
        digits = data.load("digits")
        twice = {f"test_{what}": getattr(digits, f"train_{what}") for what in ("images", "labels")}
        part = data.subset(data.replace(digits, **twice), 50, 50, seed=3)
        assert part.test_images.equal(part.train_images)
        assert part.test_labels.equal(part.train_labels)

    def test_every_size_is_stratified_and_nested(self):
        digits = data.load("digits")
        order = data._stratified(digits.train_labels)
        assert order.sort().values.equal(torch.arange(1437))
        counts = torch.nn.functional.one_hot(digits.train_labels[order]).cumsum(0)
        share = digits.train_labels.bincount() / 1437
        n = torch.arange(1, 1438)[:, None]
        assert (counts - n * share).abs().max() <= 1.01

    def test_a_rare_class_stays_rare(self):
        labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
        counts = labels[data._stratified(labels)[:20]].bincount()
        assert (counts - torch.tensor([12, 6, 2])).abs().max() <= 1

    def test_fixed(self):
        digits = data.load("digits")
        small = data.subset(digits, train=100, test=50)
        again = data.subset(digits, train=100, test=50)
        assert small.train_images.equal(again.train_images)
        assert small.train_images.shape == (100, 3, 8, 8)
        assert small.test_labels.shape == (50,)
        assert (small.train_labels.bincount() - 10).abs().max() <= 1
        assert (small.name, small.classes) == (digits.name, digits.classes)
        # the same subset on every machine and with every version of torch
        first = data._stratified(torch.arange(10_000) % 10)[:5].tolist()
        assert first == [6044, 2890, 9399, 1917, 7532]

    def test_each_seed_has_a_subset_of_its_own(self):
        digits = data.load("digits")
        first, same, other = (
            data.subset(digits, train=100, seed=s).train_images for s in (4, 4, 5)
        )
        assert first.equal(same)
        assert not first.equal(other)
        assert data.subset(digits, train=100).train_images.equal(
            data.subset(digits, train=100, seed=0).train_images
        )

    def test_images_are_held_out_by_seed_0_unless_told(self):
        digits = data.load("digits")
        usual = data.held_out(digits, 50).test_images
        assert usual.equal(data.held_out(digits, 50, seed=0).test_images)
        assert not usual.equal(data.held_out(digits, 50, seed=1).test_images)

    def test_held_out_images_are_no_longer_trained_on(self):
        """Every image is numbered by its first pixel."""
        labels = torch.arange(60) % 3
        pixels = torch.zeros(60, 3, 2, 2, dtype=torch.uint8)
        pixels[:, 0, 0, 0] = torch.arange(60)
        test = pixels[:6] + 100, labels[:6]
        noise = data.Dataset(pixels, labels, *test, ("a", "b", "c"), "noise")
        part = data.held_out(noise, 15)
        rest, held = (
            images[:, 0, 0, 0].tolist() for images in (part.train_images, part.test_images)
        )
        assert sorted(rest + held) == list(range(60))
        assert (rest, held) == (sorted(rest), sorted(held))
        assert part.test_labels.bincount().tolist() == [5, 5, 5]
        assert part.train_labels.tolist() == [i % 3 for i in rest]
        assert part.test_labels.tolist() == [i % 3 for i in held]
        assert data.held_out(noise, 15).test_images.equal(part.test_images)
        for n in (60, 0):
            with pytest.raises(BadInput, match="images: expected at"):
                data.held_out(noise, n)

    def test_none_keeps_all_and_so_does_n(self):
        digits = data.load("digits")
        part = data.subset(digits, test=10)
        assert part.train_images is digits.train_images
        assert data.subset(digits, train=1437).train_images.equal(digits.train_images)

    @pytest.mark.parametrize("n", [0, -1, 1438])
    def test_out_of_range(self, n):
        with pytest.raises(BadInput, match="train: expected at "):
            data.subset(data.load("digits"), train=n)


class Watch(TorchFunctionMode):
    """Every call of a function of torch: its name, arguments and options."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.calls.append((function.__name__, arguments, options or {}))
        return function(*arguments, **(options or {}))


class TestWhatIsFixed:
    """What records, caches and other processes rely on."""

    def test_digits_are_split_as_ever(self):
        digits = data.load("digits")
        seen = {"train": (digits.train_images, digits.train_labels)}
        seen["test"] = digits.test_images, digits.test_labels
        digests = {
            part: [hashlib.sha256(t.numpy().tobytes()).hexdigest()[:8] for t in pair]
            for part, pair in seen.items()
        }
        assert digests == {"train": ["fc9042e7", "c1281028"], "test": ["39be3993", "4493b205"]}

    def test_a_dataset_does_not_change(self):
        digits = data.load("digits")
        with pytest.raises(dataclasses.FrozenInstanceError):
            digits.name = "letters"

    def test_a_dataset_is_equal_to_itself_alone(self):
        """To look whether all pixels are would cost seconds."""
        digits = data.load("digits")
        assert digits != data.replace(digits)
        assert len({digits, data.replace(digits)}) == 2

    def test_pictures_do_not_change(self):
        pictures = data.Pictures([], torch.arange(0), (8, 8), 0, {})
        with pytest.raises(dataclasses.FrozenInstanceError):
            pictures.size = 9, 9
        assert pictures != data.replace(pictures)

    def test_every_tensor_goes_to_the_device(self):
        with Watch() as watch:
            data.load("digits", device="cpu:0")
        assert [given[1:] for called, given, _ in watch.calls if called == "to"] == [("cpu:0",)] * 4

    def test_a_silent_mirror_is_given_up_within_a_minute(self, archive, monkeypatch):
        asked = []

        def urlopen(request, timeout):
            asked.append(timeout)
            raise OSError("silent")

        monkeypatch.setattr(download, "urlopen", urlopen)
        monkeypatch.setenv("VIXLIB_MIRROR", "http://nowhere.invalid/file")
        with pytest.raises(DataError, match="could not be downloaded"):
            data.load("cifar10")
        assert len(asked) == download.TRIES
        assert all(5 <= seconds <= 60 for seconds in asked)
        assert download.LIMIT < 2 * 3600

    def test_what_is_unpacked_lies_beside_its_place(self, tmp_path):
        """A rename is whole only within one file system."""
        packed = tmp_path / "packed"
        packed.write_bytes(b"all of it")
        fields = {"forms": ("whole", "packed"), "md5": md5(packed), "size": 9}
        source, seen = data.SOURCES["cifar10"]._replace(**fields), []

        def unpack(official, into):
            seen.append((official, into.parent))
            (into / "whole").mkdir()

        assert download.find(source, unpack, tmp_path, False) == tmp_path / "whole"
        assert seen == [(tmp_path / "packed", tmp_path)]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "whole"]

    def test_images_are_augmented_on_their_device(self):
        images = torch.empty(2, 3, 8, 8, dtype=torch.uint8, device="meta")
        with Watch() as watch:
            assert data.augment(images).is_meta
        made = [o["device"] for called, _, o in watch.calls if called in ("randint", "arange")]
        assert made == [images.device] * 5
        with Watch() as watch:
            assert data.augment(images, torch.Generator()).is_meta
        made = [o["device"].type for called, _, o in watch.calls if called == "randint"]
        assert made == ["cpu"] * 3
        moved = [given[1] for called, given, _ in watch.calls if called == "to"]
        assert moved == [images.device] * 3
