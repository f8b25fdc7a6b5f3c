"""CoPS: conditional prompt synthesis for zero-shot anomaly detection."""

__version__ = "0.3.0"
