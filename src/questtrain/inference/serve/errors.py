"""Errors in the shape of OpenAI's: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from questtrain.config.ranges import shown
from questtrain.errors import suggestion
from questtrain.inference.serve.bodies import AT_PARAMETER, NEUTRAL, ChatBody, CompletionBody

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""The others: ``invalid_request_error``, and ``server_error`` from 500 on."""

WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "is an empty list, and needs one entry at least",
    "too_long": "has {actual_length} entries: {max_length} at the most",
    "string_too_short": "is an empty text",
    "string_too_long": "is longer than {max_length:,} characters",
}
"""What is said of a parameter, by pydantic's names of errors."""

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
    if kind == AT_PARAMETER:
        return ApiError(400, f"{error['ctx']['message']}.", error["ctx"]["param"])
    if param is None and kind != "value_error":
        return ApiError(400, "the body must be a JSON object.")
    if kind == "extra_forbidden":
        close = "" if where[-1] in NEUTRAL else suggestion(where[-1], FIELDS)
        return ApiError(
            400, f"{shown(param)} is not supported by this server.{close}", shown(param)
        )
    if kind == "missing":
        return ApiError(400, f"{param} is missing.", param)
    if kind in WORDS:
        return ApiError(400, f"{param} {WORDS[kind].format(**error.get('ctx', {}))}.", param)
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
        400: _unreadable(error.__cause__),
    }
    message = words.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=headers)


def _unreadable(cause: BaseException | None) -> str:
    """Why a body cannot be parsed, with the place where that is known."""
    if isinstance(cause, UnicodeDecodeError):
        byte, place = cause.object[cause.start], cause.start
        return f"the body is no UTF-8: byte 0x{byte:02x} at place {place} (from 0)."
    return "the body cannot be read as JSON."
