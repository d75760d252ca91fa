"""All methods on one image set, a family at a time, so that a run can be stopped between them and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.figures import auroc
from benchmarks.quality.building import Learned, build
from benchmarks.quality.images.data import ImageSet
from benchmarks.quality.images.doubts import P_VALUE, of_build, of_network
from benchmarks.quality.methods import dropout, ensemble, fiberwalk, laplace, swag
from benchmarks.quality.predictive import Classes, Outcome, Predictive, entropy, figures
from benchmarks.quality.problem import Problem
from benchmarks.quality.run import attempt
from benchmarks.quality.tuning import SIZES, Tuned, tune
from builder.work import WorkFolder

METHODS: Final = {
    "map": "MAP",
    "map_tuned": "MAP, out-of-fold temperature",
    "ensemble_5": "deep ensemble of 5",
    "ensemble_10": "deep ensemble of 10",
    "laplace_last": "linearised Laplace, last layer",
    "laplace_last_tuned": "linearised Laplace, last layer, chosen out of fold",
    "swag": "SWAG",
    "mc_dropout": "MC dropout",
    "fiberwalk_1": "fiberwalk, 1 anchor",
    "fiberwalk_5": "fiberwalk, 5 anchors",
}
"""What the methods are called, in their order."""

MEMBERS: Final = 10
"""Of the largest ensemble, where no other number is asked for: twenty would take longer than all else."""
TUNING: Final = "tuning"
RATES: Final = (0.01, 0.05, 0.1)
"""Of false alarms, asked of `/ood`."""
FIBERS: Final = 20
"""Of all anchors that are served together."""


def last_layer(problem: Problem, tuned: Tuned) -> dict[str, Outcome]:
    """`laplace_last` and `laplace_last_tuned`: all weights are too many for the others."""
    return laplace.run(problem, tuned, ["laplace_last"])


def build_ours(problem: Problem, anchors: int, work: Path | None = None) -> Learned:
    """A build that serves so many anchors, which share the fibers, and keeps its stages in a folder of `work`.

    One is judged with a fifth of the rows; several by as many cross-fitted anchors as tune all peers.
    """
    stages = {
        "map": problem.config.map.model_copy(update={"anchors": 1} if anchors == 1 else {"served": anchors}),
        "fiber": problem.config.fiber.model_copy(update={"trajectories": FIBERS // anchors}),
    }
    return build(replace(problem, config=problem.config.model_copy(update=stages)), _folder(work, str(anchors)))


def _folder(work: Path | None, name: str) -> WorkFolder | None:
    return None if work is None else WorkFolder(work / name)


def ours(
    problem: Problem, tuned: Tuned, anchors: int, learn: Callable[[Problem, int], Learned] = build_ours
) -> dict[str, Outcome]:
    """`fiberwalk_A`: a build that serves so many anchors. `tuned` is not used."""
    learned = learn(problem, anchors)
    with learned.cost.clock():
        outcome = fiberwalk.served(problem, learned.trained, learned.cost)
    notes = {"stage_seconds": learned.seconds, "reach": learned.trained.reach.node}
    doubts = of_build(problem, learned.trained)
    # Those of several anchors differ as anchors do, however far they go.
    reaches = fiberwalk.by_reach(problem, learned.trained) if anchors == 1 else []
    return {f"fiberwalk_{anchors}": replace(outcome, notes=notes, doubts=doubts, reaches=reaches)}


ONE: Final = "fiberwalk_1"
SEVERAL: Final = "fiberwalk_5"
FAMILIES: Final[dict[str, Callable[..., dict[str, Outcome]]]] = {
    ONE: partial(ours, anchors=1),
    "ensemble": partial(ensemble.run, doubts=of_network),
    "laplace": last_layer,
    "swag": swag.run,
    SEVERAL: partial(ours, anchors=5),
    "dropout": dropout.run,
}


def run_families(
    problem: Problem,
    images: ImageSet,
    done: dict[str, dict[str, Any]],
    wanted: Sequence[str],
    members: int = MEMBERS,
    work: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs the families that are not done, the shared tuning first, and yields each one's results.

    Args:
        done: results of families that are, by name.
        members: of the largest ensemble.
        work: where finished stages of our builds and the ensemble's networks are kept, for a run that is stopped and
            goes on.
    """
    sizes = [size for size in SIZES if size <= members]
    learn = partial(build_ours, work=work)
    runs: dict[str, Callable[..., dict[str, Outcome]]] = {
        **FAMILIES,
        ONE: partial(FAMILIES[ONE], learn=learn),
        SEVERAL: partial(FAMILIES[SEVERAL], learn=learn),
        "ensemble": partial(FAMILIES["ensemble"], sizes=sizes, work=_folder(work, "ensemble")),
    }
    left = [f for f in wanted if f not in done]
    if TUNING in done:
        tuned = Tuned.of_json(done[TUNING]["tuned"])
    else:
        # Its cross-fitted anchors are those that tuning would train once more.
        built, failed = attempt({SEVERAL: partial(learn, problem, 5)} if SEVERAL in left else {})
        tuned = tune(problem, built.get(SEVERAL))
        yield TUNING, {"tuned": asdict(tuned)}
        if failed:
            left.remove(SEVERAL)
            yield SEVERAL, {"methods": {}, "failed": failed}
        elif built:
            runs[SEVERAL] = partial(FAMILIES[SEVERAL], learn=lambda *_: built.pop(SEVERAL))
            left.sort(key=lambda family: family != SEVERAL)  # it need not be held for longer
    for family in left:
        found, failed = attempt({family: partial(runs[family], problem, tuned)})
        yield (
            family,
            {
                "methods": {m: scored(problem, images, outcome) for m, outcome in found.get(family, {}).items()},
                "failed": failed,
            },
        )


def scored(problem: Problem, images: ImageSet, outcome: Outcome) -> dict[str, Any]:
    """A method's figures, `auroc_...` of each foreign set among them, and its cost."""
    own = len(problem.y_test)
    more: dict[str, Any] = {
        "doubts": {n: _aurocs(images, own, score) for n, score in outcome.doubts.items() if n != P_VALUE},
        "reaches": [{"scale": c, **_figures(problem, images, predictive)} for c, predictive in outcome.reaches],
    }
    if P_VALUE in outcome.doubts:
        flagged = outcome.doubts[P_VALUE][:own]
        more["false_alarms"] = {f"{rate:g}": float((flagged <= rate).double().mean()) for rate in RATES}
    return {
        "figures": _figures(problem, images, outcome.predictive),
        "gradient_evaluations": outcome.cost.gradient_evaluations,
        "seconds": round(outcome.cost.seconds, 3),
        **more,
        **outcome.notes,
    }


def _figures(problem: Problem, images: ImageSet, predictive: Predictive) -> dict[str, float]:
    """Of the test rows, and how well the mutual information, or the entropy where there is none, knows foreign ones."""
    assert isinstance(predictive, Classes)
    own, probabilities = len(problem.y_test), predictive.probabilities.cpu()
    doubt = predictive.information
    doubt = entropy(probabilities) if doubt is None else doubt.cpu()
    found = figures(Classes(probabilities[:own]), problem.y_test)
    return found | {f"auroc_{name}": value for name, value in _aurocs(images, own, doubt).items()}


def _aurocs(images: ImageSet, own: int, score: Tensor) -> dict[str, float]:
    """How often a foreign image has a higher score than one of the `own` first, by foreign set."""
    parts = [part.numpy() for part in torch.split(score.cpu(), [own, *(len(x) for x in images.foreign.values())])]
    return {name: auroc(parts[0], part) for name, part in zip(images.foreign, parts[1:], strict=True)}
