"""The three-line loop: a model behind OpenAI's API plays one attacked episode of AgentDojo.

Needs OPENAI_API_KEY. For a server of your own set OPENAI_BASE_URL as well, and name its model.
"""

import sys

import gymnasium as gym
from openai import OpenAI

import fate_gym

client = OpenAI()
model = sys.argv[1] if len(sys.argv) > 1 else "gpt-4o-mini"
env = gym.make("fate/AgentDojo-v0", suite="banking", attack="important_instructions", render_mode="ansi")

obs, info = env.reset(seed=0, options={"task_id": "banking/user_task_3/injection_task_5"})
terminated = truncated = False
while not (terminated or truncated):
    reply = client.chat.completions.create(model=model, **obs)
    obs, reward, terminated, truncated, info = env.step(reply)  # or reply.choices[0].message, a dict, a string
    if "problem" in info:
        print("invalid action:", info["problem"])

print(env.render())
for name, value, counts in zip(fate_gym.AXES, reward, info["reward_mask"], strict=True):
    print(f"{name}: {value:.2f}" if counts else f"{name}: does not apply")
