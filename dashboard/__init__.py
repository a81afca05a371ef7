"""The analytics pages; they come with a later release."""
