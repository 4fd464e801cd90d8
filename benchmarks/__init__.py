"""What the package costs, beside the floor and its peers, in interleaved runs on one machine: ``make bench``."""
