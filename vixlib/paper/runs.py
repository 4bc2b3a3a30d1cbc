"""What an experiment is: profiles, recipes, runs and the lists of them."""

import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property, partial

import pandas as pd
import torch

from vixlib import measure, paths
from vixlib.data import SOURCES
from vixlib.errors import BadInput, checked, held, one_of
from vixlib.models.host import FEWEST_TOKENS
from vixlib.systems import MECHANISMS, RESULTS, build, system
from vixlib.train import PRECISIONS, tokens_of


@dataclass(frozen=True)
class Profile:
    """Size and budget of a run, never its recipe: a table of profiles.toml, which says more."""

    dataset: str
    image_size: int
    epochs: int
    patches: list[int]
    sizes: dict[str, dict]
    train_images: int | None = None
    validation_images: int | None = None
    watch_images: int | None = None
    precision: str = "float32"
    num_classes: int | None = None  # None: those of a dataset of ours


@dataclass(frozen=True)
class Recipe:
    """How a run trains: a table of recipes.toml, which says more."""

    lr: float
    weight_decay: float
    std: float
    augmented: bool
    best_on_test: bool
    warm_up: float = 0.0
    cosine: bool = False
    batch: int | None = None  # None: it follows the released script, whose batch size it takes
    mix: str | None = None
    label_smoothing: float = 0.0
    class_weights: str | None = None
    best: bool = False
    patience: int | None = None

    @property
    def follows(self) -> bool:
        """Whether batches, and what a family's row says, are those of the released scripts."""
        return self.batch is None


NO_SETTINGS = {"sizes", "patches"}  # what a profile has beside settings
OF_DATA = "dataset", "num_classes"  # a run's name has its dataset anyway


def _tables(name: str, kind: type) -> dict:
    tables = tomllib.loads((paths.PACKAGE / "paper" / name).read_text())
    for table in tables.values():
        if isinstance(other := table.get("sizes"), str):  # those of another profile
            table["sizes"] = tables[other]["sizes"]
    return {name: kind(**table) for name, table in tables.items()}


PROFILES, RECIPES = _tables("profiles.toml", Profile), _tables("recipes.toml", Recipe)
# one for each way to mix tokens: compared at sequences of growing length
LONGER = ["ViT", "ViL", "ViP", "ViN", "FNet"]


@dataclass(frozen=True)
class Run:
    """All that decides an outcome.

    `overrides` are (name, value) pairs of `settings`, or of options of the model's parts, such as
    ("mechanism.batch_wide", True).
    """

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
        usual = self.usual
        kinds = {name: type(value) for name, value in self.sizes.items()}
        kinds |= {f.name: f.type for f in (*fields(Profile), *fields(Recipe))}
        kinds = {name: kind for name, kind in kinds.items() if name not in NO_SETTINGS}
        for part, made in self.parts.items():
            options = inspect.signature(made).parameters.values()
            options = {f"{part}.{p.name}": p for p in options if p.default is not p.empty}
            kinds |= {name: option.annotation for name, option in options.items()}
            usual |= {name: option.default for name, option in options.items()}
        said = {}
        for pair in self.overrides:
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] in said:
                raise BadInput(f"overrides: expected pairs (name, value) once each, got {pair!r}")
            name, value = pair
            kind = kinds[one_of("setting", name, kinds)]
            held(name, value, Sequence[int] if kind is list else kind)
            exact = {list: list, float: float}.get(kind)  # 1 and 1.0 are one run
            said[name] = exact(value) if exact else value
        # in one order, and without what is so anyway
        changed = {name: said[name] for name in kinds if name in said and said[name] != usual[name]}
        pairs = [(n, tuple(v) if isinstance(v, list) else v) for n, v in changed.items()]
        object.__setattr__(self, "overrides", tuple(pairs))
        s = self.settings
        one_of("precision", s["precision"], PRECISIONS)
        if s["num_classes"] is None:
            one_of("dataset", s["dataset"], SOURCES)
        if (s["best"] or s["patience"]) and s["dataset"] in SOURCES and not s["validation_images"]:
            raise BadInput(
                "best, patience: they would choose on test images; set validation_images"
            )

    @property
    def parts(self) -> dict[str, Callable]:
        """What builds parts of its model, by the host's keyword; overrides reach their options."""
        row = system(self.system)
        built = {"mechanism": row.mechanism} if row.mechanism else {}
        return built | {name: made for name, made in row.family.options.items() if callable(made)}

    @property
    def sizes(self) -> dict:
        """What its profile says of its family or host: sizes of the model, perhaps a budget."""
        family, sizes = system(self.system).family, PROFILES[self.profile].sizes
        return sizes.get(family.name, sizes.get(family.host.__name__, {}))

    @property
    def usual(self) -> dict:
        """Every field of profile, sizes and recipe."""
        recipe = RECIPES[self.recipe]
        settings = asdict(PROFILES[self.profile]) | self.sizes | asdict(recipe)
        settings |= system(self.system).family.released if recipe.follows else {}
        settings["batch"] = settings["batch"] or released_batch(self.system)
        return {name: value for name, value in settings.items() if name not in NO_SETTINGS}

    @property
    def settings(self) -> dict:
        """Every field of profile, sizes and recipe, the overrides applied."""
        settings = self.usual | dict(self.overrides)
        settings["batch"] = settings["batch"] or released_batch(self.system)
        if settings["batch"] is None:
            batch = "no released batch size is known; use the recipe fair"
            raise BadInput(f"{self.system}: {batch}")
        return settings

    @property
    def training(self) -> dict:
        """What its recipe and its seed are of the options of `fit`."""
        known = "epochs batch lr weight_decay warm_up cosine augmented precision"
        known += " mix label_smoothing class_weights best patience"
        return {name: self.settings[name] for name in known.split()} | {"seed": self.seed}

    @property
    def name(self) -> str:
        """The stem of its record's file name."""
        changed = [f"{key}={_plain(value)}" for key, value in self.overrides if key not in OF_DATA]
        parts = self.system, self.settings["dataset"], self.recipe, f"seed{self.seed}", *changed
        return ".".join(parts).replace("/", "-")

    @property
    def command(self) -> str:
        """The shell line that makes its record."""
        recipe = "" if self.recipe == "fair" else f" --recipe {self.recipe}"
        changed = "".join(f" --set {key}={_plain(value)}" for key, value in self.overrides)
        start = f"vix train {self.system} --profile {self.profile}"
        return f"{start}{recipe} --seed {self.seed}{changed}"

    @cached_property
    def tokens(self) -> int:
        """Places of an image where tokens first mix; 0 for a network without tokens."""
        with torch.device("meta"):
            return tokens_of(self.build())

    @property
    def num_classes(self) -> int:
        """How many classes its dataset has."""
        s = self.settings
        return s["num_classes"] or len(SOURCES[s["dataset"]].classes)

    def build(self) -> torch.nn.Module:
        """Its untrained model, the same at every call."""
        s, family = self.settings, system(self.system).family
        sizes = {name: s[name] for name in ("image_size", *self.sizes) if name != "epochs"}
        if "std" in inspect.signature(family.host.__init__).parameters:
            sizes["std"] = s["std"]
        for part, made in self.parts.items():
            own = [(name.partition("."), value) for name, value in self.overrides]
            own = {option: value for (of, _, option), value in own if of == part}
            sizes |= {part: partial(made, **own)} if own else {}
        torch.manual_seed(self.seed)
        model = build(self.system, num_classes=self.num_classes, **sizes)
        if RECIPES[self.recipe].follows and family.start is not None:
            family.start(model)
        return model

    def fingerprint(self) -> torch.Tensor:
        """Logits of the untrained model for eight seeded inputs: they change when the code does."""
        model = self.build().eval()
        images = torch.randn(8, 3, *model.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model(images).flatten()


def _plain(value: object) -> str:
    """A setting as it stands in file names and commands: lists as [1,2], true, null."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


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
            if not few or system(name).mechanism in (MECHANISMS["softmax"], None):
                found += [Run(name, profile, "fair", s, tuple(changes)) for s in range(seeds)]
    return found


@checked
def queue(profile: str) -> list[Run]:
    """Every run of a profile, once each: the study's part by part, else as the notebooks need."""
    if profile == "study":
        return [*dict.fromkeys(run for part in registered().values() for run in part)]
    more = [*longer(profile), *longer(profile, equal="cost")]
    return [*dict.fromkeys([*runs(RESULTS, profile), *more])]


@cache
def registered() -> dict[str, list[Run]]:
    """The runs of each part of the study, seed by seed: figures/study.toml."""
    found = {}
    for name, part in tomllib.loads(paths.shipped("study.toml").read_text()).items():
        arms = [f"{system}{change}" for change in part["changes"] for system in part["systems"]]
        how = part["profile"], part["recipe"]
        found[name] = [arm(text, *how, seed) for seed in range(part["seeds"]) for text in arms]
    return found


def arm(text: str, profile: str, recipe: str, seed: int) -> Run:
    """The run of a text such as "ViN" or "ViN:epochs=4:mechanism.padded=true"."""
    name, *changes = text.split(":")
    return Run(name, profile, recipe, seed, tuple(map(setting, changes)))


def setting(text: str) -> tuple[str, object]:
    """The pair of a text such as "epochs=4"; a value that is no JSON is a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"setting: expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def counted(make: Callable[[], torch.nn.Module]) -> dict[str, int]:
    """Parameters, and FLOPs of an image, of the model that `make` builds: without computing it."""
    with torch.device("meta"):
        model = make()
    flops = measure.flops(lambda: model, (1, 3, *model.size))
    return {"parameters": measure.parameters(model), "flops": flops}


@cache
def published() -> pd.DataFrame:
    """Every published or logged number, with its source: figures/paper.csv."""
    return pd.read_csv(paths.shipped("paper.csv"), keep_default_na=False)


@cache
def released_batch(name: str) -> int | None:
    """The batch size that the authors' script of a system trains with."""
    rows = published().query("system == @name and quantity == 'batch'")
    return None if rows.empty else int(rows["value"].iloc[0])
