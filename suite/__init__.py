"""Learning: trainer, losses, networks, data, evaluation, reports. Knows no environment by name."""

import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # TorchRL announces every storage it makes
