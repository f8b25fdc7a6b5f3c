"""CoPS: conditional prompt synthesis for zero-shot anomaly detection."""

__version__ = "0.1.0"
