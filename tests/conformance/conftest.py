"""What is here besides tests are programs, which import each other by their bare names."""

collect_ignore_glob = ["sdk_*.py", "sample_*.py"]
