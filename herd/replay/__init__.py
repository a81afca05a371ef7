"""A log that can be asked again is worth more than one that can only be read: here are the questions."""
