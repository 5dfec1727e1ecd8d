"""The import rules of DESIGN §7: who may know whom, and what loads what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightsecagg"

LAYERS = [
    {"errors", "labels", "parameters", "staleness", "spans", "kernels"},
    {"field", "packing", "randomness", "quantize"},
    {"codec", "identity", "sealing"},
    {"protocol"},
    {"simulation", "in_memory"},
    {"managers"},
    {"cli"},
]
SERVANTS = {"comm", "training", "tracking", "settings"}
"""They serve the managers and do not know them or each other."""

NO_IO = {
    "asyncio",
    "socket",
    "threading",
    "time",
    "selectors",
    "concurrent",
    "multiprocessing",
    "datetime",
    "torch",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "lightsecagg" and len(parts) > 1 else None


def imports(path: Path) -> set[str]:
    """The absolute names of everything that a module imports, wherever it does."""
    own = ["lightsecagg", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = own if path.name == "__init__.py" else own[:-1]
    if path.name == "__init__.py":
        package = own[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names} | {name}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room in ("__init__", "__main__"):
        return
    known = {room_of(name) for name in imports(path)} - {None, room}
    known = {name for name in known if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}
    level = next((place for place, layer in enumerate(LAYERS) if room in layer), None)
    if room in SERVANTS:
        allowed = {"errors"}
    else:
        assert level is not None, f"{room} stands in no layer: add it to DESIGN §7's order"
        allowed = set().union(*LAYERS[: level + 1])
        if room in ("managers", "cli"):
            allowed |= SERVANTS
    assert known <= allowed, f"{path.name} must not import {sorted(known - allowed)}"


@pytest.mark.parametrize(
    "path",
    [*sorted((PACKAGE / "protocol").rglob("*.py")), PACKAGE / "comm" / "link.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_sans_io_modules_import_no_clock_thread_or_socket(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & NO_IO


def test_torch_is_imported_by_the_torch_trainer_the_models_and_the_device_kernel_only() -> None:
    users = {
        path.relative_to(PACKAGE)
        for path in modules()
        if any(n.split(".")[0] == "torch" for n in imports(path))
    }
    assert users
    assert {str(path) for path in users} <= {
        "kernels/device.py",
        "training/torch.py",
        "training/models/__init__.py",
        "training/models/cnn.py",
        "training/models/linear.py",
    }


@pytest.mark.parametrize(
    "module", ["lightsecagg", "lightsecagg.managers.client", "lightsecagg.managers.server"]
)
def test_neither_torch_nor_a_carrier_is_loaded_before_it_is_asked_for(module: str) -> None:
    heavy = ("torch", "sklearn", "grpc", "wandb", "paho", "numba")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_pickled(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {
        "pickle",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
    }
