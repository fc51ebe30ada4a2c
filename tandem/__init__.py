"""Tandem: prefill and decode side by side on one device, over one memory."""

__version__ = "0.1.0"
