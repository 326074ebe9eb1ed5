"""The settings: their values, how each is checked, and those that another process brings."""
