"""Views: random crops and colour changes of an image, drawn from keys and applied in batches."""
