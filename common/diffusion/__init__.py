"""The heart of the course. Read schedules, denoiser, losses and samplers in this order, then guidance and vlb."""
