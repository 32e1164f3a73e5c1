"""Serve a trained encoder over HTTP: images in, embeddings, neighbours or classes out."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence

from raysurl.errors import InputError, RunError
from raysurl.recipe import take

REPLICAS = "raysurl.scale.serve"  # Ray is imported only when all else is right
SETTINGS = {
    "run": ("DIR | FILE", "", "a finished run, an encoder.safetensors, or a classifier-NAME.safetensors"),
    "index": (
        "DIR",
        "",
        "what `raysurl index` wrote, to ask for neighbours; alone: the encoder in it is served",
    ),
    "host": ("address", "127.0.0.1", "where it listens; any but this machine's own needs a token"),
    "port": ("whole number", "8000", "where it listens; 0: any that is free"),
    "token_file": (
        "FILE",
        "",
        "holds the token that requests must bring; or the variable RAYSURL_SERVE_TOKEN",
    ),
    "replicas": ("whole number", "1", "processes that hold the model and share the requests"),
    "gpus": ("number", "", "of a replica, 0.5 for two on one; by default 1 where there are any"),
    "threads": ("whole number", "", "CPU threads of a replica; by default its share of the cores"),
    "max_batch_size": ("whole number", "32", "images that go through the network together at most"),
    "batch_wait_s": ("number", "0.005", "that the first image of a batch waits for others"),
    "max_bytes": ("whole number", "10000000", "that the body of a request may have"),
    "max_pixels": ("whole number", "50000000", "that an image may have, by its header"),
    "queue": ("whole number", "256", "requests at once; one more is told to try again"),
    "timeout_s": (
        "number",
        "30",
        "for a body to come, for an answer, and for those inside when it is stopped",
    ),
}


def main(arguments: Sequence[str]) -> None:
    """`serve.py run=DIR|FILE [index=DIR] [host=127.0.0.1] [port=8000]`: until Ctrl-C or SIGTERM, on Ray Serve.

    POST /embed, /neighbours (with index=) and /classify (a run that was fine-tuned) take one image each; GET /health,
    /metrics, and / say how it is. What it needs beside raysurl: `pip install 'raysurl[serve]'`.
    """
    mine, rest = take(arguments, *SETTINGS)
    if rest:
        raise InputError(f"{next(iter(rest))} is not a setting of serve; there are {', '.join(SETTINGS)}")
    from raysurl.serving.asked import TOKEN, asked_for, listen

    asked = asked_for(mine)
    os.environ.pop(TOKEN, None)  # Ray's processes would inherit it
    where = listen(asked.host, asked.port)
    # the port is ours: what follows imports torch, and then starts Ray
    import torch

    from raysurl.serving.gate import Gate, described
    from raysurl.serving.listener import listening
    from raysurl.serving.model import load_served, missing_pages

    model = load_served(
        asked, torch.device("cpu")
    )  # what is wrong with it is said before anything is started
    gate = Gate(
        asked.limits,
        asked.token,
        asked.host,
        described(model.about(), asked.limits, missing_pages(model)),
    )
    del model
    with (
        listening(gate, where, asked.limits.timeout_s) as listener,
        importlib.import_module(REPLICAS).replicas(asked) as backend,
        listener.drained(),
    ):
        gate.open(backend)
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        print(f"serving at http://{host}:{where.getsockname()[1]}; Ctrl-C ends it", flush=True)
        while listener.lives:
            time.sleep(0.2)
    raise RunError("the HTTP server has ended")
