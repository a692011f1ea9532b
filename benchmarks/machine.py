"""Describes the machine that the measurements were made on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision

import atss_d2

from .settings import Settings


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Returns processor, versions, threads, date, and how busy the machine was."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "memory_is_kept": settings.keep_memory,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "atss_d2": atss_d2.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if settings.torch_device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def machine_line(machine: dict[str, Any]) -> str:
    """Returns the description as one sentence."""
    device = f"{machine['gpu']}; " if "gpu" in machine else ""
    load = "" if machine["load"] is None else f" (load before: {machine['load']})"
    kept = "; freed memory is kept" if machine["memory_is_kept"] else ""
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "torch", "torchvision", "detectron2")
    )
    return (
        f"{device}{machine['processor']}, {machine['cores']} cores, {machine['threads']} of them "
        f"used{load}{kept}; {versions}; {machine['date']}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
