"""Views of the log: each a fold that can be thrown away and built again."""
