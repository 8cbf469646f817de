"""robotd: a real-time robot control daemon for low-cost arms."""

__version__ = "0.1.0"
