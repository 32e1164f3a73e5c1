"""Optimizers, counters and DDP that load no compiler do what torch's do."""

import subprocess
import sys

import pytest
import torch
from places import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raysurl.nets import eager
from raysurl.nets.counting import flops
from raysurl.nets.encoders import build_encoder

KINDS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"weight_decay": 0.01},
    "AdamW": {"weight_decay": 0.01},
    "LBFGS": {"max_iter": 3},
}


def stepped(kind, settings, start):
    """Weights after six steps, of which three after the state went through `state_dict`."""
    parameter = nn.Parameter(start.clone())
    optimizer = kind([parameter], lr=0.05, **settings)

    def loss():
        optimizer.zero_grad()
        value = ((parameter - 1) ** 4).sum()
        value.backward()
        return value

    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            optimizer = kind([parameter], lr=0.05, **settings)
            optimizer.load_state_dict(state)
        if kind.__name__ == "LBFGS":
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_torch(name):
    start = torch.linspace(-1, 1, 6).view(2, 3)
    ours, theirs = (stepped(getattr(m, name), KINDS[name], start) for m in (eager, torch.optim))
    assert not torch.equal(ours, start)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_operations_are_those_that_torch_counts(name):
    net, x = (
        build_encoder(name, small_stem=True, maxpool=False, norm="local").eval(),
        torch.zeros(2, 3, 16, 16),
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        net(x)
    assert flops(net, x) == counted.get_total_flops() > 10**6


ALL = """
import sys
import torch
from raysurl import distributed
from raysurl.nets import eager
from raysurl.nets.counting import flops
from raysurl.nets.drawing import drawn_from
from raysurl.train.optim import LARS
with drawn_from(torch.Generator()):
    net = torch.nn.Linear(3, 4)
flops(net, torch.ones(2, 3))
net(torch.ones(2, 3)).sum().backward()
lars = LARS(net.parameters(), lr=.1, momentum=.9, weight_decay=0., trust=.001)
for made in (eager.SGD(net.parameters()), eager.Adam(net.parameters()), lars):
    made.step()
    made.load_state_dict(made.state_dict())
    made.zero_grad(set_to_none=False)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
wrapped = distributed.wrap(net, torch.device("cpu"), ranks=2)
with wrapped.no_sync():
    wrapped(torch.ones(2, 3)).sum().backward()
wrapped(torch.ones(2, 3)).sum().backward()
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_none_of_it_loads_the_compiler():
    assert subprocess.run([sys.executable, "-c", ALL], cwd=ROOT, check=False).returncode == 0


THEN_COMPILED = """
import torch
from raysurl import distributed
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
wrapped = distributed.wrap(torch.nn.Linear(3, 4), torch.device("cpu"), ranks=2)
compiled = torch.compile(wrapped, backend="eager")
x = torch.ones(2, 3)
assert torch.equal(compiled(x), wrapped(x))
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
"""


@pytest.mark.slow
def test_the_compiler_is_there_when_it_is_asked_for_afterwards():
    assert subprocess.run([sys.executable, "-c", THEN_COMPILED], cwd=ROOT, check=False).returncode == 0
