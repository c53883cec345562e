"""What the write path's benchmarks share: places, servers, baselines, and who fires at them."""
