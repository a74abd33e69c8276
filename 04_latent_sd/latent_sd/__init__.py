"""Chapter 4: an autoencoder, diffusion on its latents, and the pipeline of both."""
