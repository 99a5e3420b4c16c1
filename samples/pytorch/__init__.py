"""The workflow in PyTorch: train, retrain with QAT, export, compile."""
