"""The tests' settings are theirs alone: Django is set up here, in a folder that goes away.

pytest-django would read the settings before this file, were they named in pyproject.toml.
"""

import os
import tempfile

import django

DATA_DIR = tempfile.TemporaryDirectory(prefix="nanollmserve-tests-")

for name in [name for name in os.environ if name.startswith("NANOLLM_")]:
    del os.environ[name]
os.environ["NANOLLM_DATA_DIR"] = DATA_DIR.name
os.environ["OMP_NUM_THREADS"] = "1"  # more only wait for each other on so little work
os.environ["PYTHON_DOTENV_DISABLED"] = "true"  # a developer's .env
os.environ["DJANGO_SETTINGS_MODULE"] = "nanollmserve_site.settings"
django.setup()


def pytest_configure() -> None:
    """Without a GPU Triton interprets its kernels: it decides on that when it is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
