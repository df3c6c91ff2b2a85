"""What the project measures about itself; `based-ops bench` is its command line."""
