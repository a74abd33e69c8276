"""Chapter 3: samplers written out, experiments on schedules and samplers, interpolation."""
