"""Imported by the parent of test processes: torchvision, which the runtime imports only where a study needs it."""

from runtime.vision import import_torchvision

import_torchvision()
