"""What a rule of pruning would have saved and lost, from trials whose curves are known to their end.

Ray's own schedulers decide; here they are told the epochs of the trials in the order in which two processes would have
trained them. The order of the trials is drawn anew many times, for by chance a good one comes first or last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks._curves import SIGNALS, Curve

from raysurl import streams
from raysurl.scale.tune import scheduler_of
from raysurl.sweep.space import Prune

ORDERS = 100
AT_ONCE = 2  # trials
WITH_LABELS = "kNN (with labels)"
GO_ON = "CONTINUE"  # in Ray's words


@dataclass(frozen=True)
class Rule:
    prune: Prune  # its signal is given by name beside it
    extrapolated: bool = False  # the signal is what a line through its values over log(epoch) has at the end

    @property
    def shown(self) -> str:
        prune = self.prune
        asha = f"ASHA, 1/{prune.reduction:g} go on"
        more = [asha if prune.kind == "asha" else "median", f"first after {prune.grace_epochs}"]
        more += [f"{prune.brackets} brackets"] if prune.brackets > 1 else []
        more += ["extrapolated"] if self.extrapolated else []
        return ", ".join(more)


def asha(grace: int, reduction: float, brackets: int = 1) -> Prune:
    return Prune(kind="asha", grace_epochs=grace, reduction=reduction, brackets=brackets)


RULES = (
    *(Rule(asha(grace, reduction)) for grace in (1, 2) for reduction in (2.0, 3.0, 4.0)),
    *(Rule(asha(2, reduction), extrapolated=True) for reduction in (2.0, 4.0)),
    Rule(asha(1, 3.0, brackets=2)),
    Rule(asha(1, 2.0, brackets=3)),
    *(Rule(Prune(kind="median", grace_epochs=grace)) for grace in (1, 2)),
)


@dataclass(eq=False)
class Stub:
    """What Ray's schedulers ask of a trial."""

    trial_id: str


class Controller:
    """What Ray's median rule asks of the loop that runs trials: whether others should catch up first. None."""

    def get_live_trials(self) -> list[Stub]:
        return []


def replayed(curves: Sequence[Curve], orders: int = ORDERS) -> list[dict[str, Any]]:
    """For each signal and rule the share of the epochs that would have been trained, and by how much the best of the
    trials that were let to their end is below the best of all, in points; means over the orders."""
    known = [curve for curve in curves if curve.at[WITH_LABELS]]
    best, total = max(curve.final for curve in known), sum(curve.epochs for curve in known)
    found = []
    for signal in SIGNALS:
        for rule in RULES:
            rng = streams.numpy_stream(0, "replay")
            drawn = [[int(at) for at in rng.permutation(len(known))] for _ in range(orders)]
            outcomes = [replay(order, known, signal, rule, seed) for seed, order in enumerate(drawn)]
            share = float(np.mean([epochs for epochs, _ in outcomes])) / total
            lost = best - float(np.mean([kept for _, kept in outcomes]))
            found.append(
                {"signal": signal, "rule": rule.shown, "epochs": round(share, 3), "lost": round(lost, 2)}
            )
    return found


def replay(
    order: Sequence[int], curves: Sequence[Curve], signal: str, rule: Rule, seed: int
) -> tuple[int, float]:
    """Epochs trained, and the best accuracy of the trials that were let to their end, 0 where none was."""
    # Ray draws brackets from the process-wide generator
    np.random.seed(seed)
    scheduler, longest = scheduler_of(rule.prune), max(curve.epochs for curve in curves)
    waiting, trained, best = list(order), 0, 0.0
    running: dict[int, tuple[Stub, int]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            stub = Stub(str(waiting[0]))
            running[waiting.pop(0)] = (stub, 0)
            scheduler.on_trial_add(None, stub)
        for at, (stub, epoch) in list(running.items()):
            curve, epoch = curves[at], epoch + 1
            trained += 1
            running[at] = (stub, epoch)
            if epoch >= curve.epochs:
                best = max(best, curve.final if curve.state == "finished" else 0.0)
                del running[at]
                continue
            said = {"epoch": epoch, "signal": value_at(curve, signal, epoch, rule, longest)}
            if scheduler.on_trial_result(Controller(), stub, said) != GO_ON:
                del running[at]
    return trained, best


def value_at(curve: Curve, signal: str, epoch: int, rule: Rule, longest: int) -> float:
    values = curve.at[signal][:epoch]
    value = values[-1]
    if rule.extrapolated and len(values) > 1:
        slope, start = np.polyfit(np.log(np.arange(1, len(values) + 1)), values, 1)
        value = float(start + slope * np.log(longest))
    return value if np.isfinite(value) else -1e9
