"""What goes into a step: batches of images, or of cached features."""
