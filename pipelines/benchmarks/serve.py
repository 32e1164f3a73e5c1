"""What serving costs: many clients against `raysurl serve`, beside a bare loop of the same encoder.

The encoder has its initial weights, which cost as much as trained ones, and the images are JPEG files of smooth noise.
The clients are threads of this process, on the machine that serves: what they take is missing there. The bare loop has
the same batch size and threads, and is given images that are decoded and prepared already. Memory is that of the
replica and of the process that listens, as /metrics says it every 10 s of the load, and after it.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for
from PIL import Image

from raysurl import streams
from raysurl.data.gather import stack
from raysurl.embed import embed_images
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import RunError
from raysurl.recipe import Recipe, load_recipe
from raysurl.serving.asked import listen
from raysurl.train.run_directory import commit, hardware

ROOT = Path(__file__).parents[2]
FILE = ROOT / "results" / "benchmarks" / "serve.json"
EVERY_S = 10.0
IMAGES = 64


def main(arguments: list[str]) -> None:
    """`serve [encoder=resnet18] [size=64] [clients=50] [seconds=60] [threads=2] [max_batch_size=32] [replicas=1]`."""
    given: dict[str, Any] = {
        "encoder": "resnet18",
        "size": 64,
        "clients": 50,
        "seconds": 60,
        "threads": 2,
        "max_batch_size": 32,
        "replicas": 1,
    }
    given = asked_for(arguments, given)
    recipe = load_recipe(
        [f"encoder.name={given['encoder']}", f"views.size={given['size']}", "data.name=digits"]
    )
    images = pictures(given["size"])
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(folder), encoder_of(recipe), recipe)
        bare = bare_loop(recipe, images, given)
        found = {**given, **under_load(Path(folder), images, given), "bare images/s": bare}
    found["ratio"] = found["requests/s"] / bare
    found |= {"commit": commit(), "hardware": hardware(torch.device("cpu"))}
    stored = json.loads(FILE.read_text()) if FILE.is_file() else {}
    name = f"{given['encoder']} {given['size']} px, {given['clients']} clients, {given['replicas']} replicas"
    FILE.write_text(json.dumps({**stored, name: found}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=1))


def pictures(size: int) -> list[bytes]:
    """JPEG files, half as large again as the view on each side."""
    random, found = streams.numpy_stream(0, "pictures"), []
    for _ in range(IMAGES):
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((size * 3 // 2, size * 3 // 2)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def bare_loop(recipe: Recipe, images: list[bytes], given: dict[str, Any], seconds: float = 8.0) -> float:
    """Images in a second through the network alone, the resizing of decoded images included."""
    torch.set_num_threads(given["threads"])
    encoder = encoder_of(recipe).eval()
    decoded = [np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1) for image in images]
    batch = stack([decoded[i % IMAGES] for i in range(given["max_batch_size"])])
    device = torch.device("cpu")
    for _ in range(3):
        embed_images(encoder, recipe, batch, device)
    since, done = time.perf_counter(), 0
    while time.perf_counter() - since < seconds:
        embed_images(encoder, recipe, batch, device)
        done += len(batch)
    return done / (time.perf_counter() - since)


# -------------------------------------------------------------------- clients


def under_load(folder: Path, images: list[bytes], given: dict[str, Any]) -> dict[str, Any]:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    names = ("threads", "max_batch_size", "replicas")
    settings = [
        f"run={folder}/encoder.safetensors",
        f"port={port}",
        *(f"{name}={given[name]}" for name in names),
    ]
    process = subprocess.Popen([sys.executable, str(ROOT / "pipelines" / "serve.py"), *settings])
    try:
        wait_for(port, process)
        before = metrics(port)
        statuses, seconds, during = clients(port, images, given)
        after = metrics(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    batches = after["batches"] - before["batches"]
    return {
        "requests/s": len(seconds) / given["seconds"],
        "p50 ms": 1000 * float(np.percentile(seconds, 50)),
        "p99 ms": 1000 * float(np.percentile(seconds, 99)),
        "requests": len(seconds),
        "not 200": sum(count for status, count in statuses.items() if status != 200),
        "statuses": {str(status): count for status, count in statuses.items()},
        "mean batch": (after["images"] - before["images"]) / batches,
        **{f"{of} MB": [round(at[of] / 1e6, 1) for at in (*during, after)] for of in ("replica", "listener")},
        "exit code": process.returncode,
    }


def clients(
    port: int, images: list[bytes], given: dict[str, Any]
) -> tuple[Counter[Any], list[float], list[dict[str, float]]]:
    """What was answered, how long each took, and the metrics every EVERY_S."""
    statuses: Counter[Any] = Counter()
    seconds: list[float] = []
    end = time.monotonic() + given["seconds"]

    def client(number: int) -> None:
        connection, i = http.client.HTTPConnection("127.0.0.1", port, timeout=60), number
        while time.monotonic() < end:
            since = time.perf_counter()
            try:
                connection.request("POST", "/embed", images[i % IMAGES], {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                status: Any = answer.status
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = type(error).__name__
            statuses[status] += 1
            seconds.append(time.perf_counter() - since)
            i += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(given["clients"])]
    for thread in threads:
        thread.start()
    during = []
    while time.monotonic() + EVERY_S < end:
        time.sleep(EVERY_S)
        during.append(metrics(port))
    for thread in threads:
        thread.join()
    return statuses, seconds, during


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RunError(f"the service ended with {process.returncode}")
        try:
            if get(port, "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RunError("the service was not ready in two minutes")


def metrics(port: int) -> dict[str, float]:
    text = get(port, "/metrics")[1].decode()
    names = {
        "batches": "raysurl_batch_size_count",
        "images": "raysurl_batch_size_sum",
        "replica": "raysurl_replica_resident_bytes",
        "listener": "process_resident_memory_bytes",
    }
    return {
        key: sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        for key, name in names.items()
    }


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found
