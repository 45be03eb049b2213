"""What survives a crash: whole files or none, locks between processes, lines that do not mix."""
