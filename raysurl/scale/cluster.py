"""Whether the cluster can hold the run, checked before anything is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysurl.data.machine import asked_threads
from raysurl.errors import InputError
from raysurl.recipe import Recipe


@dataclass(frozen=True)
class Placement:
    """How many workers, and what each takes."""

    workers: int
    cpus: float
    gpus: float
    mark: int = 0  # bytes of memory by which the workers of one trial are told from all others

    @property
    def resources(self) -> dict[str, float]:
        extra = {"GPU": self.gpus, "memory": float(self.mark)}
        return {"CPU": self.cpus, **{name: amount for name, amount in extra.items() if amount}}


def place(recipe: Recipe) -> Placement:
    """The workers of the recipe, or by default one per GPU, else `scale.cpu_workers` with all cores as threads.

    Checked node by node, because Ray retries for ever what no node can hold. Raises InputError.
    """
    nodes = alive()
    gpus = int(sum(n.get("GPU", 0) for n in nodes))
    cores = [int(n.get("CPU", 0)) for n in nodes]
    wanted = recipe.scale.workers or _divisor(
        recipe, max(gpus or min(recipe.scale.cpu_workers, sum(cores)), 1)
    )
    threads = recipe.scale.threads or (1 if gpus else threads_each(cores, wanted))
    each = Placement(1, cpus=threads, gpus=1 if gpus else 0)
    room = sum(fit(n, each.cpus, each.gpus) for n in nodes)
    if wanted > room:
        raise InputError(
            f"scale.workers={wanted} needs {each.resources} each and the cluster's {len(nodes)} node(s) hold at most"
            f" {room}; use scale.workers={max(room, 1)} or fewer"
            + ("" if threads == 1 else f", or fewer than scale.threads={threads}")
        )
    if recipe.train.batch_size % (wanted * recipe.train.accumulate):
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} must be a multiple of workers × train.accumulate ="
            f" {wanted} × {recipe.train.accumulate}"
        )
    return Placement(wanted, each.cpus, each.gpus)


def threads_each(cores: Sequence[int], workers: int) -> int:
    """The most threads that each of so many workers can have on nodes of so many cores, within OMP_NUM_THREADS."""
    most = min(max(cores, default=1), asked_threads() or max(cores, default=1))
    return next((t for t in range(most, 1, -1) if sum(n // t for n in cores) >= workers), 1)


def alive() -> list[dict[str, float]]:
    """The resources of each node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_room(setting: str, count: int, cpus: int, gpus: float, or_else: str = "") -> None:
    """Raises InputError where the nodes do not hold `count` processes of so much each, as `setting=` asks for."""
    nodes = alive()
    room = sum(fit(node, cpus, gpus) for node in nodes)
    if count > room:
        takes = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        raise InputError(
            f"{setting}={count} take {takes} each and the cluster's {len(nodes)} node(s) hold {room}; use"
            f" {setting}={max(room, 1)} or fewer{or_else}"
        )


def fit(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many processes that take so much a node holds; at least one of the two is above 0."""
    by_cpu = int(node.get("CPU", 0) / cpus + 1e-9) if cpus else 10**6
    return min(by_cpu, int(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def _divisor(recipe: Recipe, at_most: int) -> int:
    """The largest number of workers, at most so many, that deals the batch evenly."""
    share = recipe.train.batch_size // recipe.train.accumulate
    return next(w for w in range(at_most, 0, -1) if share % w == 0)
