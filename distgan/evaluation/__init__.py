"""Quality of generated images: feature extractors, metrics on features, and the card that says how they were made."""
