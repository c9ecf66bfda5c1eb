"""The application: its routes, and what every request and every error passes through."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from questtrain.inference.serve import chat, completions, pages
from questtrain.inference.serve.errors import ApiError, http_error, validation_error
from questtrain.inference.serve.guard import Guard, Hosts
from questtrain.inference.serve.service import Service, as_api_error, outcome_of


def make_app(service: Service, hosts: Hosts, key: str | None) -> FastAPI:
    """FastAPI's own pages of documentation are left out: they load scripts from elsewhere."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    for router in (completions.router, chat.router, pages.router):
        app.include_router(router)
    _add_handlers(app, service)
    app.add_middleware(Guard, hosts, key, service.config.max_request_bytes)
    return app


def _add_handlers(app: FastAPI, service: Service) -> None:
    """Whatever is wrong with a request, its answer has the shape of OpenAI's errors."""

    def answer(request: Request, error: ApiError) -> JSONResponse:
        service.count(request.scope["path"], outcome_of(error))
        return error.response()

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, validation_error(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, http_error(error, request))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return answer(request, as_api_error(error))
