"""What is known of a model, and the bundle that holds it on disk."""
