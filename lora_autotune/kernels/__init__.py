"""The CSGMV LoRA kernels, the batches they serve, and the reference that judges them."""
