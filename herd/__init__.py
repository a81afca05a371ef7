"""One address for many Ollama machines, with a history that can be asked again."""

__version__ = "0.1.0"
