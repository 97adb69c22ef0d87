"""Situations out of the public issue threads of other CAM libraries. `docs/models.md` lists them."""
