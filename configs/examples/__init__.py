"""Examples of parts of your own: a transformation, an encoder, an objective."""
