"""What an experiment is: profiles, recipes, runs, their records."""

import json
import math
import os
import platform
import statistics
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vixlib import ROOT, data, measure
from vixlib.attention import FEWEST_TOKENS, Softmax
from vixlib.errors import BadInput, CheckpointError, Diverged, RecordError, checked, held, one_of
from vixlib.layers import FRESH_STD
from vixlib.models.zoo import build, system
from vixlib.train import (
    PRECISIONS,
    Checkpoint,
    autocast,
    compile_blocks,
    evaluate,
    fit,
    write_whole,
)


@dataclass(frozen=True)
class Profile:
    """Size and budget of a run, never its recipe: a table of profiles.toml, which says more."""

    dataset: str
    image_size: int
    epochs: int
    patches: list[int]
    sizes: dict[str, dict]
    train_images: int | None = None
    watch_images: int | None = None
    precision: str = "float32"


NO_SETTINGS = {"sizes", "patches"}  # what a profile has beside settings

_profiles = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text())
PROFILES = {name: Profile(**table) for name, table in _profiles.items()}


@dataclass(frozen=True)
class Recipe:
    """How a run trains: AdamW at a constant rate, cross-entropy."""

    batch: int | None = 128  # None: the batch size of the released script
    lr: float = 1e-3
    weight_decay: float = 0.01
    std: float = 0.02  # of fresh positions and CLS
    augmented: bool = False
    best_on_test: bool = False  # also note the epoch that did best on the test set


RECIPES = {
    "fair": Recipe(),
    "as-released": Recipe(batch=None, std=1.0, best_on_test=True),
}

TABLES = {
    "vix": ["ViT", "ViL", "ViP", "ViN"],
    "hybrid": ["HybridViT", "HybridViL", "HybridViP", "HybridViN"],
    "rope": ["ViT-RoPE", "ViL-RoPE", "ViP-RoPE", "ViN-RoPE"],
    "hybrid-rope": ["HybridViT-RoPE", "HybridViL-RoPE", "HybridViP-RoPE", "HybridViN-RoPE"],
    "levit": ["LeViT", "LeViN", "LeViP", "LeViL", "LeViN-released", "LeViP-released"],
    "cct": ["CCT", "CCN", "CCP", "CCL"],
    "cvt": ["CvT", "CvN", "CvP", "CvL", "CvN-released", "CvP-released"],
    "mixers": ["FNet", "HybridFNet", "MLPMixer", "HybridMLPMixer"],
    "yardsticks": ["ResNet-20", "ResNet-56", "ConvMixer-256/8"],
}
# the order in which the paper's claims need them: what a queue takes first
QUEUE = [
    *("ViT", "ViN", "ViP", "ViL", "HybridViT", "HybridViN", "HybridViP", "HybridViL"),
    *(name for table in ("cct", "levit", "rope", "hybrid-rope", "cvt") for name in TABLES[table]),
    *(name for table in ("mixers", "yardsticks") for name in TABLES[table]),
]
# one for each way to mix tokens: compared at sequences of growing length
LONGER = ["ViT", "ViL", "ViP", "ViN", "FNet"]

STATUS = "read", "trained", "missing", "stale", "diverged"  # of a record

# what may differ between the records of two equal runs
VOLATILE = {"seconds_per_epoch", "peak_memory_mb", "device", "compiled", "versions", "commit"}


@dataclass(frozen=True)
class Run:
    """All that decides an outcome. `overrides` are (name, value) pairs of `settings`."""

    system: str
    profile: str
    recipe: str = "fair"
    seed: int = 0
    overrides: tuple[tuple[str, object], ...] = ()

    def __post_init__(self):
        system(self.system)
        one_of("profile", self.profile, PROFILES)
        one_of("recipe", self.recipe, RECIPES)
        held("seed", self.seed, int, 0)
        held("overrides", self.overrides, tuple)
        kinds = {name: type(value) for name, value in self.sizes.items()}
        kinds |= {f.name: f.type for f in (*fields(Profile), *fields(Recipe))}
        kinds = {name: kind for name, kind in kinds.items() if name not in NO_SETTINGS}
        hashable = {}
        for pair in self.overrides:
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] in hashable:
                raise BadInput(f"overrides: expected pairs (name, value) once each, got {pair!r}")
            name, value = pair
            kind = kinds[one_of("setting", name, kinds)]
            held(name, value, Sequence[int] if kind is list else kind)
            exact = {list: tuple, float: float}.get(kind)  # 1 and 1.0 are one run
            hashable[name] = exact(value) if exact else value
        object.__setattr__(self, "overrides", tuple(hashable.items()))
        one_of("dataset", self.settings["dataset"], data.CLASSES)
        one_of("precision", self.settings["precision"], PRECISIONS)

    @property
    def sizes(self) -> dict:
        """What its profile says of its family or host: sizes of the model, perhaps a budget."""
        row, sizes = system(self.system), PROFILES[self.profile].sizes
        hosts = [kind.__name__ for kind in row.host.__mro__]
        return next((sizes[key] for key in (row.family, *hosts) if key in sizes), {})

    @property
    def settings(self) -> dict:
        """Every field of profile, sizes and recipe, the overrides applied."""
        settings = asdict(PROFILES[self.profile]) | self.sizes | asdict(RECIPES[self.recipe])
        settings = {name: value for name, value in settings.items() if name not in NO_SETTINGS}
        settings |= dict(self.overrides)
        if settings["batch"] is None:
            settings["batch"] = released_batch(self.system)
        return settings

    @property
    def name(self) -> str:
        """The stem of its record's file name."""
        changed = [f"{key}={_plain(value)}" for key, value in self.overrides]
        parts = self.system, self.settings["dataset"], self.recipe, f"seed{self.seed}", *changed
        return ".".join(parts).replace("/", "-")

    @property
    def path(self) -> Path:
        """The file of its record."""
        return records_folder(self.profile) / f"{self.name}.json"

    @property
    def weights(self) -> Path:
        """Where training leaves the weights; they are not committed."""
        return ROOT / "build" / self.profile / "weights" / f"{self.name}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run is kept, and the last good state of one that diverged."""
        return ROOT / "build" / self.profile / "checkpoints" / f"{self.name}.pt"

    @property
    def command(self) -> str:
        """The shell line that makes its record."""
        changed = "".join(f" --set {key}={_plain(value)}" for key, value in self.overrides)
        recipe = "" if self.recipe == "fair" else f" --recipe {self.recipe}"
        return (
            f"vix train {self.system} --profile {self.profile}{recipe} --seed {self.seed}{changed}"
        )

    @property
    def tokens(self) -> int:
        """Places of an image where tokens first mix; 0 for a network without tokens."""
        with torch.device("meta"):
            grid = self.build().grid
        return grid.rows * grid.columns

    def build(self) -> torch.nn.Module:
        """Its untrained model, the same at every call."""
        s = self.settings
        sizes = {name: s[name] for name in ("image_size", *self.sizes) if name != "epochs"}
        torch.manual_seed(self.seed)
        model = build(self.system, classes=len(data.CLASSES[s["dataset"]]), **sizes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("cls", "positions")):
                    parameter *= s["std"] / FRESH_STD
        return model

    def fingerprint(self) -> torch.Tensor:
        """Scores of the untrained model for eight seeded inputs: they change when the code does."""
        model = self.build().eval()
        images = torch.randn(8, 3, *model.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model(images).flatten()


def _plain(value: object) -> str:
    """A setting as it stands in file names and commands: lists as [1,2]."""
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def records_folder(profile: str) -> Path:
    """Where records of a profile lie: those of quick are not for keeping."""
    one_of("profile", profile, PROFILES)
    return ROOT / ("build/quick/records" if profile == "quick" else f"figures/records/{profile}")


def figures(profile: str) -> Path:
    """Where the notebooks draw, made if missing: only laptop's figures are the committed ones."""
    one_of("profile", profile, PROFILES)
    folder = ROOT / ("figures" if profile == "laptop" else f"build/{profile}/figures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@checked
def runs(names: Iterable[str], profile: str, *, seeds: int = 1, recipe: str = "fair") -> list[Run]:
    """One Run for each system and each of the first `seeds` seeds."""
    return [Run(name, profile, recipe, seed) for name in names for seed in range(seeds)]


@checked
def longer(profile: str, *, equal: str = "epochs", seeds: int = 1) -> list[Run]:
    """Runs at each patch size of a profile, from short sequences to long ones.

    Equal in "epochs", or in "cost": the fewer tokens an image has, the more epochs, so that all
    runs read as many tokens. Where all attentions would be softmax, ViT's run is that of all.
    """
    p = PROFILES[one_of("profile", profile, PROFILES)]
    one_of("equal", equal, ("epochs", "cost"))
    found = []
    for patch in p.patches:
        times = (patch // min(p.patches)) ** 2
        changes = [("patch_size", patch), ("epochs", p.epochs * times)]
        changes = changes[: 0 if times == 1 else 1 if equal == "epochs" else 2]
        few = (p.image_size // patch) ** 2 + 1 < FEWEST_TOKENS  # with CLS
        for name in LONGER:
            if not few or system(name).mechanism in (Softmax, None):
                found += [Run(name, profile, "fair", s, tuple(changes)) for s in range(seeds)]
    return found


@checked
def queue(profile: str) -> list[Run]:
    """Every run of a profile, once each, what the paper's claims need first."""
    more = [*longer(profile), *longer(profile, equal="cost")]
    return [*dict.fromkeys([*runs(QUEUE, profile), *more])]


@cache
def published() -> pd.DataFrame:
    """Every published or logged number, with its source: figures/paper.csv."""
    return pd.read_csv(ROOT / "figures" / "paper.csv", keep_default_na=False)


def released_batch(name: str) -> int:
    """The batch size that the authors' script of a system trains with."""
    rows = published().query("system == @name and quantity == 'batch'")
    if rows.empty:
        raise BadInput(f"{name}: no released batch size is known; use the recipe fair")
    return int(rows["value"].iloc[0])


@checked
def load(run: Run) -> dict | None:
    """The record of a run, `status` "read", "diverged" or "stale"; None where there is none.

    Stale: today's code builds another model than the one that was trained. RecordError names a
    file that cannot be read.
    """
    if not run.path.exists():
        return None
    try:
        record = json.loads(run.path.read_text())
        then = torch.tensor(record["fingerprint"])
        mine = {"name": run.name, "system": run.system, "seed": run.seed}
        status = record.get("status", "read")
        known = status == "diverged" or math.isfinite(record["top1"])
        if {key: record[key] for key in mine} != mine or not known:
            raise ValueError("it belongs to another run")
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"unreadable record {run.path} ({error}); delete it to train anew"
        ) from error
    now = _fingerprint(run)
    same = now.shape == then.shape and torch.allclose(now, then, atol=1e-3)
    return record | {"status": status if same else "stale"}


_fingerprint = cache(Run.fingerprint)


@checked
def perform(
    run: Run,
    *,
    folder: str | Path | None = None,
    device: str | None = None,
    compiled: bool | None = None,
    deadline: float = math.inf,
    report: Callable[[dict], None] = lambda row: None,
) -> dict | None:
    """Train a run (or go on with it) and write its record; None where the deadline came first.

    `folder` holds the dataset. Blocks are compiled on a GPU, unless `compiled` says otherwise. The
    trained weights stay in build/<profile>/weights/. A run that diverges has a record, too, its
    `status` "diverged": the curve until then, where, no accuracy.
    """
    device = data.place(device)
    s, model = run.settings, run.build().to(device)
    compiled = device.type == "cuda" if compiled is None else compiled
    if compiled:
        compile_blocks(model)
    dataset = data.load(s["dataset"], folder=folder, size=s["image_size"], device=str(device))
    dataset = data.subset(dataset, train=s["train_images"])
    checkpoint = Checkpoint(
        run.checkpoint,
        identity=f"{run.name} {sorted(s.items())}",
        fingerprint=_fingerprint(run),
    )
    options = {key: s[key] for key in ("epochs", "batch", "lr", "weight_decay", "augmented")}
    where = {}
    try:
        curve = fit(
            model,
            dataset,
            **options,
            precision=s["precision"],
            seed=run.seed,
            watch=s["watch_images"],
            checkpoint=checkpoint,
            deadline=deadline,
            report=report,
        )
        if curve is None:
            return None
        top1, top5 = evaluate(model, dataset, precision=s["precision"])
        if math.isnan(top1):
            steps = math.ceil(len(dataset.train_images) / s["batch"])
            raise Diverged(s["epochs"], steps, s["lr"], curve=curve)
        last = curve[-1]
    except Diverged as error:
        curve, top1, top5, last = error.curve, None, None, {}
        where = {"diverged_epoch": error.epoch, "diverged_step": error.step, "status": "diverged"}
    best = max(curve, key=lambda row: row["top1"]) if s["best_on_test"] and last else {}
    seconds = [row["seconds"] for row in curve]
    record = {
        "name": run.name,
        "system": run.system,
        "profile": run.profile,
        "recipe": run.recipe,
        "seed": run.seed,
        "overrides": ",".join(f"{key}={value}" for key, value in run.overrides),
        **s,
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "tokens": run.tokens,
        "parameters": measure.parameters(model),
        "flops": measure.flops(run.build, (1, 3, *model.size)),
        "top1": top1,
        "top5": top5,
        "top1_best": best.get("top1"),
        "epoch_best": best.get("epoch"),
        "train_accuracy": last.get("train_accuracy"),
        "loss": last.get("loss"),
        "seconds_per_epoch": round(statistics.median(seconds), 2) if seconds else None,
        "peak_memory_mb": round(_training_memory(run, dataset, device), 1),
        "device": _device(device),
        "compiled": compiled,
        "versions": f"torch {torch.__version__}, python {platform.python_version()}",
        "commit": _commit(),
        "curve": [{k: v for k, v in row.items() if k != "seconds"} for row in curve],
        "fingerprint": [round(value, 5) for value in _fingerprint(run).tolist()],
        **where,
    }
    if where:  # the checkpoint stays, the last good state
        run.weights.unlink(missing_ok=True)  # those of an earlier training
    else:
        state = {key: tensor.contiguous().cpu() for key, tensor in model.state_dict().items()}
        about = {"classes": "\n".join(dataset.classes)}
        write_whole(run.weights, lambda path: save_file(state, path, about))
    text = json.dumps(record, indent=1, default=str) + "\n"
    write_whole(run.path, lambda path: path.write_text(text))
    if not where:
        checkpoint.delete()
    return record


@checked
def read(
    wanted: Iterable[Run], *, train: bool = False, folder: str | Path | None = None
) -> pd.DataFrame:
    """The records of some runs, a row each; `status` is one of STATUS.

    With `train`, what is missing or stale is trained here and now, one line an epoch. Without it,
    a missing record is a row without numbers; `command` says how to make it.
    """
    rows = []
    for run in wanted:
        record = load(run)
        if train and (record is None or record["status"] == "stale"):
            record = {"status": "trained"}
            record |= perform(run, folder=folder, report=line_printer(run))
        known = record or {**asdict(run), "name": run.name, **run.settings, "status": "missing"}
        rows.append(known | {"command": run.command})
    frame = pd.DataFrame(rows)
    counts = {status: int((frame["status"] == status).sum()) for status in STATUS}
    told = {status: n for status, n in counts.items() if n or status != "diverged"}
    print(", ".join(f"{count} {status}" for status, count in told.items()))
    return frame


@checked
def unfinished(wanted: Iterable[Run]) -> list[Run]:
    """Those that have no record, or one of other code."""
    return [run for run in wanted if (load(run) or {"status": "stale"})["status"] == "stale"]


def say(run: Run, record: dict | None, more: str = "") -> None:
    """Prints in a line what became of a run."""
    if record is None:
        end = "out of time; the same command goes on"
    elif record["top1"] is None:
        kept = run.checkpoint if run.checkpoint.exists() else None
        where = record["diverged_epoch"], record["diverged_step"], record["lr"]
        end = f"{Diverged(*where, kept)}; recorded in {run.path}"
    else:
        end = f"top-1 {record['top1']:.2f} %, recorded in {run.path}"
    print(f"{run.name}: {end}{more}", flush=True)


@checked
def perform_all(
    wanted: list[Run],
    *,
    workers: int = 1,
    folder: str | Path | None = None,
    device: str | None = None,
    compiled: bool | None = None,
    deadline: float = math.inf,
    done: Callable[[Run, dict | None], None] = say,
) -> None:
    """Train many runs, `workers` processes of one thread each; `done` hears of each run's end.

    A single worker is this process, with a progress bar at a terminal.
    """
    options = {"folder": folder, "device": device, "compiled": compiled, "deadline": deadline}
    if workers == 1:
        torch.set_num_threads(1)
        for run in wanted:
            if time.monotonic() < deadline:
                done(run, perform(run, report=line_printer(run), **options))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_in_worker, run, options): run for run in wanted}
        try:
            for job in as_completed(jobs):
                done(jobs[job], job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_worker(run: Run, options: dict) -> dict | None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    return perform(run, report=line_printer(run), **options)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, unseen."""
    parent_process().join()
    os._exit(1)


def line_printer(run: Run) -> Callable[[dict], None]:
    """Prints one line an epoch."""
    epochs = run.settings["epochs"]

    def report(row: dict) -> None:
        print(
            f"{run.name}: epoch {row['epoch']}/{epochs}, loss {row['loss']:.3f}, "
            f"train {row['train_accuracy']:.1f} %, test {row['top1']:.1f} %, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )

    return report


@checked
def trained(run: Run) -> torch.nn.Module:
    """The model of a run with the weights that its training left on this machine."""
    if not run.weights.exists():
        raise BadInput(f"no weights in {run.weights}; train them: {run.command}")
    model = run.build()
    try:
        model.load_state_dict(load_file(run.weights))
    except Exception as error:
        raise CheckpointError(f"unreadable weights {run.weights}; delete them") from error
    return model.eval()


@checked
def predict(run: Run, image: str | Path, top: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes of an image file with their probabilities."""
    model = trained(run)
    with safe_open(run.weights, "pt") as weights:
        classes = weights.metadata()["classes"].split("\n")
    try:
        picture = Image.open(image).convert("RGB").resize(model.size[::-1])
    except Exception as error:  # a broken PNG is a SyntaxError
        raise BadInput(f"cannot read the image {image}: {error}") from error
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        best = model(data.normalise(pixels)).softmax(-1)[0].topk(min(top, len(classes)))
    return [(classes[i], p) for p, i in zip(*map(Tensor.tolist, best), strict=True)]


def _training_memory(run: Run, dataset: data.Dataset, device: torch.device) -> float:
    some = slice(0, run.settings["batch"])
    images, labels = data.normalise(dataset.train_images[some]), dataset.train_labels[some]
    with autocast(device, run.settings["precision"]):
        return measure.training_memory(run.build().to(device), images, labels)


def _device(device: torch.device) -> str:
    threads = f"CPU, {torch.get_num_threads()} thread(s): " if device.type == "cpu" else ""
    return threads + measure.device_name(device)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
