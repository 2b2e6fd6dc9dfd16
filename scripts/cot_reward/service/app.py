"""The pages of the service: /compare, /rank, /health, /ready, /metrics."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from cot_reward.records import Task
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.service.answers import judgement_fields, ranking_fields
from cot_reward.service.bodies import Body, CompareBody, RankBody, question
from cot_reward.service.handling import Handling
from cot_reward.service.limits import Places
from cot_reward.service.metrics import CONTENT_TYPE, Metrics
from cot_reward.service.readiness import Readiness
from cot_reward.service.refusals import RefusalError, json_response
from cot_reward.service.settings import ServiceSettings

_PAGES = "there are POST /compare and POST /rank, and GET /health, /ready and /metrics"


class Model(Protocol):
    """What the service wants of a reward model (`reward.model.RewardModel`)."""

    async def acompare(
        self, prompt: str, a: Any, b: Any, context: Sequence[Any] = ()
    ) -> Judgement | Failure: ...

    async def arank(
        self,
        prompt: str,
        candidates: Sequence[Any],
        context: Sequence[Any] = (),
        max_comparisons: int | None = None,
    ) -> Ranking: ...

    async def aclose(self) -> None: ...

    @property
    def encoded_pictures(self) -> int: ...


def make_app(
    model: Model,
    task: Task,
    readiness: Readiness,
    settings: ServiceSettings,
    places: Places,
    key: str,
) -> FastAPI:
    """The service; it closes `model` when it ends. `key`: what callers must send; "": nothing."""
    metrics = Metrics(lambda: places.queued, lambda: places.working, lambda: model.encoded_pictures)
    handling = Handling(settings, places, metrics, key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with readiness:
            yield
        await model.aclose()

    # The pages that FastAPI makes for people load scripts from elsewhere.
    app = FastAPI(title="cot-reward", docs_url=None, redoc_url=None, lifespan=lifespan)
    # A redirect would name whatever host the caller claims.
    app.router.redirect_slashes = False

    async def compare(body: CompareBody) -> dict[str, Any]:
        asked = await asyncio.to_thread(question, body, task, settings)
        first, second = asked.candidates
        found = await model.acompare(asked.prompt, first, second, asked.context)
        metrics.comparison(found)
        return judgement_fields(found, body.texts)

    async def rank(body: RankBody) -> dict[str, Any]:
        asked = await asyncio.to_thread(question, body, task, settings)
        most = settings.max_comparisons
        if body.max_comparisons is not None:
            most = min(most, body.max_comparisons)
        try:
            found = await model.arank(asked.prompt, asked.candidates, asked.context, most)
        except ValueError as error:
            raise RefusalError(422, "bad_request", str(error)) from None
        for _, _, one in found.comparisons:
            metrics.comparison(one)
        return ranking_fields(found, body.texts)

    @app.post("/compare", openapi_extra=_schema(CompareBody))
    async def compare_page(request: Request) -> Response:
        """Which of two candidates is better."""
        return await handling.answer(request, CompareBody, compare)

    @app.post("/rank", openapi_extra=_schema(RankBody))
    async def rank_page(request: Request) -> Response:
        """Candidates in order, with win rates and strengths."""
        return await handling.answer(request, RankBody, rank)

    @app.get("/health")
    async def health() -> Response:
        """This process is there; it says nothing of the server behind."""
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Whether the server behind answers."""
        fault = await readiness.fault()
        if fault:
            return RefusalError(503, "not_ready", fault, 1).response()
        return json_response({"status": "ready"})

    @app.get("/metrics")
    async def metrics_page(request: Request) -> Response:
        """For Prometheus."""
        try:
            handling.check_key(request)
        except RefusalError as refusal:
            return refusal.response()
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.exception_handler(HTTPException)
    async def other_pages(request: Request, error: HTTPException) -> Response:
        answer = RefusalError(error.status_code, "no_such_page", _PAGES).response()
        answer.headers.update(error.headers or {})
        return answer

    return app


def _schema(body: type[Body]) -> dict[str, Any]:
    """The body's form for /openapi.json; the body itself is read by `limits`."""
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
