"""What the pictures of a bundle show and how to read them, in plain words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from model_store.manifest import ClassificationTarget, Manifest, RegressionTarget


@dataclass(frozen=True)
class _Caption:
    """What stands in a picture's place where it cannot be seen, and what is told below it."""

    alt: str
    below: str


_ALWAYS: Final = {
    "posterior.png": _Caption(
        "A curve over the one input column, with a band around it and dots of training rows",
        "Dots are training rows, and the black line is the prediction. The pale band holds a new target as often "
        "as it says; the darker band is the part of it that comes from what the model does not know, which should "
        "be wide where there are no dots. Dashed lines are the MAP solutions, thin ones posterior samples. Below "
        "are the two parts of the standard deviation, in the target's unit.",
    ),
    "unfamiliar.png": _Caption(
        "Two charts: OOD scores of familiar rows and of stand-ins for unfamiliar ones, and how well scores tell "
        "them apart",
        "Left: how unfamiliar rows look. What lies to the right of the dashed line is flagged: few of the "
        "familiar rows, and the more of the others the better. Right: how many stand-ins are flagged at each "
        "share of false alarms; an AUROC of 1 is perfect, and .5 as good as chance. There are no real unfamiliar "
        "rows when a model is built: stand-ins are training rows whose columns were shuffled independently, or "
        "whose numbers were shifted by three standard deviations. Shuffled rows look as familiar as others where "
        "columns hardly depend on each other: .5 is no fault there.",
    ),
    "fibers.png": _Caption(
        "Two charts over the drift scale: the rise of the training loss along each fiber, and the NLL of "
        "predictions by how far fibers are used",
        "How far samples go from the anchors. Left: the training loss along each fiber, which should rise little "
        "in the shaded part, the reach, that predictions use. Right: how well rows that networks had not seen are "
        "predicted with fibers up to each point. The reach is the furthest point that the rows cannot tell from "
        "the best, so that it need not be the lowest.",
    ),
    "latent.png": _Caption(
        "Curves from one point in the middle, one for each fiber",
        "Each curve is a fiber, seen on the two main axes of the latent space; the thick part of it is what "
        "predictions are drawn from. Curves should go apart: where they lie on one another, samples are alike.",
    ),
}
_OF_NUMBERS: Final = {
    "calibration.png": _Caption(
        "Two charts of the test rows: the share that lies in its interval at each level, and measured values over "
        "predictions with their intervals",
        "Left: how many test rows lie in their interval, at each level that can be asked for. The line should "
        "stay in the grey band, in which chance alone leaves so few rows; below it error bars are too narrow, "
        "above it wider than need be. Right: each test row with its interval; one that meets the dashed line "
        "holds what was measured.",
    ),
    "sharpness.png": _Caption(
        "A histogram of the standard deviations of test rows, and of their epistemic part",
        "Of two models that cover alike the one further to the left is the better. More data would make the "
        "epistemic part smaller, but not the rest.",
    ),
}
_OF_LOGARITHM: Final = " All is of the target's natural logarithm: 0.1 in it is about a tenth of the target."
_OF_CLASSES: Final = {
    "calibration.png": _Caption(
        "Two charts of the test rows over the confidence in the likeliest class: the share that is right, and the "
        "number of rows",
        "Left: how often the likeliest class is right where the model is so sure of it. Points should stay in the "
        "grey bars, in which chance alone leaves so few rows; below them the model is too sure of itself, above "
        "them not sure enough. Right: how many rows it is so sure of.",
    ),
    "sharpness.png": _Caption(
        "A histogram of the entropy of predictions for test rows, right ones and wrong ones",
        "The further to the left, the surer the model. Wrong predictions should lie further to the right than "
        "right ones: then it is worth looking at the unsure ones again.",
    ),
}


def picture(name: str, manifest: Manifest, names: Collection[str]) -> str:
    """A picture and how to read it, in Markdown; nothing where it is not among the `names` that there are."""
    if name not in names:
        return ""
    kind = _OF_CLASSES if isinstance(manifest.target, ClassificationTarget) else _OF_NUMBERS
    caption = (_ALWAYS | kind)[name]
    of_logarithm = isinstance(manifest.target, RegressionTarget) and manifest.target.log and name in _OF_NUMBERS
    return f"![{caption.alt}.]({name})\n*{caption.below}{_OF_LOGARITHM if of_logarithm else ''}*"
