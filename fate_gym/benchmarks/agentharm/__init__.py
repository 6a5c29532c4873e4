"""AgentHarm as tool-use episodes."""
