"""The durable log: what the gateway writes and everything else reads."""
