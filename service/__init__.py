"""The online side: serves the bundles of a model store over HTTP. Knows no torch."""

import os

# ONNX Runtime from 1.29 on sends telemetry on Linux unless this is set before it is imported, which happens in
# the modules of this package only.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
