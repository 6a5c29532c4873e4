"""Many environments at once: with MO-Gymnasium the reward stays a vector, with a scalarization it is one number."""

import gymnasium as gym
import mo_gymnasium as mo
import numpy as np

import fate_gym

OPTIONS = {"suite": "banking", "attack": "important_instructions"}

if __name__ == "__main__":
    vector = mo.wrappers.vector.MOSyncVectorEnv([lambda: mo.make("fate/AgentDojo-v0", **OPTIONS) for _ in range(4)])
    vector.reset(seed=0)
    call = {"tool_calls": [{"function": {"name": "get_balance", "arguments": {}}}]}
    vector.step([call] * 4)
    _, rewards, terminated, _, infos = vector.step(["Done."] * 4)
    print(f"{rewards.shape} rewards over {fate_gym.AXES}, {terminated.sum()} episodes over")
    # An average must leave out what does not apply.
    print("mean of the active axes:", np.nanmean(np.where(infos["reward_mask"], rewards, np.nan), axis=0).round(2))

    # Gymnasium's own vectors take one number each; conversations have no fixed size, so no memory can be shared.
    envs = gym.make_vec(
        "fate/AgentDojo-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"shared_memory": False},
        scalarization={"security": 2, "utility": 1}, **OPTIONS,
    )  # fmt: skip
    envs.reset(seed=0)
    print("scalars:", envs.step(("Done.", "Done."))[1].round(2))
    envs.close()
