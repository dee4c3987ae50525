"""The routes of the server."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from masklab.results.colours import PALETTE
from masklab.results.formats.base import check_packages
from masklab.results.formats.registry import FORMATS
from masklab.serve import pictures, schemas
from masklab.serve.answers import asked_for
from masklab.serve.bodies import check_type
from masklab.serve.guard import Guard, problem
from masklab.serve.refusals import Refusal
from masklab.serve.service import Service
from masklab.utils.errors import InputError
from masklab.utils.versions import versions

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ABOUT = "Finds objects in images and gives their masks. Errors are JSON with one sentence."
_MOST_LETTERS = 255  # of a name

Key = Annotated[str, Path(description="The result's name, as `/predict` gave it.", max_length=64)]
Outlines = Annotated[bool, Query(description="In JSON, give masks as polygons in place of run lengths.")]


def create_app(service: Service, name: str) -> FastAPI:
    """The application of a service whose model is called ``name``."""
    app = FastAPI(
        title="masklab",
        version=versions()["masklab"],
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    _add_page(app)
    _add_state(app, service, name)
    _add_images(app, service)
    _add_results(app, service)
    app.openapi = _described(app, service.settings.token is not None)  # type: ignore[method-assign]
    return app


def _add_page(app: FastAPI) -> None:
    """The page and its files, read once."""
    folder = files("masklab.serve") / "page"
    texts = {each.name: each.read_text(encoding="utf-8") for each in folder.iterdir() if each.is_file()}

    def sent(file: str) -> Response:
        if file not in texts:
            raise Refusal(404, "the page has no such file.")
        kind = _TYPES["." + file.rpartition(".")[2]]
        return Response(texts[file], media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return sent("index.html")

    @app.get("/page/{file}", include_in_schema=False)
    def page_file(file: str) -> Response:
        return sent(file)


def _add_state(app: FastAPI, service: Service, name: str) -> None:
    @app.get("/health", responses=schemas.answers(None, 503))
    async def health() -> schemas.Health:
        """Whether the server takes work."""
        if service.stopping:
            raise Refusal(503, "the server is stopping: try again when it is back.")
        return schemas.Health(status="ok")

    @app.get(
        "/metrics",
        response_class=Response,
        responses=schemas.answers(schemas.TEXT, 503),
    )
    async def metrics() -> Response:
        """Figures of the server in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/model", responses=schemas.answers(None, 503))
    async def model() -> schemas.ServedModel:
        """The model, and what the server takes and gives."""
        predictor, reason = pictures.layers_of(service.finder)
        mask = service.finder.config.model.mask
        return schemas.ServedModel(
            name=name,
            version=versions()["masklab"],
            classes=list(service.finder.classes.names),
            colours=["#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE],
            threshold=service.threshold,
            formats=_served_formats(),
            layers=[layer for layer in pictures.LAYERS if predictor is not None and getattr(mask, layer)],
            no_layers=reason,
            max_bytes=service.settings.max_body,
            max_pixels=service.settings.max_pixels,
            tile=pictures.TILE,
        )

    @app.get(
        "/model/directions",
        response_class=Response,
        responses=schemas.answers(schemas.pictured(), 404, 500, 503),
    )
    def directions() -> Response:
        """The colours of the layer `direction` as a picture."""
        return Response(pictures.direction_legend(service.finder), media_type="image/png")


def _served_formats() -> list[schemas.ServedFormat]:
    """The formats whose packages are installed."""
    served = []
    for each in FORMATS.values():
        try:
            check_packages(each)
        except InputError:
            continue
        values = {"name": each.name, "media_type": each.media_type, "ending": each.ending, "holds": each.holds}
        served.append(schemas.ServedFormat(**values))
    return served


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        response_class=Response,
        responses=schemas.answers(schemas.answered(), 400, 406, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra={"requestBody": schemas.IMAGE_BODY},
    )
    async def predict(
        request: Request,
        name: Annotated[
            str, Query(description="The image's name in the answer.", min_length=1, max_length=_MOST_LETTERS)
        ] = "image",
        score: Annotated[
            float | None, Query(description="Lowest score of an object; the model's threshold by default.", ge=0, le=1)
        ] = None,
        polygons: Outlines = False,
        keep: Annotated[
            bool, Query(description="Keep the result for a while, for the routes under `/results`; for JSON alone.")
        ] = False,
    ) -> Response:
        """Find the objects of an image."""
        asked = asked_for(request.headers.get("accept"))
        check_type(request)
        answer = await service.predict(request, asked, name, score, polygons, keep and asked.format is None)
        return Response(answer, media_type=asked.media_type)


def _add_results(app: FastAPI, service: Service) -> None:
    @app.post(
        "/results/{key}",
        response_class=Response,
        responses=schemas.answers(schemas.answered(), 400, 404, 406, 408, 413, 422, 429, 500, 503),
    )
    async def write(request: Request, key: Key, choice: schemas.Choice, polygons: Outlines = False) -> Response:
        """Write some objects of a kept result in any format."""
        asked = asked_for(request.headers.get("accept"))
        answer = await service.write(request, service.kept.get(key), asked, choice.objects, polygons)
        return Response(answer, media_type=asked.media_type)

    @app.delete("/results/{key}", status_code=204, responses=schemas.answers(None, 422, 503))
    async def forget(key: Key) -> Response:
        """Forget a kept result and its image; one that is not kept is forgotten already."""
        service.kept.remove(key)
        return Response(status_code=204)

    @app.get(
        "/results/{key}/tiles/{step}/{column}/{row}",
        response_class=Response,
        responses=schemas.answers(schemas.pictured(), 400, 404, 422, 429, 500, 503),
    )
    async def tile(
        request: Request,
        key: Key,
        step: Annotated[int, Path(ge=1, le=2**20, description="Pixels of the image for one of the tile, a side.")],
        column: Annotated[int, Path(ge=0, le=2**20)],
        row: Annotated[int, Path(ge=0, le=2**20)],
    ) -> Response:
        """A tile of a kept image, as the model sees its intensities."""
        picture = await service.tile(request, service.kept.get(key), step, column, row)
        return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.get(
        "/results/{key}/layers/{name}",
        response_class=Response,
        responses=schemas.answers(schemas.pictured(), 400, 404, 422, 429, 500, 503),
    )
    async def layer(
        request: Request,
        key: Key,
        name: Annotated[str, Path(pattern="^(semantic|direction)$")],
        label: Annotated[int, Query(ge=0, le=10**6, description="The class of `semantic`, from 0.")] = 0,
        box: Annotated[
            str | None,
            Query(pattern=r"^\d{1,9},\d{1,9},\d{1,9},\d{1,9}$", description="x1,y1,x2,y2: a part of the image."),
        ] = None,
    ) -> Response:
        """What the masks of a kept image are made of: semantic logits, or the strongest direction of each pixel."""
        corners = None if box is None else [int(value) for value in box.split(",")]
        part = None if corners is None else (corners[0], corners[1], corners[2], corners[3])
        picture = await service.layer(request, service.kept.get(key), name, label, part)
        return Response(picture, media_type="image/png")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "there is no such address.", 405: "this address has no such method."}
    if not isinstance(error, Refusal):
        said = sentences.get(error.status_code, "the request cannot be read: send it as the description says.")
        allowed = {"Allow": _methods(request)} if error.status_code == 405 else error.headers
        error = HTTPException(error.status_code, said, allowed)
    return problem(error)


def _methods(request: Request) -> str:
    """The methods of an address: each has a route of its own, and the first alone would name only its own."""
    fitting = (route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE)
    return ", ".join(sorted(method for route in fitting for method in route.methods))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part.isidentifier())
    return problem(Refusal(422, f"{place}: {str(first['msg'])[0].lower()}{str(first['msg'])[1:]}."))


async def _failed(request: Request, error: Exception) -> Response:
    return problem(Refusal(500, "the server met an error of its own: its log describes it."))


def _described(app: FastAPI, token: bool) -> Callable[[], dict[str, Any]]:
    """The description of all routes, with what the guard answers and the token."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = describe()
            if token:
                found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, routes in found["paths"].items():
                for route in routes.values():
                    route["responses"].setdefault("400", _problem(400))
                    if token and path != "/health":
                        route["security"] = [{"token": []}]
                        route["responses"]["401"] = _problem(401)
        assert app.openapi_schema is not None
        return app.openapi_schema

    return described


def _problem(status: int) -> dict[str, Any]:
    return {"description": schemas.SENTENCES[status], "content": schemas.PROBLEM}
