"""Parts of one's own: a transformation, an encoder, an objective."""
