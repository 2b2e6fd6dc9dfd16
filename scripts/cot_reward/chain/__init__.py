"""The chain of all steps, from cold-start rows to the table: what scripts/chain.sh does."""
