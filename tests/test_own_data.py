"""Datasets of somebody's own: folders, torch's Datasets, tensors, files of torchvision's sets."""

import hashlib
import pickle
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import CLASSES, folder
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from vixlib import build, data
from vixlib.data import Pictures, dataset
from vixlib.errors import BadInput, DataError
from vixlib.images import read_image
from vixlib.train import evaluate, fit, judged

PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("photos") / "photos", 20)


def same(one, other):
    return all(getattr(one, part).equal(getattr(other, part)) for part in PARTS)


def by_hand(root, size=(16, 16)):
    """Every image of a folder of classes with its label, by name."""
    pairs = [(label, path) for label, c in enumerate(CLASSES) for path in (root / c).iterdir()]
    return [(read_image(path, size), label) for label, path in sorted(pairs)]


def rows(images, labels):
    pairs = zip(images, labels.tolist(), strict=True)
    return sorted((label, image.numpy().tobytes()) for image, label in pairs)


def test_a_folder_is_split_by_class(photos):
    found = dataset(photos, size=16)
    assert (found.classes, found.name, found.skipped) == (CLASSES, "photos", ())
    assert found.train_labels.bincount().tolist() == [16] * 3
    assert found.test_labels.bincount().tolist() == [4] * 3
    every = torch.cat([found.train_images, found.test_images])
    labels = torch.cat([found.train_labels, found.test_labels])
    pixels, numbers = zip(*by_hand(photos), strict=True)
    assert rows(every, labels) == rows(pixels, torch.tensor(numbers))
    assert same(found, dataset(str(photos), size=(16, 16)))
    other = dataset(photos, size=16, seed=1)
    assert not found.test_images.equal(other.test_images)
    assert len(dataset(photos, size=16, test_share=0.5).test_labels) == 30


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_folder_in_two_parts_is_kept_so(tmp_path, name):
    train, test = folder(tmp_path / "train", 4), folder(tmp_path / name, 2, seed=1)
    (train / ".hidden").mkdir()
    (train / CLASSES[0] / ".DS_Store").write_bytes(b"?")
    found = dataset(tmp_path, size=16)
    assert [len(found.train_labels), len(found.test_labels)] == [12, 6]
    pixels, numbers = zip(*by_hand(test), strict=True)
    assert found.test_images.equal(torch.stack(pixels))
    assert found.test_labels.tolist() == [*numbers]


def test_of_both_val_is_for_testing(tmp_path):
    """What a folder calls test is often without labels."""
    for seed, name in enumerate(("train", "test", "val")):
        folder(tmp_path / name, 2, seed=seed)
    found, wanted = dataset(tmp_path, size=16), by_hand(tmp_path / "val")
    assert found.test_images.equal(torch.stack([pixels for pixels, _ in wanted]))
    assert len(found.train_labels) == 6


def test_a_class_without_an_image_to_train_on_is_refused(tmp_path):
    for name in ("train", "val"):
        folder(tmp_path / name, 1)
    shutil.rmtree(tmp_path / "train" / "triangle")
    with pytest.raises(DataError, match="no image to train on of class triangle"):
        dataset(tmp_path, size=16)


@pytest.mark.parametrize("labels", [4, 6])
def test_labels_to_test_on_are_as_many_as_images(labels):
    pixels, numbers = torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 3
    with pytest.raises(BadInput, match=rf"got \[20, 20, 5, {labels}\]"):
        dataset((pixels, numbers, pixels[:5], numbers[:labels]))


def test_a_number_to_test_on_alone_is_refused():
    pixels, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 3
    with pytest.raises(DataError, match="no image to train on of class 3"):
        dataset((pixels, labels, pixels, labels + 1))


@pytest.mark.parametrize(("count", "tested"), [(2, 1), (8, 2), (11, 2), (13, 3)])
def test_a_share_is_rounded(count, tested):
    assert len(dataset(Coloured(count), size=8, test_share=0.2).test_labels) == tested


def test_a_warning_names_the_line_that_asked():
    with pytest.warns(UserWarning, match="skipped 1 that") as caught:
        dataset(Coloured(100, broken=[7]), size=8)
    assert [each.filename for each in caught] == [__file__]


def test_what_cannot_be_read_is_listed_up_to_a_hundredth(tmp_path):
    root = folder(tmp_path / "photos", 40)
    (root / "circle" / "broken.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"photos: skipped 1 that cannot be read: .*broken\.jpg"):
        found = dataset(root, size=16)
    assert len(found.train_labels) + len(found.test_labels) == 120
    assert len(found.skipped) == 1
    assert "broken.jpg" in found.skipped[0]
    outside = tmp_path / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    (root / "square" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"of 122 images 2 that .*broken\.jpg.*link\.png: .*a link"):
        dataset(root, size=16)


def test_a_folder_without_classes(tmp_path):
    for name in ("", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(DataError, match="a folder for each of two classes or more, got"):
            dataset(tmp_path, size=16)
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError, match="no images in"):
        dataset(tmp_path, size=16)
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="no image to train on of class two"):
        dataset(tmp_path, size=16)
    with pytest.raises(DataError, match=r"no folder of images in .*nowhere"):
        dataset(tmp_path / "nowhere", size=16)


def test_torchvision_s_folder_is_read_as_ours(photos, tmp_path):
    from torchvision.datasets import ImageFolder

    assert same(dataset(ImageFolder(str(photos)), size=16), dataset(photos, size=16))
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(4):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        picture = Image.new("RGB", (8, 8))
        picture.putpixel((0, 0), (255, 0, 0))
        picture.save(tmp_path / f"c{i % 2}" / f"{i}.png", exif=exif)
    turned = dataset(ImageFolder(tmp_path), size=8).train_images
    assert (turned[:, 0, 0, 7] == 255).all()  # turned, which its own loader does not do
    assert not turned[:, 0, 0, 0].any()


def test_a_link_out_of_torchvision_s_folder_is_refused(tmp_path):
    from torchvision.datasets import ImageFolder

    root = folder(tmp_path / "photos", 2)
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    (root / "square" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"of 7 images 1 that .*link\.png: .*a link to"):
        dataset(ImageFolder(str(root)), size=16)


class Coloured(torch.utils.data.Dataset):
    """Pictures of one colour each, which is their class, as PIL or as tensors."""

    classes = "red", "green"

    def __init__(self, count, tensors=False, broken=()):
        self.count, self.tensors, self.broken = count, tensors, broken

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        if at in self.broken:
            raise RuntimeError("lost")
        image = Image.new("RGB", (8 + at % 5, 9), (255, 0, 0) if at % 2 == 0 else (0, 255, 0))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (pixels / 255, torch.tensor(at % 2)) if self.tensors else (image, at % 2)


@pytest.mark.parametrize("tensors", [False, True])
def test_torch_datasets(tensors):
    found = dataset((Coloured(10, tensors), Coloured(4, tensors)), size=8)
    assert found.classes == ("red", "green")
    assert found.train_labels.tolist() == [0, 1] * 5
    assert found.test_images[:, :2].amax((2, 3)).tolist() == [[255, 0], [0, 255]] * 2
    assert len(dataset(Coloured(10, tensors), size=8).test_labels) == 2
    with pytest.raises(DataError, match=r"10 images 1 that cannot be .*: image 3: RuntimeError"):
        dataset(Coloured(10, tensors, broken=[3]), size=8)
    with pytest.raises(DataError, match=r"image 1: expected \(9, 8\), as the first.*got \(9, 9\)"):
        dataset(Coloured(10, tensors))


def test_tensors():
    pixels, labels = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 4
    found = dataset((pixels, labels, pixels[:5], labels[:5]))
    assert found.train_images is pixels
    assert found.classes == ("0", "1", "2", "3")
    assert len(dataset((pixels, labels)).test_labels) == 4
    assert same(dataset(TensorDataset(pixels, labels)), dataset((pixels, labels)))
    floats = dataset((pixels / 255, labels.int()))
    assert same(floats, dataset((pixels, labels)))
    grey = dataset((pixels[:, 0], labels), size=16)
    assert grey.train_images.shape == (16, 3, 16, 16)
    for bad, message in (
        ((pixels,), "labels for each"),
        ((pixels, labels[:5]), r"labels for each tensor of images, got \[20, 5\]"),
        ((pixels, labels.float()), "image 0: TypeError"),
        ((pixels, labels - 1), "image 0: TypeError|label: expected at least 0, got -1"),
        ((pixels / 255, labels.float()), "image 0: TypeError"),
        ((pixels.float(), labels), r"floats from 0 to 1, got torch.float32 from"),
        ((pixels.numpy(), labels.numpy()), "expected a folder, one or two .*got ndarray, ndarray"),
        ((), "got nothing"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            dataset(bad)
        assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes_and_shares_beyond_all_are_refused():
    with pytest.raises(BadInput, match="labels: expected 0 to 1, got 0 to 2"):
        dataset(Named(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.arange(9) % 3))
    with pytest.raises(BadInput, match="images: expected at most 7 images, got 12"):
        dataset(Coloured(8), size=8, test_share=1.5)


class Named(TensorDataset):
    classes = "red", "green"


class Endless(IterableDataset):
    def __iter__(self):
        yield 0


def test_what_has_no_length_is_refused():
    with pytest.raises(TypeError, match="Datasets of a known length, got Endless"):
        dataset(Endless())


# ---- too many to hold ----


class Small(nn.Module):
    size = 16, 16

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(768, 3))

    def forward(self, images):
        return self.net(images)


@pytest.mark.parametrize("workers", [1, 2])
def test_read_anew_each_epoch_they_train_the_same(photos, workers):
    """Also after a subset was taken, and beside a generator that others use."""
    held = data.subset(dataset(photos, size=16), train=40)
    lazy = data.subset(dataset(photos, size=16, gigabytes=0, workers=workers), train=40)
    assert isinstance(lazy.train_images, Pictures)
    assert lazy.train_images.shape == held.train_images.shape == (40, 3, 16, 16)
    assert lazy.train_images[7][0].equal(held.train_images[7])
    curves, ends = [], []
    for each in (held, lazy):
        model = Small()
        curve = fit(model, each, epochs=2, batch=16, augmented=True)
        curves.append([{k: v for k, v in row.items() if "seconds" not in k} for row in curve])
        ends.append(model.net[2].weight.detach().clone())
        before = torch.get_rng_state()
        assert judged(model, each).equal(judged(model, held))
        assert torch.get_rng_state().equal(before)
    assert curves[0] == curves[1]
    assert ends[0].equal(ends[1])
    part = data.held_out(lazy, 10)
    assert part.test_images[0][0].equal(data.held_out(held, 10).test_images[0])


def test_what_vanishes_while_one_trains_is_named(tmp_path):
    lazy = dataset(folder(tmp_path, 10), size=16, gigabytes=0)
    (tmp_path / "circle" / "circle3.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot read the image .*circle3\.jpg: .*No such file"):
        fit(Small(), lazy, epochs=2, batch=16)


def test_fit_takes_them_as_they_are(photos):
    from torchvision.datasets import ImageFolder

    first = None
    for source in (ImageFolder(photos), Path(photos), dataset(photos, size=16)):
        model = Small()
        fit(model, source, epochs=1, batch=16)
        first = model.net[2].weight if first is None else first
        assert model.net[2].weight.equal(first)
    other = build("ViT", image_size=16, patch_size=2, dim=32, depth=1, num_classes=4)
    with pytest.raises(BadInput, match=r"expected logits \(48, 3\), got \(48, 4\)"):
        fit(other, ImageFolder(photos), epochs=1)


# ---- files of torchvision's sets ----


def patterns(count, classes, size, channels, seed):
    """Noise over a faint pattern of each class: (n size size channels) and labels."""
    random = np.random.default_rng(seed)
    fixed = np.random.default_rng(7).integers(0, 256, (classes, size, size, channels))
    labels = random.permutation(count) % classes
    noise = random.integers(0, 256, (count, size, size, channels))
    return ((fixed[labels] + noise) // 2).astype(np.uint8), labels


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100 in the official layout, its checksums taken for the official ones."""
    from torchvision.datasets import CIFAR100

    root = tmp_path / "cifar-100-python"
    root.mkdir()
    made = {}
    for name, count, seed in (("train", 1000, 0), ("test", 200, 1)):
        pixels, labels = patterns(count, 100, 32, 3, seed)
        made[name] = pixels, labels
        flat = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
        (root / name).write_bytes(pickle.dumps({"data": flat, "fine_labels": labels.tolist()}))
    names = [f"kind {i}" for i in range(100)]
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    sums = {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in root.iterdir()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]}
    monkeypatch.setattr(CIFAR100, "meta", meta)
    data._load.cache_clear()
    return root, made


def test_cifar100_trains(cifar100):
    root, made = cifar100
    found = data.load("cifar100", folder=root.parent)
    assert found.train_images.permute(0, 2, 3, 1).numpy().tobytes() == made["train"][0].tobytes()
    assert found.test_labels.tolist() == made["test"][1].tolist()
    assert found.classes[99] == "kind 99"
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 100))
    curve = fit(model, found, epochs=4, batch=100, lr=3e-4)
    assert curve[-1]["top1"] > 90
    (root / "test").write_bytes(pickle.dumps({}))
    data._load.cache_clear()
    with pytest.raises(DataError, match="test is not the official file: expected md5"):
        data.load("cifar100", folder=root.parent)


@pytest.mark.parametrize("name", ["fashion-mnist", "KMNIST"])
def test_sets_that_torchvision_reads_train(tmp_path, name):
    raw = tmp_path / {"fashion-mnist": "FashionMNIST"}.get(name, name) / "raw"
    raw.mkdir(parents=True)
    made = {}
    for part, count, seed in (("train", 600, 0), ("t10k", 200, 1)):
        pixels, labels = patterns(count, 10, 28, 1, seed)
        made[part] = pixels[..., 0], labels
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
    data._load.cache_clear()
    found = data.load(name, folder=tmp_path)
    assert (found.name, len(found.classes)) == (name, 10)
    assert found.train_images[:, 1].numpy().tobytes() == made["train"][0].tobytes()
    assert found.test_labels.tolist() == made["t10k"][1].tolist()
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28 * 3, 10))
    assert fit(model, found, epochs=3, batch=50)[-1]["top1"] > 95
    assert evaluate(model, found)[0] > 95
    assert data.load(name, folder=tmp_path, size=32).train_images.shape[2:] == (32, 32)


def test_sets_that_are_not_there(tmp_path):
    data._load.cache_clear()
    for name in ("fashion-mnist", "SVHN"):
        with pytest.raises(DataError, match=rf"no .* in {tmp_path}: "), warnings.catch_warnings():
            data.load(name, folder=tmp_path)
    with pytest.raises(BadInput, match="did you mean fashion-mnist"):
        data.load("fashionmnist")
