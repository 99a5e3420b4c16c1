"""Golden tensors: what every step of the deployed network must compute on the samples."""
