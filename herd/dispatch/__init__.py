"""A decision is worth what carries it out: from the chosen node to the last byte at the client."""
