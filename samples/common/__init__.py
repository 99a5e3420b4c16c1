"""What the samples of both frameworks share: data, progress, accuracy of the compiled model."""
