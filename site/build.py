"""Build the static site under build/site/: the explorer, then the pages around it.

    python site/build.py              everything, offline after installation (make site)
    python site/build.py --explorer   the explorer alone

What torch exports is kept under build/explorer/, by what it was made from.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path

import exports
import tables
import torch

from vixlib import build, load
from vixlib.paths import CHECKOUT, PACKAGE, atomic_write
from vixlib.systems import MIXERS, SYSTEMS

HERE = Path(__file__).parent
PRETRAINED = PACKAGE / "pretrained"
ORT = HERE / "node_modules" / "onnxruntime-web" / "dist"
WASM = "ort-wasm-simd-threaded.wasm"
OF_RECORD = ["name", "system", "top1", "parameters", "flops", "peak_memory_mb", "epochs", "dataset"]


def explorer(out: Path) -> None:
    """The explorer with all that it reads, into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(HERE / "explorer", out)
    if not ORT.exists():
        sys.exit(f"no {ORT}: npm ci --prefix site")
    shutil.copy(ORT / "ort.wasm.bundle.min.mjs", out / "ort.mjs")
    # packed, since not every server packs what it sends: a third of the bytes
    (out / "ort.wasm.gz").write_bytes(gzip.compress((ORT / WASM).read_bytes(), 9, mtime=0))
    models = {name: trained(name) for name in exports.MODELS}
    for name, job in exports.jobs(models).items():
        file = CHECKOUT / "build" / "explorer" / f"{name}-{made_from(job.model)}.onnx"
        if not file.exists():
            atomic_write(file, job.write)
        shutil.copy(file, out / f"{name}.onnx")
    about = {"photos": tables.photos(out), "side": tables.SIDE, "first": tables.FIRST}
    packed, about["errors"] = tables.first(out)
    (out / "first.bin").write_bytes(packed)
    directions, projection = tables.drawn()
    (out / "directions.bin").write_bytes(directions.numpy().tobytes())
    (out / "projection.bin").write_bytes(projection.numpy().tobytes())
    about |= {"draws": tables.DRAWS, "width": exports.WIDTH, "most": max(exports.TOKENS)}
    about |= {"tokens": exports.TOKENS, "kept": exports.KEPT, "costs": tables.costs()}
    about["mixers"] = {k: {"title": m.title, "color": m.color} for k, m in MIXERS.items()}
    about["models"] = [of_model(name, model) for name, model in models.items()]
    layers = exports.mechanisms(models["ViT"])
    about["queries"] = {"layers": len(layers), "heads": layers[0].heads}
    about["classes"] = models["ViT"].classes
    (out / "about.json").write_text(json.dumps(about, separators=(",", ":")))
    (out / "records.json").write_text(json.dumps(tables.records(), separators=(",", ":")))


def trained(name: str) -> torch.nn.Module:
    """The trained model that the project keeps under this name."""
    file = PRETRAINED / f"{name}.safetensors"
    if file.exists():
        return load(file)
    torch.manual_seed(0)
    model = build(name, patch_size=2, dim=64, depth=2).eval()
    model.classes = tuple(map(str, range(10)))
    return model


def of_model(name: str, model: torch.nn.Module) -> dict:
    """What the page says of a trained model, from its record."""
    runs = PRETRAINED / "runs.json"
    run = json.loads(runs.read_text()).get(name) if runs.exists() else None
    about = {"system": name, "mixer": SYSTEMS[name].mixer, "prefix": model.grid.prefix_tokens}
    if run is None:
        return about | {"name": None}
    (found,) = (CHECKOUT / "figures" / "records").glob(f"*/{run}.json")
    record = json.loads(found.read_text())
    return about | {key: record[key] for key in OF_RECORD}


def made_from(model: torch.nn.Module | None) -> str:
    """A hash of the code that is exported, and of the weights if there are any."""
    total = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("models/*.py"), HERE / "exports.py"]):
        total.update(path.read_bytes())
    for tensor in model.state_dict().values() if model else ():
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "site")
    parser.add_argument("--explorer", action="store_true", help="the explorer alone")
    parser.add_argument("--notebooks", nargs="+", help="these alone, not all (03_vix ...)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.explorer:
        import pages  # needs Sphinx

        pages.build(asked.out, asked.notebooks)
    explorer(asked.out / "explorer")
    print(f"built {asked.out}")


if __name__ == "__main__":
    main()
