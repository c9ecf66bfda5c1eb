"""The CPU's library in the tests that ask for it, and each of its paths."""

import pytest

from questtrain.kernels import cpu_library
from tests.kernels.cpu_build import load_for_tests


@pytest.fixture(scope="module")
def built_cpu_library(tmp_path_factory):
    """Loaded; whatever was found before is again what is found afterwards."""
    before = cpu_library._found
    load_for_tests(tmp_path_factory.mktemp("library"))
    yield
    cpu_library.cap(None)
    cpu_library._found = before


@pytest.fixture(params=cpu_library.PATHS)
def path(request, built_cpu_library):
    """The path that serves; skips where the CPU has none of that name."""
    cpu_library.cap(request.param)
    if cpu_library.serving_path() != request.param:
        pytest.skip(f"this CPU has no {request.param}")
