"""What agents say, and what their silence says, as events: without a clock or a socket, so that tests can ask."""
