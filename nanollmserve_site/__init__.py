"""The wiring of nanoLLMServe: settings, URLs, the ASGI application and how it starts."""

__version__ = "0.1"
