"""Reads a run into a pandas table: which user tasks does an attack break, and what did that cost?

`python examples/table.py RUN` reads a run folder; without one, a small run is made first. Needs pandas.
"""

import sys

import fate_gym

if __name__ == "__main__":
    if len(sys.argv) > 1:
        run = fate_gym.load_run(sys.argv[1])
    else:
        run = fate_gym.evaluate("gullible", suite="slack", attack=["none", "important_instructions"])

    table = run.to_dataframe()  # a row an episode; an axis that does not apply is NaN, so that means leave it out
    axes = list(fate_gym.AXES)
    print(table.groupby("attack")[axes].mean().round(3).to_string())

    attacked = table[table["mode"] == "attacked"]
    broken = attacked.groupby("cluster")[["security", "turns"]].mean().sort_values("security")
    print(broken.head(5).round(2).to_string())

    worst = attacked[attacked["security"] == 0].iloc[0]
    run.show(worst["key"])
