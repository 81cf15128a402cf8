"""The text that the demo model learns: TOML tables, and generators that fill them in."""
