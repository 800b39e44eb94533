"""From text to rows of tokens: encoding, packing, and batches by length."""
