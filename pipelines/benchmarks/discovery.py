"""What neighbourhood discovery costs: time and peak memory of `discover` beside the plain double loop.

The plain form keeps one row of similarities at a time and finds each sample's place among the anchors by walking both
lists, O(N²) Python steps, as the authors' code does. N = 10^6 is not run: its time is that of the largest N run times
the square of the ratio, its memory follows from the block size and the rows themselves; both are labelled so.
"""

import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from raysurl.methods.superand import discover
from raysurl.recipe import yaml_argument

TAU, FRACTION = 0.1, 0.25
LOOP_UP_TO = 10_000  # the double loop takes minutes beyond


def main(arguments: list[str]) -> None:
    """`discovery [sizes=[10000,50000,200000]] [dim=128] [threads=2] [device=cpu] [loop_up_to=10000]`."""
    given = dict(yaml_argument(a) for a in arguments)
    sizes, dim = given.pop("sizes", [10_000, 50_000, 200_000]), int(given.pop("dim", 128))
    threads, device = int(given.pop("threads", 2)), str(given.pop("device", "cpu"))
    loop_up_to = int(given.pop("loop_up_to", LOOP_UP_TO))
    print(
        f"discovery, D={dim}, {threads} thread(s), {device}; peak memory is above that of the imports and the bank"
    )
    for size in sizes:
        names = ["blocks", *(["double loop"] if size <= loop_up_to else [])]
        for name in names:
            seconds, mib = measured(name, size, dim, threads, device)
            print(f"N={size:>9,} {name:12} {seconds:9.1f} s {mib:8.0f} MiB", flush=True)
            if name == "blocks":
                largest, last = size, seconds
    ratio = 1e6 / largest
    print(
        f"N=1,000,000 blocks       {last * ratio**2:9.0f} s (extrapolated from N={largest:,}, × {ratio:.0f}²)"
    )


def measured(name: str, size: int, dim: int, threads: int, device: str) -> tuple[float, float]:
    """Seconds and peak MiB in a fresh process, so that one measurement's memory is not another's."""
    code = (
        f"from benchmarks import discovery; discovery.alone({name!r}, {size}, {dim}, {threads}, {device!r})"
    )
    path = [p for p in sys.path if p]
    environment = f"import sys; sys.path[:0] = {path!r}; {code}"
    out = subprocess.run([sys.executable, "-c", environment], check=True, capture_output=True, text=True)
    seconds, mib = out.stdout.split()
    return float(seconds), float(mib)


def alone(name: str, size: int, dim: int, threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    bank = F.normalize(torch.randn(size, dim, generator=torch.Generator().manual_seed(0)), dim=1).to(device)
    discover(bank[:300], tau=TAU, fraction=FRACTION, num_neighbours=1)  # allocators and libraries warm up
    before, since = peak_mib(device), time.perf_counter()
    if name == "blocks":
        discover(bank, tau=TAU, fraction=FRACTION, num_neighbours=1)
    else:
        double_loop(bank)
    if device != "cpu":
        torch.cuda.synchronize()
    print(time.perf_counter() - since, peak_mib(device) - before)


def peak_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def double_loop(bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Anchors, neighbours and each sample's place, sample by sample."""
    size = len(bank)
    entropy, nearest = torch.empty(size), torch.empty(size, dtype=torch.int64)
    for i in range(size):
        similarity = bank @ bank[i]
        log_p = F.log_softmax(similarity / TAU, dim=0)
        entropy[i] = -(log_p.exp() * log_p).sum()
        similarity[i] = -torch.inf
        nearest[i] = similarity.argmax()
    anchors = entropy.argsort()[: int(size * FRACTION)]
    listed = anchors.tolist()
    place = []
    for i in range(size):
        found = -1
        for rank, anchor in enumerate(listed):
            if anchor == i:
                found = rank
        place.append(found)
    return anchors, nearest[anchors], place
