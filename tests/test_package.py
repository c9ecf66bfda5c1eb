"""The built wheel, away from this checkout: it carries conf/ and sweeps/ and runs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what git tracks, so that nothing lands in the checkout."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(output), str(source)], check=True
    )
    (built,) = output.glob("questtrain-*.whl")
    return built


def test_the_wheel_holds_every_module_and_every_yaml_file(wheel):
    packaged = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assets = (ROOT / "src/questtrain/scaling/report/assets").iterdir()
    expected |= {str(path.relative_to(ROOT / "src")) for path in assets}
    for folder in ("conf", "sweeps"):
        expected |= {
            f"questtrain/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")
        }
    assert any(name.endswith("conf/model/100M.yaml") for name in expected)
    assert expected <= packaged
    assert "questtrain/sweeps/__init__.py" in packaged
    assert "questtrain/py.typed" in packaged


def test_the_installed_wheel_runs_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = "import questtrain, questtrain.conf as c; print(questtrain.__file__, *c.__path__)"
    assert all(path.startswith(str(site)) for path in run("-c", where).split())
    assert "30M, 50M" in run("-m", "questtrain.cli.main", "train", "--help")
    assert "hidden_size: 640" in run("-m", "questtrain.cli.main", "train", "--cfg", "job")
    assert (site / "bin" / "questtrain").exists()
