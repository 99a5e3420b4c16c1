"""What several dialects share: the forms that fake quantization is written in, and the way from them to FakeQuant."""
