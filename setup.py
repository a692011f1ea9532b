"""Packaging of atss_d2: ``pip install .`` or ``pip install -e .``, next to a Detectron2.

Nothing heavy is imported here (no torch, no Detectron2), so the build does not need them.

Two things are left to the user on purpose:

* Detectron2 is not in ``install_requires``: it is not on the package index under its own name, and
  most people have a build for their GPU, which must not be replaced.
* OpenCV is not in ``install_requires``: ``opencv-python`` and ``opencv-python-headless`` both own
  the folder ``cv2``, and pip, which treats them as two packages, would install one over the other.
  Detectron2 itself leaves the choice open, too. If you have none, install ``atss_d2[opencv]``.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    text = (ROOT / "atss_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('atss_d2/__init__.py has no line `__version__ = "..."`')
    return match.group(1)


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


class BuildWithConfigs(build_py):
    """Puts ``configs/`` into the wheel as ``atss_d2/configs``, where ``get_config`` finds it.

    The configs are not a Python package (LazyConfig resolves their relative imports), so they are
    copied as they are. An editable install finds the folder of the checkout.
    """

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib, "atss_d2", "configs")
        shutil.rmtree(target, ignore_errors=True)  # an earlier build may contain deleted configs
        shutil.copytree(
            ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )


setup(
    name="atss_d2",
    version=read_version(),
    description="ATSS (CVPR 2020): adaptive training sample selection as a Detectron2 add-on",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The atss_d2 authors",
    license="Apache-2.0",
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["atss_d2", "atss_d2.*"]),
    py_modules=["atss_d2_cli"],
    entry_points={"console_scripts": ["atss-d2 = atss_d2_cli:main"]},
    install_requires=read_requirements("base.txt"),
    extras_require={
        "opencv": ["opencv-python-headless"],
        "export": read_requirements("export.txt"),
        "convert": read_requirements("convert.txt"),
        "evaluation": read_requirements("evaluation.txt"),
        "dev": [
            line
            for name in ("dev.txt", "export.txt", "convert.txt", "evaluation.txt")
            for line in read_requirements(name)
        ],
    },
    cmdclass={"build_py": BuildWithConfigs},
)
