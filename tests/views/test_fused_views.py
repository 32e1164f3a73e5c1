"""The kernels of colour: their numbers by Triton's interpreter, and that they compile for a GPU without one."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("triton")

NUMBERS = """
    import torch
    from raysurl.views import POLICIES, fused
    from raysurl.views.draws import draw
    from raysurl.views.fixed import FixedView

    jitters = [(0.4, 0, 0, 0), (0, 0.8, 0.8, 0), (0, 0, 0, 0.5), (0.8, 0.8, 0.8, 0.2), (0.0, 0, 0, 0)]
    policies = [POLICIES["plain"].model_copy(update={"jitter": j, "jitter_p": 0.7, "gray_p": 0.3}) for j in jitters]
    # one tile of pixels, several, and several of which the last is not full
    for policy, size in [(p, 16) for p in (*policies, POLICIES["byol_1"])] + [(policies[3], 64), (policies[3], 45)]:
        view = FixedView(policy, size=size, mean=(0, 0, 0), std=(1, 1, 1), source=(size, size))
        images = torch.randint(0, 256, (9, 3, size, size), dtype=torch.uint8)
        rows = torch.from_numpy(view.rows(draw(policy, 9, seed=0, step=1, view="v")))
        part = dict(zip(view.widths, rows.split(list(view.widths.values()), dim=1), strict=True))
        planes = view._pixels(images, part)
        expected = view._coloured(planes.clone(), rows, part)
        found = fused.colours(planes.clone(), rows, view.starts, view.slots, len(view.blends))
        assert not torch.equal(found, planes)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
"""
COMPILES = """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from raysurl.views import fused

    for last in (False, True):
        constants = {"blend": 10, "slots": 6, "hue": 28, "turn": 3, "gray": 31}
        constants |= {"tiles2": 64, "block": 1024, "last": last}
        kinds = {n: "constexpr" if n in constants else "i32" for n in fused._colours.arg_names}
        kinds |= dict.fromkeys(("planes", "rows", "sums"), "*fp32")
        source = ASTSource(fn=fused._colours, signature=kinds, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.parametrize(
    ("script", "interpret"), [(NUMBERS, "1"), (COMPILES, "0")], ids=["numbers", "compiles"]
)
def test_the_kernels(script, interpret):
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
