"""What is read: the models, the server's health, its metrics, and the page to try the model by
hand."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from questtrain.inference.serve.service import Service

router = APIRouter()

READ = ["GET", "HEAD"]
"""Methods of what is read: HEAD tells the status and the headers alone."""


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.api_route("/v1/models", methods=READ)
async def models(request: Request) -> dict[str, Any]:
    """The one model that there is."""
    return {"object": "list", "data": [_model(_service(request))]}


@router.api_route("/v1/models/{name:path}", methods=READ)
async def model(name: str, request: Request) -> dict[str, Any]:
    """The model, if that is its name."""
    service = _service(request)
    service.check_model(name)
    return _model(service)


def _model(service: Service) -> dict[str, Any]:
    """With what `vllm serve` calls max_model_len, which several clients read, and what only this
    server knows."""
    served = service.engine.ready.served
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "questtrain",
        "max_model_len": service.engine.ready.context,
        "step": served.step,
        "weights_sha256": served.weights_sha256,
        "bits": served.precision,
        "chat": service.template is not None,
    }


@router.api_route("/health", methods=READ)
async def health(request: Request) -> JSONResponse:
    """200 where requests are taken, 503 where they no longer are."""
    service = _service(request)
    alive = not service.engine.died.done()
    status = "failed" if not alive else "draining" if service.draining else "ok"
    content = {
        "status": status,
        "model": service.model,
        "fingerprint": service.fingerprint,
        "bits": service.engine.ready.served.precision,
        "context": service.engine.ready.context,
        "key_needed": service.key_needed,
        "running": service.engine.running,
        "waiting": service.engine.waiting,
    }
    return JSONResponse(content, 200 if status == "ok" else 503)


@router.api_route("/metrics", methods=READ)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service = _service(request)
    service.metrics.running.set(service.engine.running)
    service.metrics.waiting.set(service.engine.waiting)
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.api_route("/", methods=READ)
async def page() -> HTMLResponse:
    """The page to try the model by hand."""
    html, policy = _page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy under which nothing runs but its own script and style."""
    html = (resources.files(__package__) / "assets" / "page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [hashlib.sha256(content.encode()).digest() for content in contents]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
    return html, policy
