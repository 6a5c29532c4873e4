"""ATBench as trajectory-diagnosis episodes."""
