"""What a user shows, read: bytes -> lines, lines -> facts, facts -> the same Machine that `machine.collect` makes."""
