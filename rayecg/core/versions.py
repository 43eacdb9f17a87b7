"""What produced a result: versions of the software, and fingerprints of the project's own code."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "rayecg",
    "torch",
    "ray",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "wfdb",
    "onnx",
    "onnxruntime",
)


@functools.cache
def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def code_fingerprint(*rooms: str) -> str:
    """Give 16 hexadecimal digits that change with any file of the named rooms of the package."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in sorted(rooms):
        for file in sorted((root / room).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                digest.update(file.relative_to(root).as_posix().encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
