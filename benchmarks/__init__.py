"""What is measured, beside whom. `make bench` runs `serving`."""
