"""Seeds, thread counts and the hypothesis profile, for tests here and doctests in src/."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

import typed

typed.install()

# Neither a deadline nor the check of how long an example takes to draw: no test may fail on a busy machine.
settings.register_profile(
    "diffusional",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("diffusional")


class _Seeded:
    """A plugin rather than a fixture of this folder, so that the doctests in src/ are seeded too."""

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)

    def pytest_runtest_setup(self) -> None:
        typed.begin()


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    config.pluginmanager.register(_Seeded(), "diffusional-seeded")
