"""The machines that run a scenario: ``bare`` (nobody under L1) and ``nested`` (our L0 under L1)."""
