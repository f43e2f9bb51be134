# %% [markdown]
# # Look at runs from Python
#
# Run it in a notebook, in an editor with `# %%` cells, or as a script:
# `python examples/read_runs.py [RUN] [PICTURE]`. Without a RUN it reads the newest one, `outputs/latest`.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from li2_lightning import load_run

arguments = [word for word in sys.argv[1:] if not word.startswith("-")] if "ipykernel" not in sys.modules else []
run = load_run(arguments[0] if arguments else "outputs/latest")
picture = Path(arguments[1]) if len(arguments) > 1 else None
print(run.directory, run.status)

# %% [markdown]
# The config by dotted keys, and every column of `metrics.csv` as a table indexed by the step.

# %%
print("learning rate", run["optimizer.lr"], "and weight decay", run["optimizer.weight_decay"])
print(run.metrics[["train/accuracy", "test/accuracy", "gradient/norm"]].describe())
print("test accuracy reached .9 at step", run.first_step("test/accuracy", 0.9))

# %% [markdown]
# The stages, with the evidence for each transition.

# %%
if run.stages is not None:
    for event in run.stages["events"]:
        print(f"step {event['step']}: {event['from'] * 'I'} → {event['to'] * 'I'}, {event['evidence']}")
    if run.stages["stalled"]:
        print("stalled in stage II")

# %% [markdown]
# The learned weights.

# %%
weights = run.weights()
print({name: tuple(value.shape) for name, value in weights.items()})
norms = weights["W"].norm(dim=0)
print(f"norms of the {len(norms)} nodes: {norms.min():.3f} to {norms.max():.3f}")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
run.metrics[["train/accuracy", "test/accuracy"]].plot(ax=axes, style=["-", "--"])
for event in run.stages["events"] if run.stages else []:
    axes.axvline(event["step"], color="grey", linestyle=":")
axes.set_xlabel("step (optimizer updates)")
axes.set_ylabel("accuracy")
if picture is not None:
    figure.savefig(picture)
    print(picture)
else:
    plt.show()
