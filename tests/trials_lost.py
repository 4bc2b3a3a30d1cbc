"""Trials of what must not be lost: signals, shared queues, full disks, damaged files, bad mirrors.

Free of pytest: `proof.py` runs them.
"""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path

from PIL import Image

from vixlib import download
from vixlib.data import dataset
from vixlib.errors import DataError
from vixlib.paper.records import VOLATILE, files
from vixlib.paper.runs import Run
from vixlib.paths import root as here

# of a queue: with features drawn at random, and with BatchNorm
QUEUE = [
    Run(name, "quick", overrides=(("epochs", 12), ("train_images", 400)))
    for name in ("FNet", "ViP", "LeViL")
]
TRACE = "Traceback (most recent call last)"
PROMPT = 5.0  # seconds from a signal to the end


def command(workers: int, *more: str) -> list[str]:
    """`vix train` for QUEUE."""
    changes = [f"--set={name}={value}" for name, value in QUEUE[0].overrides]
    names = [run.system for run in QUEUE]
    start = [sys.executable, "-P", "-m", "vixlib", "train", *names, "--profile", "quick"]
    return [*start, "--workers", str(workers), *changes, *more]


def environment(root: str) -> dict:
    own = {"VIXLIB_ROOT": root, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return os.environ | own | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def finish(root: str, workers: int = 1, **options) -> subprocess.CompletedProcess:
    """The command, to its end."""
    return subprocess.run(
        command(workers), env=environment(root), capture_output=True, text=True, **options
    )


def inside(root: str, run: Run, kind: str) -> Path:
    return Path(root, getattr(files(run), kind).relative_to(here()))


def records(root: str) -> list[dict | None]:
    """What the queue's runs left, without what may differ."""
    found = []
    for run in QUEUE:
        record = None
        with contextlib.suppress(OSError, ValueError):  # missing, a folder, damaged
            record = json.loads(inside(root, run, "record").read_text())
        whole = isinstance(record, dict)
        found.append({k: v for k, v in record.items() if k not in VOLATILE} if whole else None)
    return found


@functools.cache
def left_alone() -> list[dict]:
    """The records of a queue that nobody disturbed."""
    with tempfile.TemporaryDirectory() as root:
        finish(root).check_returncode()
        return records(root)


def leftovers(root: str) -> list[str]:
    """Files that are not whole, and their folders."""
    patterns = "*.part", "unfinished-*"
    return [path.name for pattern in patterns for path in Path(root).rglob(pattern)]


# --- signals -------------------------------------------------------------------------------------


def hears_all() -> None:
    """In a child: Ctrl-C is heard, as at a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def signal_trial(seed: int, kills: int = 3) -> dict:
    """A queue that gets a random signal at random moments, then goes on."""
    chance = random.Random(seed)
    seen = {"signals": [], "slowest": 0.0, "codes": [], "traces": 0, "begun_after": 0}
    wanted = left_alone()
    with tempfile.TemporaryDirectory() as root:
        for _ in range(kills):
            workers = chance.choice((1, 2))
            kind = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            process = subprocess.Popen(
                command(workers),
                env=environment(root),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=hears_all,
                start_new_session=True,
            )
            lines = []
            reader = threading.Thread(target=lambda p=process, ls=lines: ls.extend(p.stdout))
            reader.start()
            ready = time.monotonic() + 60  # until it trains: before, nothing can be lost
            while not lines and process.poll() is None and time.monotonic() < ready:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 3))
            before, began = len(lines), time.monotonic()
            terminal = kind == signal.SIGINT and chance.random() < 0.5  # all of a group hear it
            (os.killpg if terminal else os.kill)(process.pid, kind)
            code = process.wait()
            took = time.monotonic() - began
            reader.join()
            seen["signals"].append(f"{kind.name}, {workers}")
            seen["codes"].append(code)
            seen["traces"] += TRACE in "".join(lines)
            if kind != signal.SIGKILL:
                seen["slowest"] = max(seen["slowest"], took)
                seen["begun_after"] += sum("epoch 1/" in line for line in lines[before + 2 :])
        ended = finish(root)
        seen |= {"last": ended.returncode, "equal": records(root) == wanted}
        return seen | {"left": leftovers(root)}


def signals_hold(seen: dict) -> bool:
    codes = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (130, 0), signal.SIGINT: (130, 0)}
    kinds = [signal.Signals[told.split(",")[0]] for told in seen["signals"]]
    fair = all(code in codes[kind] for kind, code in zip(kinds, seen["codes"], strict=True))
    calm = not seen["traces"] and not seen["begun_after"] and not seen["left"]
    return fair and calm and seen["equal"] and seen["last"] == 0 and seen["slowest"] < PROMPT


# --- one queue, two processes --------------------------------------------------------------------


def shared_trial(workers: int) -> dict:
    """Two processes on one queue in one folder: how often each run was begun."""
    with tempfile.TemporaryDirectory() as root:
        options = {"env": environment(root), "stdout": subprocess.PIPE, "text": True}
        both = [subprocess.Popen(command(workers), **options) for _ in range(2)]
        told = "".join(process.communicate()[0] for process in both)
        begun = [len(re.findall(rf"{re.escape(run.name)}: epoch 1/", told)) for run in QUEUE]
        codes = sorted(process.returncode for process in both)
        equal = records(root) == left_alone()
    return {"begun": begun, "codes": codes, "equal": equal}


def shared_holds(seen: dict) -> bool:
    once = seen["begun"] == [1] * len(QUEUE)
    # 3: a run was the other's when its turn came
    return once and seen["equal"] and set(seen["codes"]) <= {0, 3}


# --- disks ---------------------------------------------------------------------------------------

SIZES = 0, 1_000, 20_000, 100_000, 300_000  # of the largest file, in bytes
FOLDERS = "build", "build/quick/checkpoints", "build/quick/records", "build/quick/weights"
DISKS = [*(f"at {size} bytes" for size in SIZES), *(f"read-only {name}" for name in FOLDERS)]
DISKS.append("full after an epoch")


def disk_trial(kind: str) -> dict:
    """A queue on a disk that is full or read-only, and again when it no longer is."""
    word, _, rest = kind.partition(" ")
    with tempfile.TemporaryDirectory() as root:
        for name in FOLDERS:
            if not name.startswith(f"{rest}/"):  # which could not be made
                Path(root, name).mkdir(parents=True, exist_ok=True)
        if word == "at":
            size = int(rest.split()[0])
            full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
            failed = finish(root, preexec_fn=full)
        elif word == "read-only":
            folder = Path(root, rest)
            folder.chmod(0o555)  # which binds root without its capabilities alone
            bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
            options = {"env": environment(root), "capture_output": True, "text": True}
            failed = subprocess.run([*bound, *command(1)], **options)
            folder.chmod(0o755)
        else:
            failed = fill_later(root)
        said, ended = failed.stdout + failed.stderr, finish(root)
        return {
            "code": failed.returncode,
            "traces": said.count(TRACE),
            "lines": sum("failed" in x or x.startswith("vix: ") for x in said.splitlines()),
            "last": ended.returncode,
            "equal": records(root) == left_alone(),
            "left": leftovers(root),
        }


def fill_later(root: str) -> subprocess.CompletedProcess:
    """The queue, its disk full from the end of its first epoch on."""
    process = subprocess.Popen(
        command(1),
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = process.stdout.readline()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000, 1_000))
    rest, _ = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, first + rest, "")


def disk_holds(seen: dict) -> bool:
    told = seen["lines"] in (1, len(QUEUE)) and not seen["traces"]
    return told and seen["code"] == 1 and seen["last"] == 0 and seen["equal"] and not seen["left"]


# --- damaged files -------------------------------------------------------------------------------

DAMAGES = "bit", "bit", "bit", "cut", "empty", "noise", "folder", "zeros"
RECORDS = (
    "null",
    "[]",
    "{",
    '{"fingerprint": null}',
    '{"top1": 250}',
    '{"top1": "high"}',
    '{"curve": 3}',
    '{"status": "good"}',
    '{"seed": 5}',
    '{"fingerprint": ["a"]}',
    '{"flops": -1}',
    '{"status": "diverged"}',
)


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """What goes wrong with a file."""
    whole = bytearray(path.read_bytes())
    place = chance.randrange(len(whole))
    if kind == "bit":
        whole[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del whole[place:]
    elif kind == "zeros":
        whole[place : place + 4096] = bytes(len(whole[place : place + 4096]))
        whole[-1] ^= 1
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        text = {"empty": b"", "noise": chance.randbytes(1000)}
        path.write_bytes(text.get(kind, bytes(whole)))


def damage_trial(seed: int) -> dict:
    """A checkpoint (even) or a record (odd) of the first run is damaged: the others go on."""
    chance, run = random.Random(seed), QUEUE[0]
    with tempfile.TemporaryDirectory() as root:
        if seed % 2:
            path = inside(root, run, "record")
            path.parent.mkdir(parents=True)
            record = finished_record()
            kind = RECORDS[seed // 2 % len(RECORDS)]
            change = json.loads(kind) if kind.startswith('{"') else None
            path.write_text(kind if change is None else json.dumps(record | change))
        else:
            path, kind = inside(root, run, "checkpoint"), DAMAGES[seed // 2 % len(DAMAGES)]
            process = subprocess.Popen(
                command(1), env=environment(root), stdout=subprocess.PIPE, text=True
            )
            process.stdout.readline()
            process.terminate()
            process.communicate()
            damage(path, kind, chance)
        failed = finish(root)
        said, found, wanted = failed.stdout + failed.stderr, records(root), left_alone()
        lines = [line for line in said.splitlines() if "failed" in line]
        return {
            "what": f"{path.suffix} {kind}",
            "code": failed.returncode,
            "told": len(lines) == 1 and run.name in lines[0] and str(path) in lines[0],
            "traces": said.count(TRACE),
            "others_equal": found[1:] == wanted[1:],
        }


@functools.cache
def finished_record() -> dict:
    """The first run's record, whole."""
    with tempfile.TemporaryDirectory() as root:
        finish(root).check_returncode()
        return json.loads(inside(root, QUEUE[0], "record").read_text())


def damage_holds(seen: dict) -> bool:
    return seen["code"] == 1 and seen["told"] and not seen["traces"] and seen["others_equal"]


# --- images --------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and then ends."""
    said = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + said + struct.pack(">I", zlib.crc32(said))
    return head + struct.pack(">I", 99) + b"IDAT"


def whole_image(kind: str) -> bytes:
    """A picture of 32 x 32 pixels of noise, in a format."""
    pixels = random.Random(0).randbytes(3 * 32 * 32)
    Image.frombytes("RGB", (32, 32), pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"a picture of a cat",
    "a header alone": header(4, 4),
    "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Ghostscript would run
    "zeros": b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    "a cut jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a cut gif": b"GIF89a\x04\x00",
    "a cut webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "a cut tiff": b"II*\x00\x08\x00\x00\x00",
    "a cut bmp": b"BM\x00\x00",
}
for _kind in ("jpeg", "png", "gif", "webp", "tiff", "bmp", "ppm"):
    for _share in (0.4, 0.8):
        _file = whole_image(_kind)
        BROKEN[f"{100 * _share:.0f} % of a {_kind}"] = _file[: round(_share * len(_file))]
_file = bytearray(whole_image("png"))
_file[len(_file) // 2] ^= 1
BROKEN["a png with a flipped bit"] = bytes(_file)


def image_trial(kind: str) -> dict:
    """A broken image among 100 that are whole: what the dataset of their folder says of it."""
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(100):
            path = Path(root, "ab"[i % 2], f"{i}.png")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(whole_image("png"))
        Path(root, "a", "broken.png").write_bytes(BROKEN[kind])
        found = dataset(root, size=8, workers=1)
        told = [str(each.message) for each in said if "broken.png" in str(each.message)]
        count = len(found.train_labels) + len(found.test_labels)
        lines = [line.replace(root, "") for line in found.skipped]
    return {"used": count, "skipped": lines, "warned": len(told)}


def image_holds(seen: dict) -> bool:
    named = len(seen["skipped"]) == 1 and "/a/broken.png: " in seen["skipped"][0]
    return named and "\n" not in seen["skipped"][0] and seen["warned"] == 1 and seen["used"] == 100


# --- mirrors -------------------------------------------------------------------------------------

WHOLE = random.Random(0).randbytes(300_000)
GOOD = {"whole", "cut once", "cut twice", "no length", "reset once", "no range", "redirect"}
MIRRORS = (
    *sorted(GOOD),
    *("cut always", "reset", "silent", "silent in the middle", "drip", "endless", "longer"),
    *("shorter", "login page", "another of its size", "not found", "broken server", "garbage"),
    *("redirect for ever", "range of another", "length not a number"),
)


class Mirror(http.server.BaseHTTPRequestHandler):
    """A server whose paths say how it behaves."""

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.strip("/").replace("%20", " ")
        asked = self.server.asked
        asked[kind] = asked.get(kind, 0) + 1
        begin = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        with contextlib.suppress(OSError):
            self.answer(kind, asked[kind], begin)

    def head(self, code: int = 200, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def answer(self, kind: str, time_asked: int, begin: int) -> None:
        size, half = len(WHOLE), len(WHOLE) // 2
        rest, write = WHOLE[begin:], self.wfile.write
        ranged = {"Content_Length": len(rest)}
        if begin:
            ranged["Content_Range"] = f"bytes {begin}-{size - 1}/{size}"
        code = 206 if begin else 200
        if kind in ("whole", "no length"):
            self.head(**({} if kind == "no length" else ranged))
            write(rest)
        elif kind.startswith(("cut", "reset")):
            limit = {"cut once": 1, "cut twice": 2, "reset once": 1}.get(kind, 99)
            self.head(code, **ranged)
            write(rest[: len(rest) // 2] if time_asked <= limit else rest)
            if kind.startswith("reset") and time_asked <= limit:
                self.wfile.flush()
                self.connection.shutdown(2)
        elif kind == "no range":  # and cut at first
            self.head(Content_Length=size)
            write(WHOLE[:half] if time_asked == 1 else WHOLE)
        elif kind == "redirect":
            self.head(302, Location="/whole")
        elif kind == "redirect for ever":
            self.head(302, Location="/redirect%20for%20ever")
        elif kind.startswith("silent"):
            if "middle" in kind:
                self.head(code, **ranged)
                write(rest[: len(rest) // 2])
                self.wfile.flush()
            time.sleep(3)
        elif kind == "drip":
            self.head(code, **ranged)
            for octet in rest[:600]:
                write(bytes([octet]))
                self.wfile.flush()
                time.sleep(0.02)
        elif kind in ("endless", "longer"):
            self.head(**({} if kind == "endless" else {"Content_Length": 2 * size}))
            for _ in range(1000):
                write(WHOLE)
        elif kind == "shorter":
            self.head(Content_Length=half)
            write(WHOLE[:half])
        elif kind == "another of its size":
            self.head(Content_Length=size)
            write(WHOLE[::-1])
        elif kind == "login page":
            self.head(Content_Type="text/html", Content_Length=12)
            write(b"a login page")
        elif kind == "garbage":
            write(b"\0\xff no HTTP\r\n" * 100)
        elif kind == "range of another":  # cut at first, then from another place
            if begin:
                self.head(206, Content_Length=10, Content_Range=f"bytes 5-14/{size}")
                write(WHOLE[5:15])
            else:
                self.head(Content_Length=size)
                write(WHOLE[:half])
        elif kind == "length not a number":
            self.head(Content_Length="many")
            write(WHOLE)
        else:
            self.head(500 if kind == "broken server" else 404)


@contextlib.contextmanager
def mirrors():
    """Serves WHOLE in all ways: the address, and how often each was asked."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.asked, server.daemon_threads = {}, True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked
        server.shutdown()


def mirror_trial(kind: str) -> dict:
    """A mirror before one that is good: the file that comes, from which, how long it took."""
    silence, limit = download.TIMEOUT, download.LIMIT
    download.TIMEOUT, download.LIMIT = 0.5, 3
    try:
        with mirrors() as (url, asked), tempfile.TemporaryDirectory() as folder:
            names = (f"{url}/{kind.replace(' ', '%20')}", f"{url}/no%20length")
            md5 = hashlib.md5(WHOLE).hexdigest()
            source = download.Source("noise", (), print, ("it", "packed"), names, md5, len(WHOLE))
            began, archive = time.monotonic(), Path(folder, "packed")
            alone, error = source._replace(mirrors=names[:1]), ""
            try:
                download._download(alone, archive)
            except DataError as caught:
                error = str(caught)
            first = archive.exists()
            left = [] if first else os.listdir(folder)
            archive.unlink(missing_ok=True)
            same = download._download(source, archive).read_bytes() == WHOLE
            took = time.monotonic() - began
    finally:
        download.TIMEOUT, download.LIMIT = silence, limit
    most = max(asked.values()) if kind != "redirect for ever" else 0
    told = error.partition("(")[2][:120].replace(url, "")
    return {"first": first, "error": told, "same": same, "left": left, "most": most} | {
        "seconds": took,
        "good": kind in GOOD,
    }


def mirror_holds(seen: dict) -> bool:
    right = seen["first"] is seen["good"] and seen["same"] and not seen["left"]
    return right and seen["seconds"] < 20 and seen["most"] <= 2 * download.TRIES + 1


# --- the page ------------------------------------------------------------------------------------


def trials() -> dict[str, tuple]:
    """Each trial's name, with what is run and how it is judged."""
    found = {f"mirror/{kind}": (mirror_trial, mirror_holds, (kind,)) for kind in MIRRORS}
    found |= {f"image/{kind}": (image_trial, image_holds, (kind,)) for kind in BROKEN}
    found |= {f"disk/{kind}": (disk_trial, disk_holds, (kind,)) for kind in DISKS}
    found |= {f"damage/{seed}": (damage_trial, damage_holds, (seed,)) for seed in range(30)}
    found |= {f"shared/{workers}": (shared_trial, shared_holds, (workers,)) for workers in (1, 2)}
    return found | {f"signal/{s}": (signal_trial, signals_hold, (s,)) for s in range(40)}


def report(signals: dict[str, dict]) -> list[str]:
    """Lines for the page."""
    seen = [result["seen"] for result in signals.values() if "signals" in result["seen"]]
    if not seen:
        return []
    count, slowest = sum(len(s["signals"]) for s in seen), max(s["slowest"] for s in seen)
    return [
        *("", "## Stopped by signals", ""),
        f"{count} signals in {len(seen)} queues; the slowest end after SIGTERM or SIGINT took "
        f"{slowest:.1f} s.",
    ]
