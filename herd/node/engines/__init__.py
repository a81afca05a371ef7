"""The inference servers that an agent can report on."""
