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

import torch

import exports
import tables
from vixlib import load
from vixlib.paths import CHECKOUT, PACKAGE, atomic_write
from vixlib.systems import MIXERS, SYSTEMS

HERE = Path(__file__).parent
MOST = 8_000_000  # bytes of the explorer
PRETRAINED = PACKAGE / "pretrained"
ORT = HERE / "node_modules" / "onnxruntime-web" / "dist"
WASM = "ort-wasm-simd-threaded.wasm"
OF_RECORD = ["name", "system", "top1", "parameters", "flops", "peak_memory_mb", "epochs", "tokens"]


def explorer(out: Path) -> None:
    """The explorer with all that it reads, into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(HERE / "explorer", out)
    if not ORT.exists():
        sys.exit(f"no {ORT}: npm ci --prefix site")
    shutil.copy(ORT / "ort.wasm.bundle.min.mjs", out / "ort.mjs")
    pack(out / "ort.wasm", (ORT / WASM).read_bytes())
    models = {name: trained(name) for name in exports.MODELS}
    for name, job in exports.jobs(models).items():
        file = CHECKOUT / "build" / "explorer" / f"{name}-{made_from(job.model)}.onnx"
        if not file.exists():
            atomic_write(file, job.write)
        pack(out / f"{name}.onnx", file.read_bytes())
    about = {"photos": tables.photos(out), "side": tables.SIDE, "first": tables.FIRST}
    packed, about["errors"] = tables.first(out)
    pack(out / "first.bin", packed)
    directions, projection = tables.drawn()
    pack(out / "directions.bin", directions.numpy().tobytes())
    pack(out / "projection.bin", projection.numpy().tobytes())
    about |= {"draws": tables.DRAWS, "width": exports.WIDTH, "most": max(exports.TOKENS)}
    about |= {"tokens": exports.TOKENS, "kept": exports.KEPT, "costs": tables.costs()}
    about["mixers"] = {k: {"title": m.title, "color": m.color} for k, m in MIXERS.items()}
    about["models"] = [of_model(name, model) for name, model in models.items()]
    layers = exports.mechanisms(models["ViT"])
    about["queries"] = {"layers": len(layers), "heads": layers[0].heads}
    about["classes"] = models["ViT"].classes
    (out / "about.json").write_text(json.dumps(about, separators=(",", ":")))
    (out / "records.json").write_text(json.dumps(tables.records(), separators=(",", ":")))
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > MOST:
        sys.exit(f"the explorer has {size:,} bytes: at most {MOST:,}")


def pack(path: Path, content: bytes) -> None:
    """Write a file packed, since not every server packs what it sends."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def trained(name: str) -> torch.nn.Module:
    """The trained model that the project keeps under this name."""
    return load(PRETRAINED / f"{name}.safetensors")


def of_model(name: str, model: torch.nn.Module) -> dict:
    """What the page says of a trained model, from its record."""
    run = json.loads((PRETRAINED / "runs.json").read_text())[name]
    (found,) = (CHECKOUT / "figures" / "records").glob(f"*/{run}.json")
    about = {"mixer": SYSTEMS[name].mixer, "prefix": model.grid.prefix_tokens}
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
    parser.add_argument("--few", action="store_true", help="of tokens and landmarks, for tests")
    asked = parser.parse_args()
    if asked.few:
        exports.TOKENS[:], exports.KEPT["nystrom"][:] = [256], [16]
    torch.set_num_threads(1)
    if not asked.explorer:
        import pages  # needs Sphinx

        pages.build(asked.out, asked.notebooks)
    explorer(asked.out / "explorer")
    print(f"built {asked.out}")


if __name__ == "__main__":
    main()
