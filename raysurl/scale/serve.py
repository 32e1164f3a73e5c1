"""The model on Ray Serve: replicas that decode and batch, and the handle by which the gate asks them.

HTTP is not Serve's here (`proxy_location="Disabled"`): limits must hold where bytes come in, and the port is open, or
refused, before anything is started. On a cluster whose Serve others use too, this is one more application of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from raysurl import stopping
from raysurl.data.decode import Array
from raysurl.errors import InputError, RunError, first_line
from raysurl.runtime import named_device
from raysurl.scale import cluster, failure, joining
from raysurl.serving.answers import Ask, Reply, Row, answer, resident
from raysurl.serving.asked import AskedService
from raysurl.serving.gate import UnavailableError
from raysurl.serving.model import ServedModel, load_served

QUIET = {"log_level": "ERROR", "enable_access_log": False}
TOGETHER_S = 0.002  # that a request waits for others to travel with
LEAVE_S = 5.0  # that a replica may take to end


@dataclass(frozen=True)
class Share:
    """What one replica takes."""

    threads: int
    gpus: float

    @property
    def cpus(self) -> int:
        return 1 if self.gpus else self.threads


def share(asked: AskedService) -> Share:
    """Of the cluster that is joined, node by node: Serve would wait for ever for what none holds. Raises InputError."""
    nodes = cluster.alive()
    some_gpu = any(node.get("GPU", 0) for node in nodes)
    gpus = asked.gpus if asked.gpus is not None else float(some_gpu)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    threads = asked.threads or (1 if gpus else cluster.threads_each(cores, asked.replicas))
    found = Share(threads, gpus)
    cluster.check_room("replicas", asked.replicas, found.cpus, gpus, ", or less threads= or gpus= for each")
    return found


class Replica:
    """One process with the whole model. Decoding has its threads, the network one of its own, which torch spreads."""

    def __init__(self, asked: AskedService, taken: Share, name: str) -> None:
        torch.set_num_threads(taken.threads)
        logging.getLogger("raysurl").setLevel(logging.ERROR)
        try:
            self.model: ServedModel = load_served(asked, named_device("cuda" if taken.gpus else "cpu"))
        except (InputError, RunError) as error:
            failure.tell(name, error)
            raise
        self.max_pixels = asked.limits.max_pixels
        self.decoders = ThreadPoolExecutor(taken.threads, "decode")
        self.network = ThreadPoolExecutor(1, "network", torch.set_num_threads, (taken.threads,))
        self.free = asyncio.Event()
        self.free.set()
        self.id = uuid.uuid4().hex[:8]
        for batched in (self._embedded, self._scored):
            batched.set_max_batch_size(asked.max_batch_size)
            batched.set_batch_wait_timeout_s(asked.batch_wait_s)

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """Each goes its own way: into batches with whatever else is here."""
        return await asyncio.gather(*map(self._answer, asks))

    async def _answer(self, ask: Ask) -> Reply:
        reply = await answer(self.model, ask, self.max_pixels, self._forward, self._aside)
        return reply._replace(replica=self.id, resident=resident())

    async def alive(self) -> int:
        """Through the network, as an image goes; the process's number."""
        await self._forward("encoder", self.model.blank())
        return os.getpid()

    async def _aside(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work, *arguments)

    async def _forward(self, which: str, image: Array) -> Row:
        batched: Any = self._embedded if which == "encoder" else self._scored
        # Serve closes a batch by its clock, also while the network works on the one before: who enters now would be in
        # one of few, and so would all after it
        while not self.free.is_set():
            await self.free.wait()
        found: Row = await batched(image)
        return found

    @serve.batch  # type: ignore[untyped-decorator]
    async def _embedded(self, images: list[Array]) -> list[Row]:
        return await self._rows(self.model.encoder, images)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _scored(self, images: list[Array]) -> list[Row]:
        return await self._rows(self.model.classifier, images)

    async def _rows(self, fed: Any, images: list[Array]) -> list[Row]:
        self.free.clear()
        try:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self.network, self.model.forward, fed, images)
        finally:
            self.free.set()
        return [Row(row, len(images) if i == 0 else 0) for i, row in enumerate(rows)]


class Replicas:
    """The backend of the gate. A replica that dies is started again; what it worked on is asked of another.

    A call of Serve costs some milliseconds of both processes, more than a small network takes for an image: requests
    that come at about the same time travel in one.
    """

    def __init__(self, handle: Any, most: int) -> None:
        self._handle, self._most = handle, most
        self._waiting: list[tuple[Ask, asyncio.Future[Reply]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sent: set[asyncio.Task[None]] = set()

    async def answer(self, ask: Ask) -> Reply:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((ask, reply))
        if len(self._waiting) >= self._most:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(TOGETHER_S, self._send)
        return await reply

    async def alive(self) -> None:
        try:
            await self._handle.alive.remote()
        except (RayError, RayServeException):
            raise UnavailableError from None

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        together, self._waiting = self._waiting, []
        if together:
            task = asyncio.get_running_loop().create_task(self._answer(together))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)

    async def _answer(self, together: list[tuple[Ask, asyncio.Future[Reply]]]) -> None:
        together = [(ask, reply) for ask, reply in together if not reply.done()]  # some have been given up
        try:
            found = await self._asked([ask for ask, _ in together])
        except Exception as error:  # it belongs to whoever waits
            for _, reply in together:
                if not reply.done():
                    reply.set_exception(error)
            return
        for (_, reply), one in zip(together, found, strict=True):
            if not reply.done():
                reply.set_result(one)

    async def _asked(self, asks: list[Ask]) -> list[Reply]:
        for again in (True, False):
            try:
                replies: list[Reply] = await self._handle.answer.remote(asks)
                return replies
            except RayActorError:
                if not again:
                    break
            except RayServeException:
                break
        raise UnavailableError


@contextlib.contextmanager
def replicas(asked: AskedService) -> Iterator[Replicas]:
    """Connect, start the replicas and wait until all have loaded the model; they end with the block.

    Raises InputError where the cluster cannot hold them, and RunError where they do not start.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15: whatever else runs would come before an answer
    joining.connect()
    taken, name = share(asked), f"raysurl-{uuid.uuid4().hex[:8]}"
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield Replicas(_started(replace(asked, token=None), taken, name), asked.max_batch_size)
    finally:
        stopping.renew()
        with stopping.held(), contextlib.suppress(Exception):  # a Ray that has gone has taken them along
            failure.forget(name)
            serve.delete(name, _blocking=False)


def _started(asked: AskedService, taken: Share, name: str) -> Any:
    """The handle of the application `name`, once every replica has loaded the model."""
    options: dict[str, Any] = {
        "num_replicas": asked.replicas,
        "max_ongoing_requests": 2 * asked.max_batch_size
        + taken.threads,  # one batch is decoded beside another
        "max_constructor_retry_count": 1,
        "graceful_shutdown_timeout_s": LEAVE_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "logging_config": QUIET,
        "ray_actor_options": {"num_cpus": taken.cpus, "num_gpus": taken.gpus},
    }
    try:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        application = serve.deployment(Replica, **options).bind(asked, taken, name)
        return serve.run(application, name=name, route_prefix=None, logging_config=QUIET)
    except (RayError, RayServeException, RuntimeError) as error:
        if found := failure.told_if_ray_lives(name):
            raise found from None
        raise RunError(f"the replicas did not start: {first_line(error)}") from error
