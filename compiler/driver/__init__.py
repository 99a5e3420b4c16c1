"""The road from a file to a package, and what stands at its two ends: options, recognition, proof, assembly."""
