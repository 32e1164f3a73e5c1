"""Run one published table, or rows of it, with its seeds, and say whether it came out as the paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from raysurl import stopping
from raysurl.commands import sweep
from raysurl.errors import InputError, RunError

if TYPE_CHECKING:
    from raysurl.sweep.agreement import Agreement
    from raysurl.sweep.results import Sweep

LIKE = "sweep"  # whose settings it takes


def main(arguments: Sequence[str]) -> None:
    """`reproduce.py NAME [only.AXIS=LABEL …] [scale=cpu|full] [key=value …]`, exit code 1 outside the band."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise InputError(
            "name the table first: reproduce.py NAME, a file of search_spaces/, for example ressl_table2"
        )
    asked = sweep.read_arguments([f"space={arguments[0]}", *arguments[1:]])
    if not asked.request.space.paper:
        raise InputError(f"space {arguments[0]} has no numbers of a paper to compare with; run it as a sweep")
    from raysurl.sweep.plan import make_plan
    from raysurl.sweep.report import write_report
    from raysurl.sweep.results import read_sweep
    from raysurl.sweep.running import check_any_finished, run, show_plan

    plan = make_plan(asked.request)
    if asked.print_only:
        show_plan(plan)
        return
    again = stopping.command_line("reproduce", [*arguments, f"output={asked.output}"])
    run(plan, asked.output, again, resources=asked.share, max_hours=asked.max_hours)
    print(write_report(asked.output))
    check_any_finished(plan, asked.output)
    inside, sentences = verdict(read_sweep(asked.output), set(plan.ids))
    for sentence in sentences:
        Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
    if not inside:
        raise RunError(f"{asked.request.space.title}: outside the stated band")


def verdict(result: Sweep, keys: set[tuple[str, ...]]) -> tuple[bool, list[str]]:
    """Whether the cells `keys` are inside the band, and the sentences that say so.

    At full scale a cell is inside when its mean is within `band.points` of the paper's; at scale=cpu the numbers
    are of other data, so the order is judged: each group's rank correlation is at least `band.spearman`.
    """
    from raysurl.sweep.results import in_band

    band, entries = result.space.band, [e for e in result.entries if e.labels in keys]
    if result.scale == "full":
        inside, outside = in_band(entries, band.points)
        said = [
            f"{result.name(e)}: {e.text()}, the paper {e.paper:g}: outside ±{band.points:g}" for e in outside
        ]
        said += [f"{len(inside)} of {len(inside) + len(outside)} cells are inside ±{band.points:g} points"]
        return bool(inside) and not outside, said
    agreements = result.agreements()
    judged = [a for a in agreements if a.spearman is not None]
    return bool(judged) and all(_agrees(a, band.spearman) for a in judged), [
        f"{'inside' if _agrees(a, band.spearman) else 'outside'} the band: {a.sentence(band.spearman)}"
        for a in agreements
    ]


def _agrees(agreement: Agreement, least: float) -> bool:
    return agreement.spearman is not None and agreement.spearman >= least
