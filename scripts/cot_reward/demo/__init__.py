"""The demo: a toy world of pictures and captions, and a tiny base model that can see it."""
