"""Files of the Hugging Face hub: the local cache first, then one quick look, then the download.

`hf_hub_download` alone retries an unreachable hub for half a minute a file. Here a single request
without retries, under a deadline that also covers the name lookup, decides whether to begin. A
download that has begun is more patient: the library resumes after a timeout and a connection that
closes, but neither after a reset nor an answer of 5xx; with those the file begins anew here.
"""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from pathlib import Path

from questtrain.errors import PreparationStopped, UserError
from questtrain.store.files import REFUSED
from questtrain.store.patience import tried_again

DEADLINE_SECONDS = 8.0


class HubUnreachableError(UserError):
    """No answer from the hub, or offline mode is on, and the file is not in the local cache."""


class HubFileMissingError(UserError):
    """The repository exists, the file does not."""


def hub_file(repo: str, filename: str, repo_type: str = "model") -> Path:
    """Local path of a hub file, downloaded if the local cache lacks it.

    Raises HubUnreachableError within about `DEADLINE_SECONDS` when the hub cannot be reached,
    HubFileMissingError when the repository lacks the file, and UserError when it refuses access.
    """
    cached = cached_file(repo, filename, repo_type)
    if cached is not None:
        return cached
    check_hub(repo, filename, repo_type)
    return download(repo, filename, repo_type)


def download(repo: str, filename: str, repo_type: str = "model") -> Path:
    """Local path of a file of a hub that was reached before, from the cache if it is there.

    A hub that fails is tried again for some minutes; then PreparationStopped. What it refuses is an
    error at once, as in `check_hub`, and so is a local disk that is full.
    """
    from huggingface_hub import constants, hf_hub_download

    def get() -> Path:
        return Path(hf_hub_download(repo, filename, repo_type=repo_type))

    def passing(error: Exception) -> str | None:
        if constants.HF_HUB_OFFLINE or _is_of_the_disk(error):
            return None
        with suppress(HubUnreachableError):
            check_hub(repo, filename, repo_type)
        return _in_a_line(error)

    try:
        return tried_again(f"downloading {repo}/{filename}", get, passing)
    except UserError:
        raise
    except Exception as error:  # requests, httpx or xet, by the version of huggingface_hub
        if constants.HF_HUB_OFFLINE:
            raise HubUnreachableError("offline mode is on (HF_HUB_OFFLINE)") from error
        if _is_of_the_disk(error):
            raise
        raise PreparationStopped(
            f"the download of {repo}/{filename} failed, tried several times: {_in_a_line(error)}."
            " What is prepared is kept, and the same command goes on from there."
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (*REFUSED, errno.EACCES)


def _in_a_line(error: Exception) -> str:
    """The first line of an error's message; those of the hub have several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def check_hub(repo: str, filename: str, repo_type: str = "model") -> None:
    """Return if ``filename`` is in the local cache or the hub offers it now; else raise."""
    if cached_file(repo, filename, repo_type) is not None:
        return
    outcome: list[Exception | None] = []
    # A name lookup cannot be interrupted, so the deadline needs a thread that may be left behind.
    thread = threading.Thread(
        target=lambda: outcome.append(_request(repo, filename, repo_type)), daemon=True
    )
    thread.start()
    thread.join(DEADLINE_SECONDS)
    if not outcome:
        raise HubUnreachableError(f"the hub did not answer within {DEADLINE_SECONDS:.0f} seconds")
    if outcome[0] is not None:
        raise outcome[0]


def cached_file(repo: str, filename: str, repo_type: str = "model") -> Path | None:
    """Where the local cache holds the file, if it does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, repo_type=repo_type, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not the name of a hub repository: {error}") from error


def _request(repo: str, filename: str, repo_type: str) -> Exception | None:
    """Ask for the file's metadata once; None means that it can be downloaded."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(
            hf_hub_url(repo, filename, repo_type=repo_type), timeout=DEADLINE_SECONDS / 2
        )
    except errors.GatedRepoError:
        return UserError(
            f"the hub repository {repo!r} is gated: accept its licence on the hub and log in "
            "(`hf auth login`, or the variable HF_TOKEN)"
        )
    except errors.RepositoryNotFoundError:
        return UserError(f"the hub has no repository {repo!r}, or it is private to others")
    except errors.EntryNotFoundError:
        return HubFileMissingError(f"the hub repository {repo!r} has no file {filename!r}")
    except errors.OfflineModeIsEnabled:
        return HubUnreachableError("offline mode is on (HF_HUB_OFFLINE)")
    except Exception as error:  # requests or httpx, by the version of huggingface_hub
        return HubUnreachableError(f"the hub cannot be reached ({error})")
    return None
