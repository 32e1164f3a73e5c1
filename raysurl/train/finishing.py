"""The end of a run: its final evaluation, and what it leaves in its directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysurl.encoder import write_encoder
from raysurl.evaluate.elsewhere import judged
from raysurl.evaluate.evaluator import Networks
from raysurl.report import confusion, pictures
from raysurl.train import run_directory, stored
from raysurl.train.embedding import save_embedding

if TYPE_CHECKING:
    from raysurl.train.trainer import Run


def finish(run: Run) -> None:
    """The final evaluation, and what is left of the run."""
    recipe, run_dir, source = run.recipe, run.run_dir, run.loader.source
    evaluated = judged(run.evaluator, trained(run), stored.untrained_embedder(recipe, source))
    if run.record and evaluated.features is not None:
        pictures.save_neighbours(run_dir, recipe, evaluated.features, source, evaluated.bank)
        pictures.save_disturbed(run_dir, recipe, evaluated.features, run.evaluator)
        pictures.save_distances(run_dir, evaluated.histograms)
        confusion.save(run_dir, evaluated.features)
        clusters = run.memory.cluster_labels() if run.memory and run.memory.has_clusters else None
        pictures.save_clusters(run_dir, recipe, source, clusters)
        save_embedding(run_dir, recipe, evaluated, run.evaluator, clusters, steps=run.step)
        run.record.write(run.step, evaluated.metrics)
        run.record.flush()
        run.tally.evaluated(run.step, evaluated.metrics)
        write_encoder(run_dir, run.method.encoder, recipe, source.depth, commit=run_directory.commit())
        run_directory.write_results(
            run_dir,
            recipe,
            run.runtime,
            source,
            evaluated,
            run.tally,
            run.spent,
            steps=run.step,
            signals=run.examiner.found,
        )
        run.evaluator.unfinished.forget()


def trained(run: Run) -> Networks:
    """The networks to evaluate, as `eval.features` names them."""
    method, named = run.method, run.recipe.eval.features
    if named == "backbone":
        return Networks(method.encoder)
    remembered = run.memory.mirror.snapshot()["features"] if run.memory and named == "memory" else None
    return Networks(method.encoder, method.embedder, remembered)
