"""Where the model's components run: each backend gives the same four calls over tensors."""

from pie_engine.backends.protocol import Backend, UNetCall

__all__ = ["Backend", "UNetCall"]
