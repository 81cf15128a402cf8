"""The embedded demo model: a small Qwen3 that comes with the repository."""

from pathlib import Path

DEMO_MODEL_NAME = "nanollmserve-demo"
DEMO_MODEL_PATH = Path(__file__).parent / "weights"
