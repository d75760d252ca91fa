"""What the store holds, described for a client: summaries, cards and pictures."""

from __future__ import annotations

import html

from model_store.bundle import Bundle
from model_store.errors import IntegrityError, UnknownModelError
from model_store.manifest import CARD_FILE, REPORT_FILE
from model_store.shelf import Shelf
from service.held import public_message
from service.models import Models
from service.schemas import ModelDetail, ModelFigures, ModelNetwork, ModelSummary

_MEDIA_TYPES = {".png": "image/png", ".md": "text/markdown; charset=utf-8"}


def summaries(models: Models) -> list[ModelSummary]:
    """Every model of the store, those that cannot be served with the reason.

    Raises:
        StoreError: the store cannot be read.
    """
    return [_summary(models, shelf) for shelf in models.shelves()]


def _summary(models: Models, shelf: Shelf) -> ModelSummary:
    model = models.peek(shelf.name)
    manifest = model and model.manifest
    return ModelSummary(
        name=shelf.name,
        version=manifest and manifest.version,
        versions=list(shelf.stamps),
        aliases=dict(shelf.aliases),
        task=manifest and manifest.task,
        target=manifest and manifest.target.name,
        problem=models.why_not(shelf.name) if manifest is None else None,
    )


def detail(models: Models, reference: str) -> ModelDetail:
    """The version that a reference means. Raises as `Models.bundle`."""
    bundle = models.bundle(reference)
    m, shelf = bundle.manifest, models.shelf(bundle.name)
    card = _read(models, bundle, CARD_FILE).decode(errors="replace") if CARD_FILE in m.files else None
    network = {k: getattr(m.network, k) for k in ModelNetwork.model_fields}
    return ModelDetail(
        name=m.name,
        version=m.version,
        versions=list(shelf.stamps),
        aliases=dict(shelf.aliases),
        digest=bundle.digest,
        task=m.task,
        inputs=m.inputs,
        target=m.target,
        network=ModelNetwork(**network),
        latent=m.latent,
        calibration=m.calibration,
        ood=m.ood,
        metrics=[ModelFigures(**figures.model_dump()) for figures in m.metrics],
        build=m.build,
        card=card,
        files=[f for f in sorted(m.files) if _media_type(f)],
    )


def file(models: Models, reference: str, name: str) -> tuple[bytes, str]:
    """A picture or the card of a version, verified, and its media type.

    Raises:
        UnknownModelError: the bundle has no such picture; besides, as `Models.bundle`.
    """
    bundle = models.bundle(reference)
    shown = [f for f in sorted(bundle.manifest.files) if _media_type(f)]
    if name not in shown:
        raise UnknownModelError(
            f"{bundle.name}@{bundle.version} has no such file to show.",
            code="not_found",
            field="file",
            expected="one of: " + (", ".join(shown) or "none"),
            got=name[:80],
        )
    return _read(models, bundle, name), _media_type(name)


def report(models: Models, reference: str) -> bytes:
    """The report of a version, verified.

    Raises:
        UnknownModelError: the bundle has none; besides, as `Models.bundle`.
    """
    bundle = models.bundle(reference)
    if REPORT_FILE not in bundle.manifest.files:
        raise UnknownModelError(
            f"{bundle.name}@{bundle.version} has no report; build it again.", code="not_found", field="model"
        )
    return _read(models, bundle, REPORT_FILE)


def _read(models: Models, bundle: Bundle, file: str) -> bytes:
    """A file of a version, read anew and verified."""
    models.refuse_in_trouble()
    try:
        return bundle.read(file)
    except IntegrityError as e:
        message = public_message((bundle.name, bundle.version), e)
        raise IntegrityError(message, code=e.code, field="model") from e


def _media_type(name: str) -> str:
    return next((kind for ending, kind in _MEDIA_TYPES.items() if name.endswith(ending)), "")


def page(models: list[ModelSummary]) -> str:
    """The start page: what is served and where to go on; refers to nothing outside this server."""
    rows = "\n".join(map(_line, models))
    served = sum(m.version is not None for m in models)
    told = f"Served: {served} of {len(models)} models." if models else "No model yet: build one, it appears here."
    return _PAGE.replace("{told}", told).replace("{models}", _TABLE.replace("{rows}", rows) if models else "")


def _line(m: ModelSummary) -> str:
    name = html.escape(m.name)
    # Of what cannot be served there is no report either.
    shown = name if m.version is None else f'<a href="models/{name}/report">{name}</a>'
    what = f"{m.task} of {m.target}" if m.task else m.problem or "Not served."
    aliases = html.escape(", ".join(f"{a} = {v}" for a, v in m.aliases.items()))
    cells = "".join(f"<td>{cell}</td>" for cell in (m.version or "", html.escape(what), aliases))
    return f'<tr><th scope="row">{shown}</th>{cells}</tr>'


_TABLE = """<p>A name leads to the report of the model's build: how good it is, what it takes, and how to ask it.</p>
<table><thead><tr><th scope="col">Model</th><th scope="col">Version</th><th scope="col">Predicts</th>
<th scope="col">Aliases</th></tr></thead><tbody>
{rows}
</tbody></table>
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>fiberwalk: models</title><style>
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .4rem .3rem 0;vertical-align:top;
border-bottom:1px solid #ddd}tbody th{font-weight:normal;min-width:5rem}
tbody th,td{overflow-wrap:anywhere}td+td{min-width:5.4rem}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}th,td{border-color:#444}}
</style></head><body><main><h1>fiberwalk</h1><p>Predictions with error bars. {told}</p>
{models}</main>
<nav aria-label="This server"><ul><li><a href="docs">API documentation, to try it out</a></li>
<li><a href="models">models as JSON</a></li><li><a href="openapi.json">OpenAPI</a></li>
<li><a href="readyz">readiness</a></li><li><a href="metrics">metrics</a></li></ul></nav></body></html>
"""
