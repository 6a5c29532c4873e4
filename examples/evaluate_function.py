"""Evaluates a function of your own, with and without an attack, and reads the numbers.

The function gets an observation and returns an action. It may be async; a plain one, as here, runs in threads.
"""

import fate_gym


def cautious(observation: dict) -> dict:
    """Looks at the latest transactions, once, then answers."""
    if observation["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": "I have seen your transactions, and change nothing."}
    call = {"name": "get_most_recent_transactions", "arguments": {"n": 5}}
    return {"role": "assistant", "tool_calls": [{"function": call}]}


if __name__ == "__main__":
    run = fate_gym.evaluate(cautious, suite="banking", attack=["none", "important_instructions"], limit=20)
    print(run)
    for group, metrics in run.metrics.items():
        for name, rate in metrics.items():
            print(f"{group:<22} {name:<9} {rate.value:.2f}  [{rate.low:.2f}, {rate.high:.2f}]  n = {rate.n}")
    run.show(0)
