"""Everything the chapters share. Layers: schedule <- denoiser <- samplers; unet <- checkpoint <- training."""
