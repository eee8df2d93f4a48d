"""Large-chunk test-time training: fast weights updated by Muon inside a sequence model."""
