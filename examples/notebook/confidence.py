# %% [markdown]
# # How far can someone move a classifier's confidence?
#
# Attack, defend and audit a small network on handwritten digits: about a minute on a laptop. No label changes anywhere
# on this page; only the confidence does. The figures need `pip install matplotlib`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import poise

target = poise.models.load("builtin:digits")
data = poise.data.load("builtin:digits", samples=200)
print(f"{len(data.images)} images of {tuple(data.images.shape[1:])}, {target.num_classes} classes")

# %% [markdown]
# ## Attack
#
# `sa-uca` lowers the confidence, `sa-oca` raises it. Both see scores alone and may ask 200 times per image; each pixel
# moves by at most 0.1.

# %%
eps, budget = 0.1, 200
results = {
    name: poise.run_recipe(name, target, data.images, data.labels, eps=eps, budget=budget)
    for name in ("sa-uca", "sa-oca")
}
clean = results["sa-uca"].table
right = (clean["prediction_before"] == clean["label"]).to_numpy()
print(f"clean    mean confidence {clean['confidence_before'].mean():.2f}, accuracy {right.mean():.2f}")
for name, result in results.items():
    table = result.table
    same = bool((table["prediction_after"] == table["prediction_before"]).all())
    print(f"{name}   mean confidence {table['confidence_after'].mean():.2f}, labels unchanged: {same}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.2))
bins = np.linspace(0, 1, 26)
axis.hist(clean["confidence_before"], bins, histtype="step", label="clean")
for name, result in results.items():
    axis.hist(result.table["confidence_after"], bins, histtype="step", label=name)
axis.set(xlabel="confidence", ylabel="images", title="The same labels, another confidence")
axis.legend()
plt.show()

# %% [markdown]
# ## What it does to a decision
#
# A system accepts answers above a threshold and sends the others to a person.

# %%
threshold = 0.9
for name, confidence in [
    ("clean", clean["confidence_before"]),
    *((name, result.table["confidence_after"]) for name, result in results.items()),
]:
    accepted = confidence.to_numpy() >= threshold
    print(f"{name:7} accepted {accepted.mean():6.1%}, of these wrong {(accepted & ~right).sum()}")

# %% [markdown]
# ## Defend, against an attacker who knows the defence
#
# Compression scaling is fitted on other images. The attacker sees the defended scores.

# %%
held_out = poise.data.load("builtin:digits", split="val")
scaled = poise.defenses.CompressionScaling().fit(target.query(held_out.images, held_out.ids).logits, held_out.labels)
defended = poise.ModuleTarget(poise.defenses.stack(target.module, scaled), num_classes=10)


def ece(confidence):
    return poise.metrics.ece(confidence.to_numpy(), right)


for name, victim in (("undefended", target), ("cs", defended)):
    table = poise.run_recipe("sa-mma", victim, data.images, data.labels, eps=eps, budget=budget).table
    before, after = ece(table["confidence_before"]), ece(table["confidence_after"])
    print(f"{name:11} ECE {before:.2f}, attacked {after:.2f}")

# %% [markdown]
# ## Audit
#
# The same and much more, with a report that a manager reads, is one command:
#
#     poise audit --model builtin:digits --data builtin:digits
#
# For a model of yours, `poise.ModuleTarget(module, num_classes=…, mean=…, std=…)`, or an address such as
# `torchvision:resnet18?weights=FILE&num_classes=7`.
