"""Errors in the shape of OpenAI's: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from questtrain.config.ranges import shown
from questtrain.errors import suggestion
from questtrain.inference.serve.bodies import NEUTRAL, ChatBody, CompletionBody

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""The others: ``invalid_request_error``, and ``server_error`` from 500 on."""

SIZES: dict[str, Callable[[dict[str, Any]], str]] = {
    "too_short": lambda ctx: "is an empty list, and needs one entry at least",
    "too_long": lambda ctx: f"has {ctx['actual_length']} entries: {ctx['max_length']} at the most",
    "string_too_short": lambda ctx: "is an empty text",
    "string_too_long": lambda ctx: f"is longer than {ctx['max_length']:,} characters",
}
"""What is said of lists and texts of a wrong length, by pydantic's names of these errors."""

FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields})


class ApiError(Exception):
    """A request that is not answered: the status of HTTP, why, which parameter is at fault, and
    OpenAI's word for it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = headers

    def content(self) -> dict[str, Any]:
        """The body."""
        other = "invalid_request_error" if self.status < 500 else "server_error"
        kind = TYPES.get(self.status, other)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def validation_error(error: dict[str, Any]) -> ApiError:
    """What pydantic found, in words."""
    where = [str(part) for part in error["loc"] if part != "body"]
    param, kind = ".".join(where) or None, error["type"]
    if kind == "json_invalid":
        what = error.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is no JSON: {what} (character {where[0]}).")
    if param is None and kind != "value_error":
        return ApiError(400, "the body must be a JSON object.")
    if kind == "extra_forbidden":
        close = "" if where[-1] in NEUTRAL else suggestion(where[-1], FIELDS)
        return ApiError(
            400, f"{shown(param)} is not supported by this server.{close}", shown(param)
        )
    if kind == "missing":
        return ApiError(400, f"{param} is missing.", param)
    if kind in SIZES:
        return ApiError(400, f"{param} {SIZES[kind](error['ctx'])}.", param)
    message = error["msg"].removeprefix("Value error, ")
    if param is not None:
        message = f"{param}: {message[:1].lower()}{message[1:]}"
    return ApiError(400, f"{message}.", param)


def http_error(error: HTTPException, request: Request) -> ApiError:
    """What the framework refuses: a path, a method, a body that cannot be parsed."""
    headers, path = dict(error.headers or {}), shown(request.scope["path"])
    if "Allow" in headers:  # the framework's order is another in every process
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    allowed = headers.get("Allow", "another method").replace(", ", " and ")
    words = {
        404: f"there is no {path} here.",
        405: f"{path} takes {allowed}, not {request.method}.",
        400: "the body cannot be read as JSON.",
    }
    message = words.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=headers)
