"""Machine and versions for the benchmarks' output. Nothing here runs in Triton's interpreter."""

import os

import pytest
import torch

import muomni_fast


def pytest_report_header() -> str:
    """One line about the machine, above the table."""
    doctor = muomni_fast.doctor()
    devices = ", ".join(f"{device} {name}" for device, name in doctor["devices"].items())
    return (
        f"{devices}; {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {doctor['torch']}, triton {doctor['triton']}, muomni_fast {doctor['muomni_fast']}"
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The same in the JSON that --benchmark-json writes."""
    machine_info["muomni_fast"] = muomni_fast.doctor()
    machine_info["threads"] = torch.get_num_threads()
