"""Recipes: compositions of environments, networks, losses and updates. Run them with ``python -m recipes.<name>``."""
