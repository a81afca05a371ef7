"""The agent on each machine of the fleet; it must stay small on a laptop, so it imports nothing of the router."""
