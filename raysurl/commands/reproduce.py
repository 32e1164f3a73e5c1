"""Run one published table, or rows of it, with its seeds, and say whether it came out as the paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from raysurl import stopping
from raysurl.commands import sweep
from raysurl.errors import InputError, RunError, UndecidedError

if TYPE_CHECKING:
    from raysurl.sweep.agreement import Agreement
    from raysurl.sweep.results import Sweep

LIKE = "sweep"  # whose settings it takes


def main(arguments: Sequence[str]) -> None:
    """`reproduce.py NAME [only.AXIS=LABEL …] [scale=cpu|photographs|full] [key=value …]`, exit code 1 where it came out
    otherwise than in the paper, 3 where that cannot be seen."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise InputError(
            "name the table first: reproduce.py NAME, a file of search_spaces/, for example ressl_table2"
        )
    asked = sweep.read_arguments([f"space={arguments[0]}", *arguments[1:]])
    if asked.request.pilot:
        raise InputError(f"pilot=true is of a sweep: sweep.py space={arguments[0]} pilot=true")
    if not asked.request.space.paper:
        raise InputError(f"space {arguments[0]} has no numbers of a paper to compare with; run it as a sweep")
    from raysurl.sweep.plan import make_plan
    from raysurl.sweep.report import write_report
    from raysurl.sweep.results import read_sweep
    from raysurl.sweep.running import check_any_finished, not_begun, run, show_plan

    plan = make_plan(asked.request)
    if asked.print_only:
        show_plan(plan)
        return
    again = stopping.command_line("reproduce", [*arguments, f"output={asked.output}"])
    run(plan, asked.output, again, resources=asked.share, max_hours=asked.max_hours)
    print(write_report(asked.output))
    check_any_finished(plan, asked.output)
    came_out, sentences = verdict(read_sweep(asked.output), set(plan.ids))
    for sentence in sentences:
        Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
    if left := not_begun(plan, asked.output):
        raise UndecidedError(f"{asked.request.space.title}: {left}")
    if came_out == "otherwise":
        raise RunError(f"{asked.request.space.title}: otherwise than in the paper")
    if came_out == "not seen":
        raise UndecidedError(f"{asked.request.space.title}: cannot be seen at this size")


CameOut = Literal["as in the paper", "otherwise", "not seen"]


def verdict(result: Sweep, keys: set[tuple[str, ...]]) -> tuple[CameOut, list[str]]:
    """How the cells `keys` came out, and the sentences that say so.

    At full scale they are as in the paper when each mean is within `band.points` of the paper's. In a small version the
    numbers are of other data, and the paper's claims are judged; where the space states none, the order: each group's
    rank correlation is at least `band.spearman`, and not seen where no cells differ by more than their noise.
    """
    from raysurl.sweep.results import in_band

    band, entries = result.space.band, [e for e in result.entries if e.labels in keys]
    if result.scale == "full":
        inside, outside = in_band(entries, band.points)
        said = [
            f"{result.name(e)}: {e.text()}, the paper {e.paper:g}: outside ±{band.points:g}" for e in outside
        ]
        said += [f"{len(inside)} of {len(inside) + len(outside)} cells are inside ±{band.points:g} points"]
        return "as in the paper" if inside and not outside else "otherwise", said
    agreements = result.agreements()
    said = [*(v.sentence for v in result.verdicts()), *(a.sentence(band.spearman) for a in agreements)]
    return _by_claims(result) if result.space.claims else _by_order(agreements, band.spearman), said


def _by_claims(result: Sweep) -> CameOut:
    found = {verdict.verdict for verdict in result.verdicts()}
    if "contradicted" in found:
        return "otherwise"
    return "as in the paper" if "supported" in found else "not seen"


def _by_order(agreements: Sequence[Agreement], least: float) -> CameOut:
    judged = [(a.spearman >= least, a.clear) for a in agreements if a.spearman is not None]
    if judged and all(agrees for agrees, _ in judged):
        return "as in the paper"
    return "otherwise" if any(clear for agrees, clear in judged if not agrees) else "not seen"
