"""The workflow in TensorFlow: train, retrain with QAT, export, compile."""
