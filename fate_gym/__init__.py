"""Gymnasium environments for the safety of tool-using LLM agents."""
