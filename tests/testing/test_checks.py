"""raysurl.testing: what a package of others offers passes, and each planted fault is named."""

import dataclasses

import numpy as np
import plugging
import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from raysurl import distributed
from raysurl.errors import InputError
from raysurl.memory import Queue
from raysurl.method import Method, MethodConfig, Output, Push, detached
from raysurl.nets.heads import mlp
from raysurl.testing import check_data, check_encoder, check_method, check_policy, check_protocol
from raysurl.testing.runs import compare_ranks, first_steps
from raysurl.testing.small import recipe_for
from raysurl.views import Policy


@pytest.fixture(autouse=True)
def package(monkeypatch):
    monkeypatch.syspath_prepend(plugging.installed())


@pytest.mark.slow
def test_what_another_package_offers_passes_by_name():
    check_method("pulled", {"dim": 4})
    check_encoder("patches", {"width": 8})
    check_data("stripes", {"samples": 30})
    check_protocol("spread")
    check_policy("gentle")


@pytest.mark.slow
def test_a_method_of_another_package_on_two_processes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(plugging.installed()))
    check_method("pulled", ranks=True)


class Sound(Method):
    """Two views pulled together, beside the keys of a queue."""

    class Config(MethodConfig):
        queue_size: int = Field(48, ge=1)

        def views(self):
            return {"one": "digits", "two": "one"}

        def remembers(self):
            return Queue

        def memory(self, num_samples, seed):
            return Queue(self.queue_size, 16, seed=seed)

    def __init__(self, config, build):
        super().__init__()
        self.encoder = build.encoder
        self.head = mlp(build.dim, 16, 16, None)
        self.calls = 0

    def loss(self, one, two, snapshot):
        return -(one * two).sum(1).mean() + (one @ snapshot["features"].T).square().mean()

    def forward(self, batch, snapshot, progress):
        one, two = (F.normalize(self.head(self.encoder(batch.views[v])), dim=1) for v in ("one", "two"))
        loss = self.loss(one, two, snapshot)
        return Output(loss, detached(pull=loss), Push(two.detach()[None], batch.index))


class AsksItsRank(Sound):
    def loss(self, one, two, snapshot):
        return super().loss(one, two, snapshot) * (1 + distributed.rank())


class Counts(Sound):
    def loss(self, one, two, snapshot):
        self.calls += 1
        return super().loss(one, two, snapshot) * (1 + 0.1 * self.calls)


class Remembers(Sound):
    calls_of_all = 0

    def loss(self, one, two, snapshot):
        Remembers.calls_of_all += 1
        return super().loss(one, two, snapshot) * (1 + 0.1 * Remembers.calls_of_all)


class Draws(Sound):
    def loss(self, one, two, snapshot):
        return super().loss(one, two, snapshot) + torch.rand(()) / 10


class Unused(Sound):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.extra = nn.Linear(3, 3)


class Dead(Sound):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.extra = nn.Linear(16, 16)

    def loss(self, one, two, snapshot):
        return super().loss(one, two, snapshot) + 0 * self.extra(one).sum()


class Detached(Sound):
    def loss(self, one, two, snapshot):
        return super().loss(one.detach(), two.detach(), snapshot)


class PerSample(Sound):
    def loss(self, one, two, snapshot):
        return -(one * two).sum(1)


class Infinite(Sound):
    def loss(self, one, two, snapshot):
        return super().loss(one, two, snapshot) / torch.zeros(())


class Logs(Sound):
    def forward(self, batch, snapshot, progress):
        return dataclasses.replace(super().forward(batch, snapshot, progress), logs={"pull": torch.ones(2)})


class LiveKeys(Sound):
    def forward(self, batch, snapshot, progress):
        found = super().forward(batch, snapshot, progress)
        keys = self.head(self.encoder(batch.views["one"]))[None]
        return dataclasses.replace(found, push=Push(keys, batch.index))


class FlatKeys(Sound):
    def forward(self, batch, snapshot, progress):
        found = super().forward(batch, snapshot, progress)
        return dataclasses.replace(found, push=Push(found.push.keys[0], batch.index))


class OtherNetwork(Sound):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.encoder = nn.Sequential(build.encoder, nn.Linear(build.dim, build.dim))


class Same(Sound):
    def loss(self, one, two, snapshot):
        return super().loss(one, two, snapshot) * 0 + self.head[0].weight.sum() * 0


class Ascends(Sound):
    def loss(self, one, two, snapshot):
        pulled = super().loss(one, two, snapshot)
        return 2 * pulled.detach() - pulled


class Forgetful(Queue):
    def state_dict(self):
        return {**super().state_dict(), "features": torch.zeros_like(self.features)}


class LosesKeys(Sound):
    class Config(Sound.Config):
        def remembers(self):
            return Forgetful

        def memory(self, num_samples, seed):
            return Forgetful(self.queue_size, 16, seed=seed)


class OtherMemory(Sound):
    class Config(Sound.Config):
        def remembers(self):
            return Forgetful


class NoViews(Sound):
    class Config(Sound.Config):
        def views(self):
            return {}


class NoConfig(Sound):
    Config = None


FAULTS = {
    AsksItsRank: "a method sees no ranks: AsksItsRank asks for rank",
    Counts: "goes on as if it had not been interrupted: its losses differ; what it keeps .* not all in its state_dict",
    Remembers: "two runs of one seed are equal: .* keeps something outside of itself",
    Draws: "two runs of one seed are equal: .* draws from a generator that the process shares",
    Unused: r"the gradient reaches every trained parameter: extra.weight has none",
    Dead: "the gradient reaches every trained parameter: that of extra.weight is zero everywhere",
    Detached: "a step gives an Output: its loss has no gradient",
    PerSample: r"a step gives an Output: its loss is a tensor of shape \(16,\), not one number",
    Infinite: "a step gives an Output: its loss is .*inf, not a finite number",
    Logs: r"logs\['pull'\] is a tensor of shape \(2,\), not a tensor of one number",
    LiveKeys: "push.keys have a gradient; detach them",
    FlatKeys: r"push.keys are a tensor of shape \(16, 16\), not \(views, 16, width\)",
    OtherNetwork: "method.encoder is what is kept: it is not build.encoder",
    Same: "the gradient reaches every trained parameter: that of encoder.* is zero everywhere",
    Ascends: "twenty steps on one batch lower its loss: it was",
    LosesKeys: r"memory keeps what is asked of it: one that was given its state_dict\(\) differs",
    OtherMemory: r"Config.memory\(\) makes a Queue, not Forgetful",
    NoViews: r"a method has views: its Config.views\(\) is empty",
    NoConfig: "its Config is not a raysurl.method.MethodConfig",
}


@pytest.mark.slow
def test_a_sound_method_passes():
    check_method(Sound, {"queue_size": 32})


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_of_a_method_is_named(kind):
    with pytest.raises((AssertionError, InputError), match=FAULTS[kind]) as error:
        check_method(kind)
    assert "\n" not in str(error.value)


def test_a_wrong_setting_of_a_method_is_named():
    with pytest.raises(
        InputError, match=r"unknown recipe key method\.queue; did you mean method\.queue_size\?"
    ):
        check_method(Sound, {"queue": 32})


def test_two_processes_that_differ_are_named():
    (alone,) = first_steps(0, [Sound], recipe_for, 1).values()
    compare_ranks(alone, [alone, alone])
    name = next(iter(alone["change"]))
    other = {**alone, "change": {**alone["change"], name: 1.01 * alone["change"][name]}}
    with pytest.raises(
        AssertionError, match=f"a step on two processes is a step on one: the change of {name}"
    ):
        compare_ranks(alone, [alone, other])
    with pytest.raises(AssertionError, match="a step on one: the loss differs"):
        compare_ranks(alone, [{**alone, "loss": alone["loss"] + 1e-3}, alone])


# -------------------------------------------------------------------- encoders


class Net(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


class OfTheBatch(Net):
    def forward(self, x):
        out = super().forward(x)
        return out - out.mean(0)


class WrongWidth(Net):
    dim = 9


class Noisy(Net):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Constant(Net):
    def forward(self, x):
        return super().forward(0 * x)


class Spare(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Images(Net):
    def forward(self, x):
        return self.layer(x)


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.other = self.layer


class Fixed(Net):
    def __init__(self):
        super().__init__()
        for p in self.parameters():
            p.data.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WrongWidth, "says dim=9 and gives vectors of 6 values"),
        (Images, r"gives torch.float32 \(2, 6, 6, 6\) for two images"),
        (OfTheBatch, "an image has one vector, whatever is beside it: an image alone has another vector"),
        (Noisy, "the same images have other vectors when asked again"),
        (Constant, "two images have the same vector"),
        (Spare, "the gradient reaches every trained parameter: spare.weight has none"),
        (Tied, "encoder.safetensors gives the same vectors: it cannot be written"),
        (Fixed, "the seed decides the initial weights: two seeds have the same"),
        (lambda: nn.Linear(2, 2), "cannot see views of 8 pixels: .*shapes cannot be multiplied"),
        (3, "is a int; name a subclass of nn.Module"),
    ],
)
def test_a_fault_of_an_encoder_is_named(kind, said):
    with pytest.raises((AssertionError, InputError), match=said) as error:
        check_encoder(kind)
    assert "\n" not in str(error.value)


def test_a_sound_encoder_passes():
    check_encoder(Net, {"width": 4}, size=12)


# -------------------------------------------------------------------- data, protocols, policies


def stripes(data, split, **changes):
    from raysurl_example import data as package

    found = package.stripes(data, split, samples=12)
    return dataclasses.replace(found, **{key: make(found, split) for key, make in changes.items()})


class Unpicklable:
    in_memory, grouped = True, False

    def __init__(self, reader):
        self.read = lambda *given: reader.read(*given)


class Flickering:
    in_memory, grouped, calls = True, False, 0

    def __init__(self, reader):
        self.reader = reader

    def read(self, *given):
        Flickering.calls += 1
        return [image // Flickering.calls for image in self.reader.read(*given)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"labels": lambda s, _: s.labels[:-1]},
            "split train: it lists 12 samples and has 11 labels",
        ),
        (
            {"labels": lambda s, _: s.labels + 1},
            "labels run from 1 to 3, and of its 3 classes they are 0 … 2",
        ),
        ({"labels": lambda s, _: s.labels / 2}, "its labels are not an array of whole numbers"),
        ({"tags": lambda s, _: np.zeros((12, 2), np.int8)}, "its tags are of 2 classes and it names 0"),
        (
            {"listing": lambda s, _: s.listing.select(np.zeros(12, np.int64))},
            "two samples have the same name",
        ),
        ({"reader": lambda s, _: Unpicklable(s.reader)}, "other processes can read it: it cannot be pickled"),
        (
            {"reader": lambda s, _: Flickering(s.reader)},
            "read again, in another order and from a copy, they",
        ),
        (
            {"class_names": lambda s, split: (split, "b", "c")},
            "the test set is of the same kind: its classes are",
        ),
    ],
)
def test_a_fault_of_a_data_source_is_named(changes, said):
    if "tags" in changes:
        changes = {**changes, "labels": lambda s, _: None}
    with pytest.raises((AssertionError, InputError), match=said) as error:
        check_data(lambda data, split: stripes(data, split, **changes))
    assert "\n" not in str(error.value)


class Judge:
    NEEDS, OF_PIXELS = frozenset({"labels"}), False

    def __init__(self, name="eval/mine", value=1.0):
        self.name, self.value = name, value

    def run(self, features, settings, *, seed=0):
        yield self.name, self.value

    def names(self, settings, division):
        return ["eval/mine"]


def test_a_fault_of_a_protocol_or_policy_is_named():
    check_protocol(Judge())
    for fault, said in (
        (Judge("eval/other"), "it gives what it names: it names .*mine.* and gives .*other"),
        (Judge(value=float("nan")), "eval/mine is not finite"),
        (object(), "has no NEEDS; a protocol has"),
    ):
        with pytest.raises((AssertionError, InputError), match=said):
            check_protocol(fault)
    check_policy(Policy(crop=(0.5, 1.0)))
    for fault, said in (
        ({"flip": 2}, "is no raysurl.views.Policy.*flip"),
        (Policy(blur_p=1, blur_kernel=31), "too wide"),
    ):
        with pytest.raises(InputError, match=said):
            check_policy(fault)
