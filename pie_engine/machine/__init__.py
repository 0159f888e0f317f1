"""What this machine can run: loading, selection, environment, doctor, inspection."""
