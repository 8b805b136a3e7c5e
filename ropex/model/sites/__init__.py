"""Where models compute their rotary embeddings, by what such a place holds and how it is asked."""
