"""The heart of the course: schedules, predictions, losses, guidance and samplers. Read schedules, denoiser, losses, samplers in this order."""
